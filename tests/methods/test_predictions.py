"""MC dropout, ensembles, temperature scaling, and what the package exports."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ivon_lora_lite import (
    METHODS,
    Predictions,
    Run,
    ensemble,
    mc_dropout,
    predict,
    score,
    tau_sweep,
    temperature,
    trainable,
)
from ivon_lora_lite.posterior import applied_weights


def weights_of(model, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.3 * torch.randn(p.shape, generator=generator) for name, p in trainable(model).items()}


def run_of(model, seed=0, format="text"):
    return Run(model, weights_of(model, seed), None, {"format": format, "seed": seed})


# ---------------------------------------------------------------------------------------------------------- MC dropout


@pytest.mark.parametrize("format", ["text", "letter"])
def test_draws_differ_and_the_seed_fixes_them(tiny_model, questions, format):
    run = run_of(tiny_model("llama"), format=format)
    first = mc_dropout(run, questions, samples=3, seed=4)
    assert first.logits.shape == (3, len(questions), 5) and first.metadata["format"] == format
    assert first.mutual_information().mean() > 1e-4
    torch.rand(7)
    assert torch.equal(mc_dropout(run, questions, samples=3, seed=4).logits, first.logits)
    assert torch.equal(mc_dropout(run, questions, samples=1, seed=5).logits[0], first.logits[1])  # pass s: seed + s
    assert not torch.equal(mc_dropout(run, questions, samples=1, seed=3).logits[0], first.logits[0])
    point = predict(run, questions).logits
    present = point[0].isfinite()
    assert torch.equal(first.logits.isfinite().all(0), present)
    # around the point, and of its size: dropout keeps the expectation
    assert (first.logits.mean(0) - point[0])[present].abs().max() < 5 * point[0][present].std()


def test_only_dropout_modules_are_in_training_mode(tiny_model, questions):
    model = tiny_model("gpt2")  # which has dropout of its own
    modes = {}
    hooks = [
        module.register_forward_hook(lambda module, *_: modes.__setitem__(module, module.training))
        for module in model.modules()
    ]
    mc_dropout(model, questions[:2], samples=1)
    for hook in hooks:
        hook.remove()
    dropped = [m for m, training in modes.items() if training]
    assert dropped and all(isinstance(m, nn.Dropout) for m in dropped)
    assert {m for m in modes if isinstance(m, nn.Dropout)} == set(dropped)
    names = {name.rsplit(".", 2)[-2] for name, m in model.named_modules() if m in set(dropped)}
    assert "lora_dropout" in names and len(names) > 1


@pytest.mark.parametrize("fails", [False, True])
def test_modes_weights_and_random_numbers_are_left_as_found(tiny_model, questions, monkeypatch, fails):
    model = tiny_model("llama", trained=True)
    next(m for m in model.modules() if isinstance(m, nn.Dropout)).train()  # a mixture
    next(m for m in model.modules() if isinstance(m, nn.Embedding)).train()
    modes = {m: m.training for m in model.modules()}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    if fails:

        @contextmanager
        def broken(*args):
            with applied_weights(*args):
                raise RuntimeError("out of memory")
                yield

        monkeypatch.setattr("ivon_lora_lite.evaluation.prediction.applied_weights", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            mc_dropout(run_of(model), questions, samples=2)
    else:
        mc_dropout(run_of(model), questions, samples=2)
    assert {m: m.training for m in model.modules()} == modes
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_with_hardly_any_dropout_it_is_the_point(tiny_model, questions):
    model = tiny_model("llama")
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 1e-12
    run = run_of(model)
    got = mc_dropout(run, questions, samples=2)
    assert torch.equal(got.logits[0], predict(run, questions).logits[0])


def test_without_dropout_questions_or_samples_it_says_so(tiny_model, questions):
    model = tiny_model("llama")
    with pytest.raises(ValueError, match="no questions"):
        mc_dropout(model, [])
    with pytest.raises(ValueError, match="samples is 0"):
        mc_dropout(model, questions, samples=0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with pytest.raises(ValueError, match="no dropout: load it with"):
        mc_dropout(model, questions)


# ------------------------------------------------------------------------------------------------------------ ensemble


def test_an_ensemble_stacks_its_members_in_order(tiny_model, questions):
    model = tiny_model("llama")
    runs = [run_of(model, seed) for seed in (0, 1, 2)]
    got = ensemble(runs, questions)
    assert got.logits.shape == (3, len(questions), 5)
    assert got.metadata == {"method": "ensemble", "samples": 3, "seeds": [0, 1, 2], "format": "text"}
    for run, logits in zip(runs, got.logits):
        assert torch.equal(logits, predict(run, questions).logits[0])
    average = sum(predict(run, questions).probabilities[0] for run in runs) / 3
    torch.testing.assert_close(got.ensemble(), average)


def test_members_that_do_not_fit_are_named(tiny_model, questions):
    model = tiny_model("llama")
    one, two = run_of(model, 0), run_of(model, 1)
    with pytest.raises(ValueError, match="at least two runs, not 1"):
        ensemble([one], questions)
    with pytest.raises(ValueError, match="Runs 0 and 2 have the same weights"):
        ensemble([one, two, run_of(model, 0)], questions)
    other = replace(two, config={**two.config, "format": "letter"})
    with pytest.raises(ValueError, match="different answer formats"):
        ensemble([one, other], questions)
    assert ensemble([one, other], questions, format="letter").metadata["format"] == "letter"


# -------------------------------------------------------------------------------------------------------- temperature


def predictions(count=300, choices=4, samples=1, sharpen=3.0, seed=0):
    """Logits that are right on average once divided by ``sharpen``; the last choice is absent in every third row."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, choices, generator=generator)
    logits[::3, -1] = -torch.inf
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
    noise = 0.5 * torch.randn(samples, count, choices, generator=generator) if samples > 1 else 0
    return Predictions(sharpen * (logits + noise).view(samples, count, choices), labels, {"samples": samples})


def nll(predictions, t):
    """Written out with numpy: −mean log softmax(log p̄ / T)_y."""
    logits = predictions.logits.double().numpy()
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    with np.errstate(divide="ignore"):
        scaled = np.log((probs / probs.sum(-1, keepdims=True)).mean(0)) / t
    scaled -= scaled.max(-1, keepdims=True)
    log_p = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
    return -log_p[np.arange(len(log_p)), predictions.labels.numpy()].mean()


@pytest.mark.parametrize("samples", [1, 5])
@pytest.mark.parametrize("sharpen", [0.3, 1.0, 4.0])
def test_it_finds_the_minimum_of_a_fine_grid(samples, sharpen):
    validation, test = predictions(samples=samples, sharpen=sharpen), predictions(samples=samples, seed=1)
    scaled, t = temperature(validation, test)
    grid = np.exp(np.linspace(-3, 3, 601))
    best = grid[np.argmin([nll(validation, u) for u in grid])]
    assert math.log(t) == pytest.approx(math.log(best), abs=0.006)  # half a step of the grid
    assert nll(validation, t) <= nll(validation, best) + 1e-12
    assert scaled.logits.shape == (1, 300, 4)
    assert scaled.metadata == {"samples": samples, "temperature": t, "fitted_on": 300}
    assert score(scaled, intervals=False)["nll"] == pytest.approx(nll(test, t), rel=1e-5)


def test_it_undoes_overconfidence_and_keeps_the_answers():
    validation, test = predictions(count=4000), predictions(count=4000, seed=1)
    scaled, t = temperature(validation, test)
    assert t == pytest.approx(3.0, rel=0.1)  # they were made three times too sharp
    assert torch.equal(scaled.ensemble().argmax(-1), test.ensemble().argmax(-1))
    assert torch.equal(scaled.ensemble() == 0, test.ensemble() == 0)  # absent choices
    was, now = score(test, intervals=False), score(scaled, intervals=False)
    assert now["acc"] == was["acc"] and now["nll"] < 0.9 * was["nll"] and now["ece"] < was["ece"] / 2
    again, one = temperature(validation, validation)
    assert temperature(again, again)[1] == pytest.approx(1.0, abs=1e-4) and one == t


def test_extremes_stay_finite():
    right = Predictions(torch.tensor([[[200.0, -200.0], [-200.0, 200.0]]]), torch.tensor([0, 1]))
    wrong = replace(right, labels=torch.tensor([1, 0]))
    scaled, t = temperature(right, right)  # any small T will do
    assert 0.02 <= t < 1 and nll(scaled, 1.0) < 1e-12
    scaled, t = temperature(wrong, wrong)
    assert t == pytest.approx(50.0) and scaled.logits.isfinite().all()
    mixed = Predictions(torch.tensor([[[200.0, -200.0]] * 4]), torch.tensor([0, 0, 0, 1]))
    assert temperature(mixed, mixed)[0].ensemble()[0, 0] > 0.75  # T at its bound, 50, where 3 of 4 would need 364
    assert temperature(replace(mixed, logits=mixed.logits / 20), mixed)[1] == pytest.approx(20 / math.log(3), rel=1e-4)
    absent = Predictions(torch.tensor([[[0.0, -torch.inf]]]), torch.tensor([1]))
    with pytest.raises(ValueError, match="does not have"):
        temperature(absent, absent)


# ------------------------------------------------------------------------------------------------------------- package


def test_predict_and_sweep_take_anything_that_draws(tiny_model, questions):
    model = tiny_model("llama")

    class Two:
        """Two points; knows nothing of this package."""

        points = (weights_of(model, 0), weights_of(model, 1))
        mean = points[0]

        def sample(self, seed, tau=1.0):
            return self.points[seed % 2 if tau else 0]

        @contextmanager
        def applied(self, model, seed=None, tau=1.0):
            with applied_weights(model, self.mean if seed is None else self.sample(seed, tau)):
                yield

    draws = predict(model, questions, samples=2, posterior=Two())
    for logits, point in zip(draws.logits, Two.points):
        with applied_weights(model, point):
            torch.testing.assert_close(logits, predict(model, questions).logits[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(predict(model, questions, posterior=Two()).logits[0], draws.logits[0], atol=1e-4, rtol=0)
    assert torch.equal(tau_sweep(model, questions, posterior=Two(), taus=(1.0,), samples=2).logits[0], draws.logits)


def test_methods_are_one_list_that_names_titles_and_describes_them():
    rows = "adamw adamw@early mc_dropout laplace_kfac laplace_diag laplace_kfac_validation"
    rows += " laplace_diag_validation temperature@laplace_kfac swa swag temperature ensemble tfb"
    rows += " blob@mean blob tfb@blob scalabl pac_tuning gift_sw"
    rows += " ivon@mean temperature@ivon ivon ivon@linearized tfb@ivon"
    assert list(METHODS) == rows.split()
    for name, method in METHODS.items():
        assert method.name == name and method.title and len(method.about) > 20
        assert (method.stands_on is None) == (name in ("adamw", "ivon", "blob", "scalabl", "pac_tuning", "gift_sw"))
