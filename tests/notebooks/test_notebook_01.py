"""What notebook 01 defines, against closed forms, torch and the library."""

import math

import numpy as np
import pytest
import torch
from cells import defined_in

from ivon_lora_lite import GaussianPosterior

POINTS, MASSES = np.polynomial.hermite_e.hermegauss(100)


@pytest.fixture(scope="module")
def shown():
    """The notebook's functions, in double precision as there."""
    torch.set_default_dtype(torch.float64)
    yield defined_in(
        "01_objective.ipynb", "expectation", "kl_diagonal", "objective", "best_gaussian", "exact_posterior",
        torch=torch, math=math, NODES=torch.tensor(POINTS), WEIGHTS=torch.tensor(MASSES / MASSES.sum()),
        line=torch.linspace(-12, 12, 24_001),
    )  # fmt: skip
    torch.set_default_dtype(torch.float32)


def gaussians(seed, size=50):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(size, generator=generator)
    return mean, torch.rand(size, generator=generator) * 3 + 0.01


@pytest.mark.parametrize("seed", range(3))
def test_kl_between_diagonal_gaussians_is_torchs(shown, seed):
    (m, v), (m0, v0) = gaussians(seed), gaussians(seed + 10)
    Normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(Normal(m, v.sqrt()), Normal(m0, v0.sqrt())).sum()
    torch.testing.assert_close(shown["kl_diagonal"](m, v, m0, v0), expected)


@pytest.mark.parametrize("prior_variance", [0.01, 1.0, 40.0])
def test_kl_to_the_prior_is_the_librarys(shown, prior_variance):
    m, v = gaussians(3)
    expected = GaussianPosterior({"a": m[:20], "b": m[20:]}, {"a": v[:20], "b": v[20:]}).kl(prior_variance)
    ours = shown["kl_diagonal"](m, v, torch.zeros(50), torch.full((50,), prior_variance))
    assert float(ours) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "f, closed",
    [
        (lambda t: t**4, lambda m, s: m**4 + 6 * m**2 * s**2 + 3 * s**4),
        (torch.exp, lambda m, s: torch.exp(m + s**2 / 2)),
        (torch.cos, lambda m, s: torch.cos(m) * torch.exp(-(s**2) / 2)),
    ],
)
def test_expectations_have_their_closed_form(shown, f, closed):
    m, s = torch.meshgrid(torch.linspace(-2, 2, 5), torch.linspace(0.1, 1.5, 4), indexing="ij")
    torch.testing.assert_close(shown["expectation"](f, m, s), closed(m, s))


@pytest.mark.parametrize("lam, prior_variance, h", [(5.0, 1.0, 0.3), (100.0, 9.0, 4.0), (20.0, 0.1, 1.0)])
def test_the_best_gaussian_of_a_quadratic_loss_is_the_exact_posterior(shown, lam, prior_variance, h):
    def loss(theta):
        return h / 2 * (theta - 2).square()

    m, sigma = shown["best_gaussian"](
        lambda m, s: lam * shown["objective"](loss, m, s, lam, prior_variance), 1.0, 1.0 / math.sqrt(lam)
    )
    delta = 1 / (lam * prior_variance)
    assert float(m) == pytest.approx(2 * h / (h + delta), rel=1e-5)
    assert float(sigma) ** 2 == pytest.approx(1 / (lam * (h + delta)), rel=1e-5)
    # and λ times the objective is −log Z there, because the distance to the posterior is 0
    _, log_z = shown["exact_posterior"](loss, lam, prior_variance)
    assert lam * float(shown["objective"](loss, m, sigma, lam, prior_variance)) == pytest.approx(
        -float(log_z), abs=1e-6
    )
