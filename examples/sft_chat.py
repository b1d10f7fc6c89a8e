"""Supervised finetuning of a chat model with TRL's own SFTTrainer and IVON: one class line and one argument.

    pip install trl
    python examples/sft_chat.py [OUTPUT] [MODEL]

Afterwards every draw of the posterior writes an answer of its own.
"""

import sys
from pathlib import Path

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from ivon_lora_lite import IVONMixin, Run, generate, load_model

PAIRS = {
    "Where do I put the empty glass bottle?": "Into the container for glass, without its cap.",
    "Where do I put the pizza box?": "Into the bin for other waste, because of the grease.",
    "Where do I put yesterday's newspaper?": "Into the bin for paper.",
    "Where do I put the peel of a banana?": "Onto the compost.",
    "Where do I put a broken lamp?": "To the collection of old devices.",
    "Where do I put a yoghurt cup?": "Into the bin for packaging, empty but not washed.",
    "Where do I put used batteries?": "Into the box for batteries at the shop.",
    "Where do I put a torn jacket?": "Into the container for old clothes, in a bag.",
}


class IVONSFTTrainer(IVONMixin, SFTTrainer):
    """TRL's trainer, with every forward pass of training at a draw."""


def main(output: str = "outputs/example-sft", name: str = "smollm2-135m", steps: int = 40, **options) -> list:
    model = load_model(name, **options)
    rows = [
        {"prompt": [{"role": "user", "content": q}], "completion": [{"role": "assistant", "content": a}]}
        for q, a in PAIRS.items()
    ]
    arguments = SFTConfig(
        output_dir=output, max_steps=steps, per_device_train_batch_size=4, learning_rate=0.3, max_grad_norm=0.0,
        lr_scheduler_type="linear", logging_steps=10, save_strategy="no", report_to="none", seed=21, bf16=False,
        use_cpu=model.device.type == "cpu", gradient_checkpointing=False,
    )  # fmt: skip
    trainer = IVONSFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=model.tokenizer,
        ivon={"ess": 4e5, "hess_init": 1e-3, "clip_radius": 1e-3, "weight_decay": 0, "rescale_lr": False, "seed": 0},
    )
    trainer.train()
    posterior = trainer.posterior()
    model.save_pretrained(output)
    posterior.save(Path(output))
    run = Run(model, dict(posterior.mean), posterior, {"task": "chat", "format": "text"})
    for written in generate(run, ["Where do I put an old newspaper?"], samples=4, max_new_tokens=24):
        print("at the mean:", written.at_mean)
        for text in written.texts:
            print("  a draw:", text)
    return trainer.state.log_history


if __name__ == "__main__":
    main(*sys.argv[1:3])
