"""The corrected mean against quadrature on one weight, and its gradients against their definition on a small model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ivon_lora_lite import Linearized, correct_mean, finetune, laplace, linearized, linearized_laplace, load_task
from ivon_lora_lite.applications import correction

X = torch.tensor([3.0, 3.0, -0.5, 2.0, 1.0])  # five examples of the class whose logit is x·w: w wants to be large
P = 0.3  # prior precision: what holds w back, on one side only, so the posterior is skewed
NODES, MASSES = np.polynomial.hermite_e.hermegauss(81)


def loss(w):
    """Σ_n ℓ_n + p/2 w², at weights of any shape."""
    w = np.asarray(w, dtype=float)
    return np.logaddexp(0, -w[..., None] * X.numpy()).sum(-1) + P / 2 * w**2


@pytest.fixture(scope="module")
def one_weight():
    """Mode, Laplace's σ, and the Gaussian over two logits (0, x·w) of every example."""
    grid = np.linspace(-2, 8, 100_001)
    mode = grid[loss(grid).argmin()]
    slope = 1 / (1 + np.exp(-mode * X.numpy()))
    sigma = float((slope * (1 - slope) * X.numpy() ** 2).sum() + P) ** -0.5
    mean, covariance = torch.zeros(len(X), 2), torch.zeros(len(X), 2, 2)
    mean[:, 1], covariance[:, 1, 1] = X * mode, (X * sigma) ** 2
    return mode, sigma, Linearized(mean, covariance, torch.ones(len(X), dtype=torch.long))


def expected(w, sigma):
    """E_{N(w, σ²)}[Σ ℓ] + p/2 w², by Gauss-Hermite quadrature."""
    values = loss(w + sigma * NODES)
    return float((MASSES * (values - P / 2 * (w + sigma * NODES) ** 2)).sum() / MASSES.sum() + P / 2 * w**2)


def test_on_one_weight_it_is_the_minimum_of_the_objective_and_nearer_to_the_posteriors_mean(one_weight):
    mode, sigma, line = one_weight
    along = torch.stack([torch.zeros(len(X)), -2 * X], -1)[..., None]  # the direction d = −2
    vectors = [{"w": torch.tensor([mode])}, {"w": torch.tensor([-2.0])}]
    steps = correction.best_steps(line, along, P, vectors)
    corrected = mode - 2 * float(steps)
    grid = np.linspace(mode - 1, mode + 2, 3001)
    best = grid[np.argmin([expected(w, sigma) for w in grid])]
    assert abs(best - mode) > 0.1  # there is something to correct
    assert corrected == pytest.approx(best, abs=0.02)
    assert correction.objective(line, along, steps, P, vectors) == pytest.approx(expected(best, sigma), abs=0.01)
    wide = np.linspace(-5, 25, 30_001)
    density = np.exp(-(loss(wide) - loss(mode)))
    exact = (wide * density).sum() / density.sum()
    assert abs(corrected - exact) < 0.6 * abs(mode - exact)


@pytest.fixture(scope="module")
def questions():
    return load_task("everyday").train[:6]


@pytest.fixture(scope="module", params=["diag", "kfac"])
def run(request, tiny_model, questions):
    made = finetune(tiny_model(), questions, optimizer="adamw", steps=4, progress=False, eval_every=0)
    return laplace(made, questions, request.param)


def test_pulling_back_is_the_transpose_of_pushing_forward(run, questions):
    generator = torch.Generator().manual_seed(1)
    direction = {name: torch.randn(m.shape, generator=generator) for name, m in run.weights.items()}
    residual = torch.randn(len(questions), 4, generator=generator)
    options = {"format": run.config["format"], "batch_size": 4}
    pushed = correction.push_forward(run, questions, direction, options)
    pulled = correction.pull_back(run, questions, residual, options)
    assert pushed.abs().max() > 1e-3
    back = sum(float((pulled[name].double() * d).sum()) for name, d in direction.items())
    assert float((pushed.double() * residual).sum()) == pytest.approx(back, rel=1e-4)


def test_each_direction_lowers_the_objective_until_none_of_them_slopes(run, questions):
    moved = correct_mean(run, questions, rank=3, batch_size=4)
    values = moved.posterior.metadata["correction"]
    assert len(values) == 4 and values[1] < values[0] - 1e-4
    assert all(b <= a + 1e-6 for a, b in zip(values, values[1:]))
    # the gradient where it ends, taken at θ* of the linearised model, is orthogonal to the way that it went
    shift = {name: moved.weights[name] - m for name, m in run.weights.items()}
    options = {"format": run.config["format"], "batch_size": 4}
    line = linearized(run, questions)
    along = correction.push_forward(run, questions, shift, options)[..., None]
    one = torch.ones(1)
    slope = correction.pull_back(run, questions, correction.expected_residual(line, along, one), options)
    p = run.posterior.metadata["prior_precision"]
    slope = {name: slope[name] + p * shift[name] for name in slope}
    size = sum(float(g.square().sum()) for g in slope.values()) ** 0.5
    length = sum(float(d.square().sum()) for d in shift.values()) ** 0.5
    assert length > 1e-4
    assert abs(sum(float((slope[name] * shift[name]).sum()) for name in shift)) < 0.02 * size * length
    vectors = [{name: torch.zeros_like(m) for name, m in shift.items()}, shift]
    assert correction.objective(line, along, one, p, vectors) == pytest.approx(values[-1], rel=1e-5)


def test_the_covariance_stays_and_the_run_can_be_saved_and_asked(run, questions, tmp_path):
    moved = correct_mean(run, questions, rank=1)
    for name, v in run.posterior.variance.items():
        torch.testing.assert_close(moved.posterior.variance[name], v)
        assert torch.equal(moved.weights[name], moved.posterior.mean[name])
    assert moved.config["method"] == run.config["method"] + "_corrected"
    moved.save(tmp_path / "run")
    again = type(moved.posterior).load(tmp_path / "run")
    assert again.metadata["correction"] == moved.posterior.metadata["correction"]
    assert linearized_laplace(moved, questions).probabilities().shape == (len(questions), 4)


def test_it_refuses_what_it_cannot_correct(run, questions, tiny_model):
    with pytest.raises(ValueError, match="rank is 0"):
        correct_mean(run, questions, rank=0)
    plain = finetune(tiny_model(), questions, optimizer="adamw", steps=1, progress=False, eval_every=0)
    with pytest.raises(ValueError, match="needs a run from laplace"):
        correct_mean(plain, questions)
