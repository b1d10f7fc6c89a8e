"""Posteriors for adapters that were trained elsewhere, with any loss."""

from __future__ import annotations

import pytest
import torch

from ivon_lora_lite import answer_logits, answer_loss, collate, fit_posterior, load_task, predict, trainable
from ivon_lora_lite.posterior import read_weights


@pytest.fixture
def model(tiny_model):
    return tiny_model(trained=True)


@pytest.fixture
def batches(model):
    questions = load_task("everyday@1").train[:4]
    return [collate([q], model.tokenizer) for q in questions]


def loss(model, batch):
    return answer_loss(answer_logits(model, batch), batch["answers"])


def test_the_empirical_fisher_by_hand(model, batches):
    q = fit_posterior(model, loss, batches, "laplace_diag", precision=2.0)
    h = {name: torch.zeros_like(p) for name, p in trainable(model).items()}
    for batch in batches:
        grads = torch.autograd.grad(loss(model, batch), trainable(model).values())
        for name, g in zip(h, grads):
            h[name] += g.square()
    for name, v in q.variance.items():
        torch.testing.assert_close(v, 1 / (h[name] + 2.0))
    free = fit_posterior(model, loss, batches, "laplace_diag")
    assert free.metadata["prior_precision"] > 0


def test_tfb_keeps_the_product_and_the_tolerance(model, batches):
    before = {name: p.clone() for name, p in trainable(model).items()}
    model.train()
    found = [fit_posterior(model, loss, batches, "tfb", tolerance=t).metadata["sigma_q"] for t in (0.003, 0.1)]
    assert found[0] < found[1] and model.training
    assert all(torch.equal(p, before[name]) for name, p in trainable(model).items())
    q = fit_posterior(model, loss, batches, "tfb", tolerance=0.1)
    questions = load_task("everyday@1").test[:4]
    at_mean = predict(model, questions).logits
    torch.testing.assert_close(predict(model, questions, posterior=q).logits, at_mean, atol=1e-4, rtol=1e-4)
    assert predict(model, questions, posterior=q, samples=3).logits.std(0).max() > 0


def test_one_size_costs_the_target(model, batches):
    q = fit_posterior(model, loss, batches, "isotropic", target=0.02)
    assert q.metadata["cost"] == pytest.approx(0.02, rel=0.2)
    assert len({float(v.flatten()[0]) for v in q.variance.values()}) == 1
    assert {name: m.shape for name, m in q.mean.items()} == {n: w.shape for n, w in read_weights(model).items()}


def test_what_cannot_be_fitted_is_refused(model, batches):
    with pytest.raises(ValueError, match="no method 'kfac'"):
        fit_posterior(model, loss, batches, "kfac")
    with pytest.raises(ValueError, match="no batches"):
        fit_posterior(model, loss, [])
    with pytest.raises(ValueError, match="The loss is nan"):
        fit_posterior(model, lambda m, b: loss(m, b) * float("nan"), batches)
