"""Merging by precision against the minimum of summed quadratic losses."""

from __future__ import annotations

import pytest
import torch

from ivon_lora_lite import finetune, load_run, load_task, merge_runs, predict
from ivon_lora_lite.applications import merged_mean

SHORT = {"steps": 3, "train_size": 6, "progress": False, "eval_every": 0, "beta2": 0.9}


def test_quadratic_losses_are_merged_exactly():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, generator=generator)
    targets = [torch.randn(5, generator=generator) for _ in range(3)]
    h = [torch.rand(5, generator=generator) + 0.1 for _ in range(3)]
    prior = 0.3
    means = [(hk * t + prior * start) / (hk + prior) for hk, t in zip(h, targets)]  # of ½ h (m − t)² + ½ H₀ (m − m₀)²
    exact = (sum(hk * t for hk, t in zip(h, targets)) + prior * start) / (sum(h) + prior)
    merged, total = merged_mean(start, means, h, prior)
    torch.testing.assert_close(merged, exact)
    torch.testing.assert_close(total, sum(h) + prior)
    plain, _ = merged_mean(start, means, [torch.ones(5)] * 3)
    torch.testing.assert_close(plain, sum(means) / 3)


def test_a_merged_run_is_a_run(tiny_model, tmp_path):
    task, model = load_task("everyday@1"), tiny_model()
    runs = [finetune(model, questions, seed=4, **SHORT) for questions in (task.train[:6], task.train[6:12])]
    merged = merge_runs(runs, prior=1e-3)
    for name, m in merged.weights.items():
        one, other = (run.weights[name] for run in runs)
        assert not torch.equal(m, one) and not torch.equal(m, other)
        if ".lora_B." in name:  # m₀ is 0 there
            low, high = torch.minimum(one, other).clamp(max=0), torch.maximum(one, other).clamp(min=0)
            assert ((m >= low - 1e-6) & (m <= high + 1e-6)).float().mean() > 0.95
    merged.save(tmp_path / "merged")
    again = load_run(tmp_path / "merged", model)
    assert torch.equal(
        predict(again, task.test[:4], samples=2).logits, predict(merged, task.test[:4], samples=2).logits
    )
    with pytest.raises(ValueError, match="at least two runs"):
        merge_runs(runs[:1])
    with pytest.raises(ValueError, match="train them with the same seed"):
        merge_runs([runs[0], finetune(model, task.train[:6], seed=5, **SHORT)])
    with pytest.raises(ValueError, match="needs IVON runs"):
        point = finetune(model, task, optimizer="adamw", steps=1, train_size=4, seed=4, progress=False, eval_every=0)
        merge_runs([runs[0], point])
