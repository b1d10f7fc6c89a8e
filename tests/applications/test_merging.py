"""Merging by precision against the minimum of summed quadratic losses."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import flat

from ivon_lora_lite import (
    GaussianPosterior,
    finetune,
    load_model,
    load_run,
    load_task,
    merge_runs,
    predict,
    training,
)
from ivon_lora_lite.applications import merged_mean
from ivon_lora_lite.applications.merging import curvature
from ivon_lora_lite.cli import main
from ivon_lora_lite.gates import Decisions, GatedPosterior
from ivon_lora_lite.language import reset_lora
from ivon_lora_lite.posterior import read_weights

SHORT = {"steps": 3, "train_size": 6, "progress": False, "eval_every": 0, "beta2": 0.9}


@pytest.fixture(scope="module")
def run(tiny_model):
    return finetune(tiny_model(), load_task("everyday@1"), **SHORT)


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
    for kind in ("abstain", "tau", "data"):  # of the first run alone
        runs[0].config[kind] = {"value": 0.5}
    merged = merge_runs(runs, prior=1e-3)
    assert not {"abstain", "tau", "data"} & merged.config.keys() and runs[0].config["abstain"]
    assert merged.config["train_size"] == 12 and merged.config["tasks"] == [run.config["task"] for run in runs]
    with pytest.raises(ValueError, match="gates cannot be merged"):
        merge_runs([replace(runs[0], gates=object()), runs[1]])
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


@pytest.mark.slow
def test_runs_from_folders_are_merged_as_those_in_memory(tiny_folder, tmp_path):
    task, model = load_task("everyday@1"), load_model(str(tiny_folder), device="cpu", dtype="fp32", progress=False)
    far = {**SHORT, "seed": 4, "lr": 1.0, "clip_radius": 0.1}
    runs = [finetune(model, questions, **far) for questions in (task.train[:6], task.train[6:12])]
    loaded = [load_run(run.save(tmp_path / name), progress=False) for run, name in zip(runs, "ab")]
    for prior in (0.0, 1.0, 1e3):
        merged, other = merge_runs(runs, prior=prior), merge_runs(loaded, prior=prior)
        torch.testing.assert_close(flat(other.weights), flat(merged.weights), rtol=0, atol=1e-6)
    reset_lora(model, 4)
    for run in (*runs, *loaded):
        before = read_weights(run.model)
        assert torch.equal(flat(training.started_from(run)), flat(read_weights(model)))
        assert torch.equal(flat(read_weights(run.model)), flat(before))


def test_a_prior_needs_the_weights_that_a_run_began_with(run):
    onwards = replace(run, config={**run.config, "continued": True})
    with pytest.raises(ValueError, match="not known any more"):
        merge_runs([run, onwards], prior=1.0)
    assert merge_runs([run, onwards]).config["method"] == "merged"  # without a prior the start does not matter


@pytest.mark.parametrize("tau", [0.25, 4.0])
def test_the_curvature_does_not_depend_on_tau(tau):
    h, ess, delta = torch.tensor([0.01, 0.1, 2.0]), 1e4, 1e-4
    q = GaussianPosterior({"w": torch.zeros(3)}, {"w": 1 / (ess * (h + delta))}, {"ess": ess, "weight_decay": delta})
    run = SimpleNamespace(posterior=q.scale(tau), config={"train_size": 100})
    torch.testing.assert_close(curvature(run)["w"], 100 * h)


def test_gated_runs_are_not_merged(run):
    gated = replace(run, posterior=GatedPosterior(run.posterior, Decisions({})))
    with pytest.raises(ValueError, match="needs IVON runs"):
        merge_runs([gated, gated])


def test_a_merged_run_is_evaluated_on_tasks_that_are_named(monkeypatch, capsys):
    merged = SimpleNamespace(
        config={"task": "everyday@2 + arc_easy", "tasks": ["everyday@2", "arc_easy"]}, posterior=None
    )
    monkeypatch.setattr("ivon_lora_lite.training.load_run", lambda *_, **__: merged)
    assert main(["evaluate", "merged"]) == 2
    assert "name tasks with --task, of everyday@2, arc_easy" in capsys.readouterr().err


def test_adapters_of_another_scale_are_not_merged(tiny_model):
    task = load_task("everyday@1")
    runs = []
    for alpha in (16, 160):
        model = tiny_model()
        for module in model.peft_config.values():
            module.lora_alpha = alpha
        runs.append(finetune(model, task, seed=4, **SHORT))
    with pytest.raises(ValueError, match="adapters have another lora_alpha"):
        merge_runs(runs)
    with pytest.raises(ValueError, match="prior is -1; expected a finite precision"):
        merge_runs(runs[:1] * 2, prior=-1)


def test_a_merged_posterior_is_as_wide_as_its_parts_and_merges_again(run):
    """Two equal runs know twice as much together; λ and N add up, so a merged run can be merged again."""
    two = merge_runs([run, run])
    h = curvature(run)
    ess, delta = run.posterior.metadata["ess"], run.posterior.metadata["weight_decay"]
    for name, v in two.posterior.variance.items():
        without_prior = 1 / (1 / run.posterior.variance[name] - ess * delta)  # v = 1/(λ(h + δ))
        torch.testing.assert_close(v, without_prior / 2, rtol=1e-3, atol=0)
        torch.testing.assert_close(two.posterior.mean[name], run.posterior.mean[name])
        torch.testing.assert_close(curvature(two)[name], 2 * h[name], rtol=1e-3, atol=1e-6)
    three = merge_runs([two, run])
    for name, v in three.posterior.variance.items():
        torch.testing.assert_close(v, two.posterior.variance[name] * 2 / 3, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "letter"}, "another format: text and letter"),
        ({"classes": ["a", "b"]}, "another classes"),
        ({"model": {"name": "other"}}, "another base model"),
    ],
)
def test_runs_that_mean_different_things_are_not_merged(run, change, message):
    with pytest.raises(ValueError, match=message):
        merge_runs([run, replace(run, config={**run.config, **change})])
