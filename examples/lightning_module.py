"""IVON in a LightningModule, with manual optimisation, because the draw has to surround the backward pass.

pip install lightning
python examples/lightning_module.py [OUTPUT] [MODEL]
"""

import sys
from pathlib import Path

import lightning
import torch
from torch.utils.data import DataLoader

from ivon_lora_lite import (
    IVON,
    GaussianPosterior,
    answer_logits,
    answer_loss,
    collate,
    load_model,
    load_task,
    lora_parameters,
)


class Finetuning(lightning.LightningModule):
    """LoRA on multiple-choice questions."""

    def __init__(self, model, steps: int):
        super().__init__()
        self.automatic_optimization = False
        self.model, self.steps = model, steps
        self.losses: list[float] = []

    def configure_optimizers(self):
        self.ivon = IVON(
            lora_parameters(self.model), lr=0.2, ess=2e5, hess_init=1e-3, clip_radius=1e-3, weight_decay=0,
            rescale_lr=False, seed=0,
        )  # fmt: skip
        schedule = torch.optim.lr_scheduler.LinearLR(self.ivon, 1.0, 0.0, total_iters=self.steps)
        return [self.ivon], [schedule]

    def training_step(self, batch, index):
        with self.ivon.sampled_params(train=True):
            loss = answer_loss(answer_logits(self.model, batch), batch["answers"])
            self.manual_backward(loss)
        optimizer = self.optimizers()
        optimizer.step()
        optimizer.zero_grad()
        self.lr_schedulers().step()
        self.losses.append(loss.item())


def main(output: str = "outputs/example-lightning", name: str = "smollm2-135m", steps: int = 20) -> list[float]:
    torch.manual_seed(0)  # of LoRA's start, the order of the data and dropout
    task, model = load_task("everyday"), load_model(name)
    tokenizer = model.tokenizer
    batches = DataLoader(task.train[:40], 4, shuffle=True, collate_fn=lambda questions: collate(questions, tokenizer))
    module = Finetuning(model, steps)
    trainer = lightning.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="auto", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(module, batches)
    model.save_pretrained(output)
    GaussianPosterior.from_optimizer(module.ivon, model).save(Path(output))
    print(f"loss {sum(module.losses[:5]) / 5:.3f} → {sum(module.losses[-5:]) / 5:.3f}")
    return module.losses


if __name__ == "__main__":
    main(*sys.argv[1:3])
