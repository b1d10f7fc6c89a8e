"""Supervised finetuning of a causal language model with LoRA and IVON, in a training loop of your own.

    python examples/causal_lm.py [OUTPUT] [MODEL]

The default model is the embedded SmolLM2-135M; give a Hub id or a folder for another one. The result is a folder with a
PEFT adapter (the mean) and posterior.safetensors.
"""

import sys
from pathlib import Path

import torch

from ivon_lora_lite import IVON, GaussianPosterior, load_model, lora_parameters

TEXTS = [f"Instruction: double {n}.\nAnswer: {2 * n}" for n in range(1, 33)]


def mean_loss(model, batch: dict) -> torch.Tensor:
    """Next-token cross-entropy, padding left out."""
    dtype = next(model.parameters()).dtype
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        return model(**batch, labels=labels, use_cache=False).loss


def main(output: str = "outputs/example-causal-lm", name: str = "smollm2-135m", steps: int = 20) -> list[float]:
    torch.manual_seed(0)  # of LoRA's start, the order of the data and dropout
    model = load_model(name)
    tokenizer = model.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    optimizer = IVON(
        lora_parameters(model),
        lr=0.3,
        ess=8e5,
        hess_init=1e-3,
        clip_radius=1e-3,
        weight_decay=0,
        rescale_lr=False,
        seed=0,
    )
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    model.train()
    losses = []
    for step in range(steps):
        total = 0.0
        for part in range(2):  # two micro-batches a step: enter the context for each
            chosen = [TEXTS[(8 * step + 4 * part + i) % len(TEXTS)] for i in range(4)]
            batch = tokenizer(chosen, return_tensors="pt", padding=True).to(model.device)
            with optimizer.sampled_params(train=True):
                loss = mean_loss(model, batch) / 2
                loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(lora_parameters(model), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(total)
        print(f"step {step:3}  loss {total:.3f}", flush=True)
    model.save_pretrained(output)
    GaussianPosterior.from_optimizer(optimizer, model).save(Path(output))
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:3])
