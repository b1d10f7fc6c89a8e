"""Runs, posteriors and sweeps that the first edition wrote (tests/recorded/0.1) are read, and say what they said."""

import shutil

import pytest
import torch
from conftest import ROOT

from ivon_lora_lite import (
    GaussianPosterior,
    KroneckerPosterior,
    LowRankPosterior,
    Predictions,
    TauSweep,
    load_posterior,
    load_run,
    predict,
    tau_sweep,
)
from ivon_lora_lite.files import format_of
from ivon_lora_lite.gates import GatedPosterior

RECORDED = ROOT / "tests" / "recorded" / "0.1"
RUNS = {
    "adamw": None,
    "gated-adamw": None,
    "gated-ivon": GatedPosterior,
    "ivon": GaussianPosterior,
    "laplace_diag": GaussianPosterior,
    "laplace_kfac": KroneckerPosterior,
    "swag": LowRankPosterior,
}


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama", seed=5)


def test_all_of_them_are_looked_at():
    assert sorted(path.name for path in RECORDED.iterdir()) == sorted(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_a_recorded_run_predicts_what_it_predicted(name, model, questions):
    run = load_run(RECORDED / name, model)
    before = Predictions.load(RECORDED / name / "predictions.safetensors")
    now = predict(run, questions, samples=before.metadata["samples"])
    torch.testing.assert_close(now.logits, before.logits, atol=1e-4, rtol=1e-4)
    assert RUNS[name] is type(run.posterior) or run.posterior is None
    assert (run.gates is None) == (not name.startswith("gated"))


def test_a_recorded_run_is_the_same_when_it_is_saved_again(model, tmp_path):
    run = load_run(RECORDED / "gated-ivon", model)
    again = load_run(run.save(tmp_path / "run"), model)
    assert again.gates == run.gates and again.config == run.config and again.history == run.history
    assert all(torch.equal(w, again.weights[name]) for name, w in run.weights.items())
    draws = run.posterior.sample(3), load_posterior(tmp_path / "run").sample(3)
    assert all(torch.equal(w, draws[1][name]) for name, w in draws[0].items())


def test_a_recorded_sweep_is_what_the_posterior_gives(model, questions):
    recorded = TauSweep.load(RECORDED / "ivon" / "sweep.safetensors")
    now = tau_sweep(load_run(RECORDED / "ivon", model), questions, taus=recorded.taus, samples=recorded.samples)
    torch.testing.assert_close(now.logits, recorded.logits, atol=1e-4, rtol=1e-4)
    assert recorded.linear is not None and recorded.linear.probabilities(0.5).shape == (len(questions), 5)


def test_a_posterior_of_an_unknown_format_is_refused(tmp_path):
    shutil.copy(RECORDED / "ivon" / "predictions.safetensors", tmp_path / "posterior.safetensors")
    with pytest.raises(ValueError, match="no posterior of this package"):
        load_posterior(tmp_path)


@pytest.mark.parametrize("file", sorted((ROOT / "data" / "runs").rglob("*.safetensors")), ids=lambda f: f.parent.name)
def test_every_recorded_file_of_the_repository_is_read(file):
    kinds = {kind.FORMAT: kind for kind in (Predictions, TauSweep)}
    assert kinds[format_of(file, "recorded file")].load(file).logits.isfinite().any()
