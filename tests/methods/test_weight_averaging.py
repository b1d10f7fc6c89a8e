"""SWA and SWAG: the collector against numpy, the low-rank Gaussian against dense matrices, and whole runs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import flat
from safetensors.torch import save_file
from transformers import TrainerCallback

from ivon_lora_lite import (
    GaussianPosterior,
    LowRankPosterior,
    finetune,
    load_posterior,
    predict,
    save_run,
    score,
    swa,
    swag,
    tau_sweep,
    trainable,
)
from ivon_lora_lite.files import read_json
from ivon_lora_lite.methods import WeightCollector
from ivon_lora_lite.posterior import POSTERIOR_FILE

OPTIONS = {"batch_size": 2, "progress": False, "optimizer": "adamw"}


# ----------------------------------------------------------------------------------------------------------- collector


def path_of(count, scale=1.0, center=0.0):
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (2, 3), "b": (4,)}
    return [
        {name: center + scale * torch.randn(s, generator=generator) for name, s in shapes.items()} for _ in range(count)
    ]


@pytest.mark.parametrize(("count", "rank"), [(7, 3), (3, 10), (2, 2)])
def test_the_collector_has_the_moments_and_the_last_deviations(count, rank):
    collector = WeightCollector(every=1, rank=rank)
    path = path_of(count)
    for weights in path:
        collector.collect(weights)
    posterior = collector.posterior(seed=5)
    kept = min(count, rank)
    assert posterior.rank == kept and posterior.metadata == {"collected": count, "rank": kept, "every": 1, "seed": 5}
    for name in ("a", "b"):
        stack = np.stack([w[name].double().numpy() for w in path])
        np.testing.assert_allclose(posterior.mean[name], stack.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(posterior.diagonal[name], stack.var(0), rtol=1e-5, atol=1e-7)
        running = np.cumsum(stack, 0) / np.arange(1, count + 1).reshape(-1, *[1] * (stack.ndim - 1))
        np.testing.assert_allclose(posterior.deviations[name], (stack - running)[-kept:], rtol=1e-5, atol=1e-6)


def test_small_steps_around_large_weights_are_not_lost_to_rounding():
    path = path_of(20, scale=1e-4, center=10.0)  # θ² near 100, its variance 1e-8: fp32 could not tell
    collector = WeightCollector(every=1)
    for weights in path:
        collector.collect(weights)
    for name, v in collector.posterior().diagonal.items():
        want = torch.stack([w[name] for w in path]).double().var(0, unbiased=False)
        torch.testing.assert_close(v.double(), want, rtol=1e-4, atol=0)


def test_weights_that_do_not_move_have_next_to_no_variance():
    collector = WeightCollector(every=1)
    for _ in range(3):
        collector.collect({"w": torch.full((3,), 0.1)})
    v = collector.posterior().variance["w"]
    assert (v > 0).all() and (v < 1e-15).all()


def test_the_collector_does_not_keep_a_view_of_the_weights():
    collector, w = WeightCollector(every=1), torch.ones(2, dtype=torch.float64)
    collector.collect({"w": w})
    w.add_(1)
    assert collector.mean()["w"].tolist() == [1, 1]


def test_too_little_to_collect_is_refused():
    for every, rank, said in ((0, 2, "every is 0; expected .* at least 1"), (1, -1, "rank is -1; .* at least 0")):
        with pytest.raises(ValueError, match=said):
            WeightCollector(every, rank)
    with pytest.raises(ValueError, match="No weights were collected"):
        WeightCollector(3).mean()
    collector = WeightCollector(1)
    collector.collect({"w": torch.ones(1)})
    with pytest.raises(ValueError, match="at least two collected weights"):
        collector.posterior()


# ---------------------------------------------------------------------------------------------------- low-rank Gaussian


@pytest.fixture
def low_rank():
    """With its covariance from the definition, s (Σ_d + D̂D̂ᵀ/(K−1)), over the entries of a and then of b."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"a": (2, 2), "b": (3,)}
    mean = {name: torch.randn(s, generator=generator) for name, s in shapes.items()}
    diagonal = {name: 0.1 + torch.rand(s, generator=generator) for name, s in shapes.items()}
    deviations = {name: torch.randn(4, *s, generator=generator) for name, s in shapes.items()}
    flat = torch.cat([d.flatten(1) for d in deviations.values()], 1).double()  # [K, P]
    diagonal_flat = torch.cat([d.flatten() for d in diagonal.values()]).double()
    return LowRankPosterior(mean, diagonal, deviations, {"task": "tiny"}), 0.5 * (
        diagonal_flat.diag() + flat.T @ flat / 3
    )


def test_its_covariance_of_functions_holds_what_ties_tensors_together(low_rank):
    posterior, sigma = low_rank
    generator = torch.Generator().manual_seed(2)
    jacobian = {name: torch.randn(3, *m.shape, generator=generator) for name, m in posterior.mean.items()}
    rows = torch.cat([j.flatten(1) for j in jacobian.values()], 1).double()
    torch.testing.assert_close(posterior.covariance(jacobian).double(), rows @ sigma @ rows.T, atol=1e-5, rtol=1e-5)


def doubles(tensors):
    return flat(tensors).double()


def test_draws_have_the_dense_covariance_across_tensors(low_rank):
    posterior, sigma = low_rank
    torch.testing.assert_close(doubles(posterior.variance), sigma.diagonal())
    assert (sigma[:4, 4:].abs() > 0.1).any()  # a and b move together
    count, tau = 2000, 0.5
    noise = torch.stack([doubles(posterior.sample(seed, tau)) - doubles(posterior.mean) for seed in range(count)])
    want = tau * sigma
    error = ((want.square() + want.diagonal().outer(want.diagonal())) / count).sqrt()
    assert ((noise.T @ noise / count - want).abs() < 4.5 * error).all()
    assert (noise.mean(0).abs() < 4.5 * (want.diagonal() / count).sqrt()).all()


def test_a_seed_gives_the_same_noise_for_every_tau_and_order_of_names(low_rank):
    posterior, _ = low_rank
    m, one = doubles(posterior.mean), doubles(posterior.sample(5))
    for tau in (0.25, 4.0):
        torch.testing.assert_close((doubles(posterior.sample(5, tau)) - m) / math.sqrt(tau), one - m)
    assert torch.equal(doubles(posterior.sample(5, 0.0)), m)
    assert not torch.equal(doubles(posterior.sample(6)), one)
    parts = (posterior.mean, posterior.diagonal, posterior.deviations)
    backwards = LowRankPosterior(*(dict(reversed(part.items())) for part in parts))
    assert torch.equal(doubles(backwards.sample(5)), one)


def test_scale_is_tau_and_chains(low_rank):
    posterior, _ = low_rank
    scaled = posterior.scale(0.25)
    torch.testing.assert_close(doubles(scaled.sample(3)), doubles(posterior.sample(3, 0.25)))
    torch.testing.assert_close(doubles(scaled.variance), 0.25 * doubles(posterior.variance))
    assert scaled.scale(0.5).metadata == {"task": "tiny", "tau": 0.125}
    with pytest.raises(ValueError, match="tau=0"):
        posterior.scale(0)
    for tau in (-1.0, math.nan):
        with pytest.raises(ValueError, match="tau is"):
            posterior.sample(0, tau)


def test_pruned_coordinates_are_zero_in_every_draw(low_rank):
    posterior, sigma = low_rank
    ratio = doubles(posterior.mean).abs() / sigma.diagonal().sqrt()
    pruned = posterior.prune(3 / 7)
    gone = ratio <= ratio.sort().values[2]
    draw = doubles(pruned.sample(0))
    assert gone.sum() == 3 and (doubles(pruned.mean)[gone] == 0).all() and (draw[gone].abs() < 1e-15).all()
    assert torch.equal(doubles(pruned.variance)[~gone], doubles(posterior.variance)[~gone])
    assert pruned.metadata["pruned"] == 3 / 7
    with pytest.raises(ValueError, match="fraction is 2"):
        posterior.prune(2)


def test_its_file_gives_it_back(low_rank, tmp_path):
    posterior, _ = low_rank
    assert posterior.save(tmp_path) == tmp_path / POSTERIOR_FILE
    for again in (LowRankPosterior.load(tmp_path), load_posterior(tmp_path), load_posterior(tmp_path / POSTERIOR_FILE)):
        assert isinstance(again, LowRankPosterior) and again.metadata == {"task": "tiny"}
        assert torch.equal(doubles(again.sample(2)), doubles(posterior.sample(2)))
    GaussianPosterior(posterior.mean, posterior.variance).save(tmp_path)
    assert isinstance(load_posterior(tmp_path), GaussianPosterior)
    assert [p.name for p in tmp_path.iterdir()] == [POSTERIOR_FILE]


def test_bad_files_and_values_are_named(low_rank, tmp_path):
    posterior, _ = low_rank
    with pytest.raises(FileNotFoundError, match="no posterior at"):
        load_posterior(tmp_path)
    path = posterior.save(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    for load in (load_posterior, LowRankPosterior.load):
        with pytest.raises(ValueError, match="is damaged"):
            load(tmp_path)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="no posterior of this package"):
        GaussianPosterior.load(tmp_path)
    save_file({"w": torch.ones(1)}, path)
    for load in (load_posterior, LowRankPosterior.load):
        with pytest.raises(ValueError, match="no posterior of this package"):
            load(tmp_path)
    header = {"format": "ivon_lora_lite.LowRankPosterior/1"}
    for tensors, words in (
        ({"mean/w": torch.ones(1), "sigma/w": torch.ones(1)}, "unknown tensor 'sigma/w'"),
        ({"mean/w": torch.ones(1), "diagonal/w": torch.ones(1)}, "which deviations lacks"),
    ):
        save_file(tensors, path, header)
        with pytest.raises(ValueError, match=words):
            load_posterior(tmp_path)
    zero = {name: 0 * v for name, v in posterior.diagonal.items()}
    for wrong, words in (
        ({"diagonal": zero}, "diagonal must be above 0"),
        ({"diagonal": {name: v[:1] for name, v in posterior.diagonal.items()}}, "diagonal has shape"),
        ({"deviations": {name: d[:1] for name, d in posterior.deviations.items()}}, "deviations of 1"),
        ({"deviations": {n: d[: 3 + (n == "a")] for n, d in posterior.deviations.items()}}, "deviations has shape"),
        ({"deviations": {name: d * math.inf for name, d in posterior.deviations.items()}}, "not finite"),
        ({"mean": {name: m * math.nan for name, m in posterior.mean.items()}}, "the mean holds"),
        ({"mean": {}}, "at least one tensor"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(posterior, **wrong)


# ---------------------------------------------------------------------------------------------------------- whole runs


class Spy(TrainerCallback):
    def __init__(self):
        self.path = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.path.append({name: p.detach().clone() for name, p in trainable(model).items()})


@pytest.mark.slow
@pytest.mark.parametrize("format", ["text", "letter"])
def test_swag_and_swa_average_what_training_passes_through(tiny_model, task, format, tmp_path):
    model = tiny_model("llama")
    run = finetune(model, task, steps=4, lr=1e-2, format=format, train_size=6, **OPTIONS)
    options = {"steps": 6, "every": 2, "progress": False}
    got, mean = swag(run, task, rank=5, **options), swa(run, task, **options)
    spy = Spy()
    finetune(model, task, steps=6, lr=1e-2, format=format, train_size=6, start=run.weights, schedule="constant",
             callbacks=[spy], **OPTIONS)  # fmt: skip
    for name in run.weights:
        stack = torch.stack([step[name] for step in spy.path[1::2]]).double()
        torch.testing.assert_close(got.weights[name].double(), stack.mean(0), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(
            got.posterior.diagonal[name].double(), stack.var(0, unbiased=False).clamp(min=1e-30), rtol=1e-3, atol=1e-12
        )
        assert torch.equal(got.weights[name], mean.weights[name])
        assert torch.equal(got.weights[name], got.posterior.mean[name])
    assert mean.posterior is None and got.posterior.rank == got.config["collected"] == 3
    assert (mean.config["method"], got.config["method"]) == ("swa", "swag")
    assert got.config["train_size"] == 6 and got.config["format"] == format and got.config["task"] == "tiny"
    assert got.config["start"]["steps"] == 4 and got.config["settings"]["lr"] == 1e-2
    assert {r["learning_rate"] for r in got.history if "learning_rate" in r} == {1e-2}
    # predictions, a sweep and a folder, as of any run
    draws = predict(got, task.test, samples=3)
    assert draws.logits.shape == (3, 6, 5) and draws.mutual_information().min() > 0
    assert score(draws, intervals=False)["nll"] > 0
    sweep = tau_sweep(got, task.test, taus=(0.0, 1.0), samples=3)
    assert torch.equal(sweep.logits[1], draws.logits)
    torch.testing.assert_close(sweep.logits[0, 0], predict(mean, task.test).logits[0], atol=1e-4, rtol=0)
    save_run(got, tmp_path / "swag")
    assert read_json(tmp_path / "swag" / "run.json")["config"]["method"] == "swag"
    loaded = load_posterior(tmp_path / "swag")
    assert torch.equal(predict(replace(got, posterior=loaded), task.test, samples=3).logits, draws.logits)


def test_an_ivon_run_needs_a_learning_rate_for_adamw(tiny_model, task):
    run = finetune(tiny_model("llama"), task, steps=2, batch_size=2, progress=False)
    for method in (swa, swag):
        with pytest.raises(ValueError, match="give swa or swag an lr"):
            method(run, task, steps=4, every=2, progress=False)
    assert swa(run, task, steps=2, every=2, lr=1e-3, progress=False).config["start"]["optimizer"] == "ivon"


def test_too_few_steps_are_refused_before_training(tiny_model, task, monkeypatch):
    run = finetune(tiny_model("llama"), task, steps=1, **OPTIONS)
    monkeypatch.setattr("ivon_lora_lite.methods.weight_averaging.finetune", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ValueError, match="4 steps are too few"):
        swa(run, task, steps=4, every=5)
    for wrong in ({"steps": 9, "every": 5}, {"rank": 1}):
        with pytest.raises(ValueError, match="at least 2 collections and rank 2"):
            swag(run, task, **wrong)
