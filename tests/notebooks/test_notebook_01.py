"""What notebook 01 defines, against closed forms, torch and the library."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from cells import NOTEBOOKS, defined_in

from ivon_lora_lite import GaussianPosterior
from ivon_lora_lite.plots import bell, objective_figure, rounded

RUNS = Path(__file__).parents[2] / "data" / "runs" / "passes"
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


def bowl_and_hole(theta):
    return (theta - 1).square() / 4 - 1.15 * torch.exp(-(theta + 1).square() / (2 * 0.3**2)) + 0.2


def test_its_loss_is_the_one_that_the_tests_use(shown):
    theta = torch.linspace(-3, 4, 100)
    found = defined_in("01_objective.ipynb", "bowl_and_hole", torch=torch)["bowl_and_hole"](theta)
    torch.testing.assert_close(found, bowl_and_hole(theta))


def test_noise_fills_the_hole_and_hardly_lifts_the_bowl(shown):
    m, sigma = torch.tensor([-0.92, 1.0]), torch.tensor([0.5, 0.5])
    hole, bowl = (shown["expectation"](bowl_and_hole, m, sigma) - bowl_and_hole(m)).tolist()
    assert hole > 0.5 and bowl < 0.1
    # Gaussian noise turns a Gaussian hole into a wider, shallower one
    wide = 0.3**2 + sigma**2
    closed = (
        ((m - 1) ** 2 + sigma**2) / 4 + 0.2 - 1.15 * (0.3**2 / wide).sqrt() * torch.exp(-((m + 1) ** 2) / (2 * wide))
    )
    torch.testing.assert_close(shown["expectation"](bowl_and_hole, m, sigma), closed)


@pytest.mark.parametrize("lam, better", [(4.0, "bowl"), (6.0, "bowl"), (12.0, "hole"), (16.0, "hole"), (60.0, "hole")])
def test_the_better_place_is_the_one_that_the_rule_says(shown, lam, better):
    starts = {"hole": (-1.0, 0.1), "bowl": (1.0, 0.4)}
    found = {}
    for place, start in starts.items():
        m, sigma = shown["best_gaussian"](lambda m, s: lam * shown["objective"](bowl_and_hole, m, s, lam, 9.0), *start)
        assert (m < -0.4) == (place == "hole")  # it stays where it started
        found[place] = float(shown["objective"](bowl_and_hole, m, sigma, lam, 9.0))
    assert min(found, key=found.get) == better


def test_the_sliders_move_the_bars_and_the_note(shown):
    go, widgets = pytest.importorskip("plotly.graph_objects"), pytest.importorskip("ipywidgets")
    pytest.importorskip("anywidget")
    cells = json.loads((NOTEBOOKS / "01_objective.ipynb").read_text("utf8"))["cells"]
    (code,) = (text for c in cells if "m_slider =" in (text := "".join(c["source"])))
    given = {"objective_figure": objective_figure, "bell": bell, "rounded": rounded, "bowl_and_hole": bowl_and_hole}
    exec(code, space := shown | given | {"go": go, "widgets": widgets, "near": torch.linspace(-2.2, 3.2, 181), "V0": 9.0})
    for lam in (4, 60):
        for m, sigma in ((-0.9, 0.1), (0.9, 0.5)):
            space["l_slider"].value, space["m_slider"].value, space["s_slider"].value = lam, m, sigma
            loss, price, total = space["view"].data[2].y
            expected = shown["objective"](bowl_and_hole, torch.tensor(m), torch.tensor(sigma), lam, 9.0)
            assert total == pytest.approx(float(expected), abs=1e-3) == pytest.approx(loss + price, abs=1e-3)
            assert f"<b>{expected:.3f}</b>" in space["note"].value
            assert max(space["view"].data[1].y) == pytest.approx(1 / (sigma * math.sqrt(2 * math.pi)), rel=0.01)


def test_lambda_times_the_objective_is_the_distance_to_the_posterior_up_to_a_constant(shown):
    line = torch.linspace(-12, 12, 24_001)
    density, log_z = shown["exact_posterior"](bowl_and_hole, 4.0, 9.0)
    for m, sigma in ((-0.9, 0.2), (0.7, 0.9)):
        log_q = -((line - m) / sigma).square() / 2 - math.log(sigma * math.sqrt(2 * math.pi))
        q = log_q.exp()
        distance = (q * (log_q - density.clamp(min=1e-300).log())).sum() * (line[1] - line[0])
        value = 4 * shown["objective"](bowl_and_hole, torch.tensor(m), torch.tensor(sigma), 4.0, 9.0)
        assert float(value) == pytest.approx(float(distance - log_z), abs=1e-5)


def test_bonnet_and_price(shown):
    m, v = torch.tensor(-0.4, requires_grad=True), torch.tensor(0.3, requires_grad=True)
    by_m, by_v = torch.autograd.grad(shown["expectation"](bowl_and_hole, m, v.sqrt()), (m, v))
    slope = torch.func.vmap(torch.func.vmap(torch.func.grad(bowl_and_hole)))
    curvature = torch.func.vmap(torch.func.vmap(torch.func.grad(torch.func.grad(bowl_and_hole))))
    m, v = m.detach()[None], v.detach()[None]
    torch.testing.assert_close(by_m, shown["expectation"](slope, m, v.sqrt())[0])
    torch.testing.assert_close(by_v, shown["expectation"](curvature, m, v.sqrt())[0] / 2)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_the_best_diagonal_gaussian_has_one_over_the_diagonal_of_the_precision(rho):
    covariances = defined_in("01_objective.ipynb", "covariances", torch=torch)["covariances"]
    exact, diagonal = covariances(rho)
    precision, v = torch.linalg.inv(exact), diagonal.diagonal().clone().requires_grad_()
    # KL[q ‖ p] between Gaussians of the same mean, up to a constant; its gradient is 0 at the best v
    (slope,) = torch.autograd.grad((precision.diagonal() * v - v.log()).sum() / 2, v)
    torch.testing.assert_close(slope, torch.zeros(2), atol=1e-4, rtol=0)
    assert float(diagonal[0, 0] / exact[0, 0]) == pytest.approx(1 - rho**2, abs=0.002)


def test_what_flatness_is_worth_to_the_recorded_model():
    """460,800 weights of rank 8 on q and v in 30 layers; half the curvature everywhere is worth P log 2 / 2λ."""
    weights = 30 * (8 * (576 + 576) + 8 * (576 + 192))
    settings = json.loads((RUNS / "20-passes/everyday@2/ivon/seed21/metrics.json").read_text("utf8"))["settings"]
    text = (NOTEBOOKS / "01_objective.ipynb").read_text("utf8")
    assert f"{weights:,}" in text and round(settings["ess"], -5) == 200_000
    assert round(weights / (2 * 200_000) * math.log(2), 1) == 0.8
