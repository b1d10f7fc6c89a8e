"""The memory-perturbation equation against autograd, and against training again without an example."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ivon_lora_lite import (
    Linearized,
    answer_logits,
    answer_loss,
    choose_tau,
    collate,
    finetune,
    influence,
    leave_one_out,
    linearized,
    load_task,
    sensitivity,
    trainable,
)
from ivon_lora_lite.applications import memory_perturbation
from ivon_lora_lite.posterior import applied_weights

SHORT = {"steps": 4, "train_size": 6, "progress": False, "eval_every": 0, "beta2": 0.9}


def test_it_predicts_what_leaving_one_out_does_in_ridge_regression():
    """Quadratic losses, with the exact h: Δℓ_i is right to first order in 1/N, so the ranking is right too."""
    generator = torch.Generator().manual_seed(0)
    n, d, delta = 60, 4, 0.5
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    x = torch.linalg.qr(x)[0] * n**0.5  # orthogonal columns: the Hessian is diagonal, as IVON's is
    y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0]).double() + 0.3 * torch.randn(
        n, generator=generator, dtype=torch.float64
    )
    y[7] += 6.0  # an outlier

    def fitted(keep):
        a, b = x[keep], y[keep]
        return torch.linalg.solve(a.T @ a / n + delta * torch.eye(d), a.T @ b / n)  # of 1/N Σ ½ r² + ½ δ w²

    m, h = fitted(torch.arange(n)), (x.square().mean(0))
    residual = x @ m - y
    ess = 123.0
    gradients = {"w": residual[:, None] * x}
    found = memory_perturbation(gradients, {"w": 1 / (ess * (h + delta))}, ess, n)
    exact = torch.empty(n)
    for i in range(n):
        keep = torch.arange(n) != i
        exact[i] = 0.5 * (x[i] @ fitted(keep) - y[i]).square() - 0.5 * residual[i].square()
    assert torch.corrcoef(torch.stack([found, exact]))[0, 1] > 0.98
    assert int(found.argmax()) == 7 == int(exact.argmax())
    assert float(found.sum() / exact.sum()) == pytest.approx(1.0, abs=0.15)


@pytest.fixture
def run(tiny_model):
    return finetune(tiny_model(trained=True), load_task("everyday@1"), **SHORT)


def gradients_of(run, questions):
    out = []
    with applied_weights(run.model, run.posterior.mean):
        for q in questions:
            loss = answer_loss(answer_logits(run.model, collate([q], run.model.tokenizer)), torch.tensor([q.answer]))
            grads = torch.autograd.grad(loss, trainable(run.model).values())
            out.append((float(loss), dict(zip(trainable(run.model), grads))))
    return out


def test_gradients_are_those_of_autograd(run):
    questions = load_task("everyday@1").train[:6]
    found = sensitivity(run, questions)
    ess, v = run.posterior.metadata["ess"], run.posterior.variance
    for i, (loss, grads) in enumerate(gradients_of(run, questions)):
        assert float(found.loss[i]) == pytest.approx(loss, rel=1e-4)
        expected = ess / 6 * sum(float((v[name] * g.square()).sum()) for name, g in grads.items())
        assert float(found.change[i]) == pytest.approx(expected, rel=1e-3)
    assert found.leave_one_out == pytest.approx(float((found.loss + found.change).mean()))
    some = sensitivity(run, questions[2:4])  # of a part N stays that of the training
    torch.testing.assert_close(some.change, found.change[2:4], atol=1e-6, rtol=1e-3)
    part, whole = (leave_one_out(run, linearized(run, qs)).mean for qs in (questions[2:4], questions))
    torch.testing.assert_close(part, whole[2:4], atol=1e-4, rtol=1e-3)


def test_influence_is_symmetric_and_its_diagonal_is_the_sensitivity(run):
    task = load_task("everyday@1")
    own = influence(run, task.train[:6], task.train[:6])
    torch.testing.assert_close(own, own.T, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(own.diag(), sensitivity(run, task.train[:6]).change, atol=1e-6, rtol=1e-3)
    (_, train), (_, test) = gradients_of(run, [task.train[1], task.test[0]])
    ess, v = run.posterior.metadata["ess"], run.posterior.variance
    expected = ess / 6 * sum(float((train[n] * v[n] * test[n]).sum()) for n in v)
    assert float(influence(run, task.train[:6], task.test[:2])[1, 0]) == pytest.approx(expected, rel=1e-3)


def test_nothing_of_it_depends_on_tau(run):
    questions = load_task("everyday@1").train[:3]
    scaled = replace(run, posterior=run.posterior.scale(0.25))
    torch.testing.assert_close(sensitivity(scaled, questions).change, sensitivity(run, questions).change)
    torch.testing.assert_close(influence(scaled, questions, questions), influence(run, questions, questions))
    left_out = leave_one_out(scaled, linearized(scaled, questions)).mean
    torch.testing.assert_close(left_out, leave_one_out(run, linearized(run, questions)).mean)


def test_left_out_logits_have_the_same_first_order_change(run):
    """r · Δf_i is Δℓ_i of the memory-perturbation equation, by another way to the same gradients."""
    questions = load_task("everyday@1").train[:6]
    line = linearized(run, questions)
    left_out = leave_one_out(run, line)
    residual = line.mean.softmax(-1) - torch.nn.functional.one_hot(line.labels, 4)
    change = (residual * (left_out.mean - line.mean)).sum(-1)
    torch.testing.assert_close(change, sensitivity(run, questions).change, atol=1e-6, rtol=2e-3)
    assert (left_out.mean - line.mean).abs().max() > 1e-6
    chosen, said = choose_tau(left_out)
    assert chosen >= 0 and "on 6 left-out training questions" in said


def test_left_out_logits_are_those_of_a_fit_without_the_example():
    """Multinomial logistic regression on a Gaussian prior: against n fits, each without one example."""
    generator = torch.Generator().manual_seed(0)
    n, d, c, delta = 40, 3, 3, 0.05
    x = torch.linalg.qr(torch.randn(n, d, generator=generator).double())[0] * n**0.5
    labels = torch.randint(c, (n,), generator=generator)

    def fitted(keep):
        w = torch.zeros(c, d, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([w], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(x[keep] @ w.T, labels[keep], reduction="sum") / n
            loss = loss + 0.5 * delta * w.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return w.detach()

    w, ess = fitted(torch.arange(n)), 50.0
    p = (x @ w.T).softmax(-1)
    h = torch.einsum("nc,nd->cd", p * (1 - p), x.square()) / n  # the diagonal of the Hessian
    v = 1 / (ess * (h + delta))
    covariance = torch.diag_embed(torch.einsum("cd,nd->nc", v, x.square()))  # J diag(v) Jᵀ: one row of w per logit
    line = Linearized((x @ w.T).float(), covariance.float(), labels)
    gaussian = SimpleNamespace(variance={"w": v}, metadata={"ess": ess})
    found = leave_one_out(SimpleNamespace(posterior=gaussian, config={"train_size": n}), line)
    exact = torch.stack([fitted(torch.arange(n) != i) @ x[i] for i in range(n)])
    moved, expected = found.mean.double() - x @ w.T, exact - x @ w.T
    assert torch.corrcoef(torch.stack([moved.flatten(), expected.flatten()]))[0, 1] > 0.95
    assert float(moved.norm() / expected.norm()) == pytest.approx(1.0, abs=0.25)


def test_a_point_has_no_sensitivity(tiny_model):
    task = load_task("everyday@1")
    run = finetune(tiny_model(), task, optimizer="adamw", steps=1, train_size=4, progress=False, eval_every=0)
    with pytest.raises(ValueError, match="needs an IVON run"):
        sensitivity(run, task.train[:4])
