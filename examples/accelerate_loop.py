"""IVON in a plain loop of Hugging Face Accelerate: the context goes around the forward and backward pass.

    accelerate launch examples/accelerate_loop.py [OUTPUT] [MODEL]

The same script runs on a CPU, on one GPU and, with all processes drawing the same weights, on several (DDP).
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
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


def main(output: str = "outputs/example-accelerate", name: str = "smollm2-135m", epochs: int = 2, size: int = 40):
    torch.manual_seed(0)  # of LoRA's start, the order of questions and dropout
    accelerator = Accelerator(gradient_accumulation_steps=2)
    task, model = load_task("everyday"), load_model(name, device=str(accelerator.device))
    tokenizer = model.tokenizer
    optimizer = IVON(
        lora_parameters(model), lr=0.2, ess=2e5, hess_init=1e-3, clip_radius=1e-3, weight_decay=0, rescale_lr=False,
        seed=0,
    )  # fmt: skip
    batches = DataLoader(task.train[:size], 2, shuffle=True, collate_fn=lambda questions: collate(questions, tokenizer))
    steps = epochs * len(batches) // accelerator.gradient_accumulation_steps
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    model, optimizer, batches, schedule = accelerator.prepare(model, optimizer, batches, schedule)
    model.train()
    losses = []
    for _ in range(epochs):
        for batch in batches:
            with accelerator.accumulate(model), optimizer.optimizer.sampled_params(train=True):
                loss = answer_loss(answer_logits(model, batch), batch["answers"])
                accelerator.backward(loss)
            losses.append(loss.item())
            if accelerator.sync_gradients:  # outside the context: step() pairs the gradients with the draw
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        model = accelerator.unwrap_model(model)
        model.save_pretrained(output)
        GaussianPosterior.from_optimizer(optimizer.optimizer, model).save(Path(output))
        print(f"loss {sum(losses[:5]) / 5:.3f} → {sum(losses[-5:]) / 5:.3f}")
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:3])
