"""The optimizers that notebook 02 builds, against the library, torch and closed forms, in double precision."""

import math

import pytest
import torch
from cells import defined_in
from torch import nn

from ivon_lora_lite import IVON

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(64, 6, generator=GENERATOR, dtype=torch.float64)
Y = torch.randn(64, 4, generator=GENERATOR, dtype=torch.float64)
START = torch.randn(4, 6, generator=GENERATOR, dtype=torch.float64)


@pytest.fixture(scope="module")
def shown():
    return defined_in("02_ivon.ipynb", "adamw_step", "ivon_step", "new_hess", torch=torch, math=math)


def least_squares(w):
    return (X @ w.T - Y).square().mean()


def quartic(w):  # curvature that changes, and is negative around 0
    return (w.pow(4) / 4 - w.square() / 2).sum() / 10 + torch.sin(2 * w).mean()


def gradient(loss):
    return lambda w: torch.func.grad(loss)(w)


@pytest.mark.parametrize("loss", [least_squares, quartic])
@pytest.mark.parametrize("decay", [0.0, 0.02])
@pytest.mark.parametrize("clip", [math.inf, 0.2])
def test_ivon_is_the_librarys_over_300_steps_with_the_same_noise(shown, loss, decay, clip):
    options = {"lr": 0.03, "ess": 200.0, "beta1": 0.9, "beta2": 0.98}
    w = nn.Parameter(START.clone())
    optimizer = IVON(
        [w],
        hess_init=0.3,
        weight_decay=decay,
        clip_radius=clip,
        rescale_lr=False,
        hess_approx="price",
        seed=1,
        **options,
    )
    m, g, h = START, torch.zeros_like(START), torch.full_like(START, 0.3)
    clipped = False
    for t in range(1, 301):
        sigma = optimizer.variance(w).sqrt()
        with optimizer.sampled_params(train=True):
            noise = (w.detach() - m) / sigma
            loss(w).backward()
        optimizer.step()
        optimizer.zero_grad()
        before = m
        m, g, h = shown["ivon_step"](m, g, h, t, gradient(loss), noise, decay=decay, clip=clip, **options)
        clipped |= bool(((m - before).abs() > 0.999 * 0.03 * clip).any())
        torch.testing.assert_close(m, w.detach(), rtol=0, atol=1e-9)
        torch.testing.assert_close(1 / (200.0 * (h + decay)), optimizer.variance(w), rtol=1e-7, atol=0)
    assert clipped == math.isfinite(clip)  # the clip was really tested
    assert noise.std() == pytest.approx(1, abs=0.5)  # and so was the noise
    assert (m - START).abs().max() > 0.1


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_is_torchs(shown, decay):
    w = nn.Parameter(START.clone())
    optimizer = torch.optim.AdamW([w], lr=0.01, betas=(0.9, 0.95), weight_decay=decay)
    m, g, h = START, torch.zeros_like(START), torch.zeros_like(START)
    for t in range(1, 301):
        w.grad = gradient(quartic)(w.detach())
        optimizer.step()
        m, g, h = shown["adamw_step"](m, g, h, t, gradient(quartic), lr=0.01, beta1=0.9, beta2=0.95, decay=decay)
    torch.testing.assert_close(m, w.detach(), rtol=0, atol=1e-7)  # rounding grows where √h is near 0


def test_the_correction_of_section_3_is_the_one_in_the_step(shown):
    h = torch.rand(4, 6, dtype=torch.float64) + 0.1
    noise = torch.randn(4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    options = {"lr": 0.1, "ess": 5.0, "beta1": 0.9, "beta2": 0.7}
    sigma = 1 / (5.0 * (h + 0.01)).sqrt()
    estimate = gradient(quartic)(START + sigma * noise) * noise / sigma
    _, _, stepped = shown["ivon_step"](
        START, torch.zeros_like(h), h, 1, gradient(quartic), noise, decay=0.01, **options
    )
    torch.testing.assert_close(shown["new_hess"](h, estimate, 0.01, 0.7), stepped)
    plain = shown["new_hess"](h, estimate, 0.01, 0.7, corrected=False)
    torch.testing.assert_close(plain, 0.7 * h + 0.3 * estimate)
    assert (stepped > plain).all()


def test_ivon_finds_the_exact_posterior_of_orthogonal_regression(shown):
    """XᵀX = N·diag(a): the exact posterior is diagonal, with variances 1/(N (a + δ))."""
    n, delta = 100, 0.02
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    a, target = scale.square(), torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    exact_mean, exact_variance = a * target / (a + delta), 1 / (n * (a + delta))
    generator, copies, steps = torch.Generator().manual_seed(3), 64, 6000  # copies: so that the average is precise
    m, g, h = (torch.full((copies, 3), value, dtype=torch.float64) for value in (0.0, 0.0, 0.3))
    for t in range(1, steps + 1):
        noise = torch.randn(copies, 3, generator=generator, dtype=torch.float64)
        m, g, h = shown["ivon_step"](
            m, g, h, t, lambda w: a * (w - target), noise,
            lr=0.05 * (1 - (t - 1) / steps), ess=n, beta1=0.9, beta2=0.999, decay=delta,
        )  # fmt: skip
    assert ((m.mean(0) - exact_mean).abs() < 0.05 * exact_variance.sqrt()).all()
    torch.testing.assert_close((1 / (n * (h + delta))).mean(0), exact_variance, rtol=0.02, atol=0)
