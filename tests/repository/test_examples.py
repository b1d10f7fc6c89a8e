"""The examples run, learn, and leave what they promise."""

import pytest
import torch
from conftest import load_script

from ivon_lora_lite import GaussianPosterior


@pytest.mark.slow
def test_sequence_classification(tmp_path):
    result = load_script("examples/sequence_classification.py").main(str(tmp_path))
    assert result["eval_accuracy"] > 0.85
    assert GaussianPosterior.load(tmp_path / "checkpoint-300").metadata["step"] == 300


def test_causal_language_model(tmp_path, tiny_model, tiny_tokenizer):
    folder = tmp_path / "base"
    tiny_model("llama", lora=False).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    losses = load_script("examples/causal_lm.py").main(str(tmp_path / "out"), str(folder), steps=30)
    assert sum(losses[-5:]) < sum(losses[:5])
    posterior = GaussianPosterior.load(tmp_path / "out")
    assert posterior.metadata["step"] == 30
    assert all(torch.isfinite(v).all() for v in posterior.variance.values())
