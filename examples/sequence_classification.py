"""A plain `transformers.Trainer` script with IVON: what differs is marked. Runs in seconds on a CPU.

python examples/sequence_classification.py [OUTPUT]
"""

import sys

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from ivon_lora_lite import IVONTrainer  # ← was: from transformers import Trainer


def rows(n: int, seed: int) -> list[dict]:
    """Token sequences; the label says which of two tokens comes more often."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 8, (n, 12), generator=generator)
    labels = ((ids == 2).sum(1) > (ids == 3).sum(1)).long()
    return [{"input_ids": i, "labels": y} for i, y in zip(ids, labels)]


def accuracy(predictions) -> dict[str, float]:
    return {"accuracy": float(np.mean(predictions.predictions.argmax(-1) == predictions.label_ids))}


def main(output: str = "outputs/example-classification", steps: int = 300) -> dict[str, float]:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, num_labels=2,
        max_position_embeddings=12,
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=output, max_steps=steps, per_device_train_batch_size=32, per_device_eval_batch_size=256,
        learning_rate=0.03,  # ← IVON's own: AdamW's would hardly move a weight
        report_to="none", logging_steps=50, save_steps=steps, disable_tqdm=True,
        use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = IVONTrainer(  # ← was: Trainer(
        BertForSequenceClassification(config), arguments, train_dataset=rows(2000, 0), eval_dataset=rows(500, 1),
        compute_metrics=accuracy,
        ivon={"ess": 1e5, "hess_init": 0.01, "clip_radius": 0.3, "rescale_lr": False}, eval_samples=8,  # ← new
    )  # fmt: skip
    trainer.train()
    return trainer.evaluate()


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
