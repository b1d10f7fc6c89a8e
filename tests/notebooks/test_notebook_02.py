"""The optimizers that notebook 02 builds, against the library, torch and closed forms, in double precision."""

import json
import math
from pathlib import Path

import pytest
import torch
from cells import NOTEBOOKS, defined_in
from numpy.polynomial.hermite_e import hermegauss
from torch import nn

from ivon_lora_lite import IVON

RUNS = Path(__file__).parents[2] / "data" / "runs"
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


@pytest.fixture(scope="module")
def coin():
    """What section 2 races: the objective and both steps, with exact expectations in double precision."""
    torch.set_default_dtype(torch.float64)
    nodes, weights = map(torch.tensor, hermegauss(60))
    yield defined_in(
        "02_ivon.ipynb", "expectation", "derivatives", "coin", "coin_objective", "natural_step", "gradient_step",
        torch=torch, math=math, NODES=nodes, WEIGHTS=weights / weights.sum(),
    )  # fmt: skip
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("lam", [8.0, 80.0, 800.0])
def test_both_steps_have_the_same_resting_place(coin, lam):
    q = torch.tensor([1.7]), torch.tensor([0.4])
    for _ in range(100):
        q = coin["natural_step"](*q, lam, 0.3)
    moved = coin["gradient_step"](*q, lam, 1.0)
    torch.testing.assert_close(moved[0], q[0], atol=1e-9, rtol=0)
    torch.testing.assert_close(moved[1], q[1], atol=1e-9, rtol=0)


def steps(coin, step, lam, size, limit=300):
    """Of 16 starts, as in the notebook."""
    q = torch.tensor([1.7]), torch.tensor([0.4])
    for _ in range(100):
        q = coin["natural_step"](*q, lam, 0.3)
    lowest = coin["coin_objective"](*q, lam)
    starts = torch.meshgrid(torch.tensor([-2.0, -1, 0.5, 4]), torch.tensor([0.15, 0.4, 0.8, 1.5]), indexing="ij")
    (m, sigma), needed = (grid.flatten() for grid in starts), torch.full((16,), math.inf)
    for count in range(limit + 1):
        needed[(coin["coin_objective"](m, sigma, lam) - lowest < 1e-3 / lam) & needed.isinf()] = count
        if needed.isfinite().all():
            break
        m, sigma = coin[step](m, sigma, lam, size)
    return needed


def test_the_ordinary_gradient_keeps_up_at_a_small_lambda_only(coin):
    assert steps(coin, "gradient_step", 8.0, 4.64).max() < steps(coin, "natural_step", 8.0, 0.5).max()
    for lam in (8.0, 80.0, 800.0):
        assert steps(coin, "natural_step", lam, 0.75).max() <= 10  # one ρ serves every λ
    assert steps(coin, "gradient_step", 800.0, 6.81).max() > 100
    assert steps(coin, "natural_step", 800.0, 1.0).isinf().any()  # a full Newton step overshoots from some starts


def test_on_a_quadratic_loss_one_full_natural_step_is_exact(coin):
    names = dict(coin, coin=lambda t: 3 * (t - 2).square() / 2)
    step = defined_in("02_ivon.ipynb", "natural_step", **names)["natural_step"]
    m, sigma = step(torch.tensor(-7.0), torch.tensor(5.0), 50.0, 1.0)
    delta = 1 / (50 * 4.0)
    assert float(m) == pytest.approx(6 / (3 + delta)) and float(sigma) ** 2 == pytest.approx(1 / (50 * (3 + delta)))


def test_the_correction_is_a_factor_and_keeps_half(shown):
    h, delta, beta2 = torch.tensor(0.7, dtype=torch.float64), 0.1, 0.9
    estimates = torch.linspace(-1e6, 1e6, 100_001, dtype=torch.float64)
    x = (1 - beta2) * (estimates - h) / (h + delta)
    new = shown["new_hess"](h, estimates, delta, beta2) + delta
    torch.testing.assert_close(new, (h + delta) * (1 + x + x.square() / 2))
    assert (new >= 0.5 * (h + delta)).all()


def test_many_copies_end_where_section_7_says():
    torch.set_default_dtype(torch.float64)
    try:
        run = defined_in(
            "02_ivon.ipynb", "derivatives", "bowl_and_hole", "adamw_step", "ivon_step", "race_to_the_bottom",
            torch=torch, math=math, STAMPS=[3000],
        )["race_to_the_bottom"]  # fmt: skip
        in_the_hole = {lam: run(lam)[-1] < -0.35 for lam in (None, 4.0, 16.0)}
        narrow = run(4.0, h0=12.0)[-1] < -0.35
        seeds = [run(16.0, seed=seed)[-1] < -0.35 for seed in (6, 7, 8)]
    finally:
        torch.set_default_dtype(torch.float32)
    starts = torch.linspace(-2, 3, 40)
    assert in_the_hole[None][starts < -0.5].all() and not in_the_hole[None][starts > 0].any()
    assert not in_the_hole[4.0].any()
    assert narrow[starts < -0.5].all() and not narrow[starts > 0].any()  # it depends on how wide q is at the start
    ridge = -0.318
    assert all((~hole[starts < ridge]).any() for hole in seeds)  # some leave it
    assert sum(int(hole[starts > ridge].sum()) for hole in seeds) == 1  # one comes to it, from beside the ridge
    assert in_the_hole[16.0].any() and not in_the_hole[16.0][starts > 0.5].any()


def history(file):
    return [row for row in json.loads(file.read_text("utf8"))["history"] if "ivon_clipped" in row]


def test_what_it_says_of_clipping_and_of_the_variance_is_recorded():
    as_in_the_paper = [history(file)[-1] for file in (RUNS / "table1-5-passes").glob("*/ivon/seed*/metrics.json")]
    assert len(as_in_the_paper) == 9
    assert all(row["ivon_clipped"] > 0.99 and row["ivon_variance_drift"] < 1.01 for row in as_in_the_paper)
    files = [f for n in (5, 20, 40) for f in (RUNS / "passes").glob(f"{n}-passes/*/ivon/seed*/metrics.json")]
    learned = [history(file) for file in files]
    assert {round(run[-1]["step"]) for run in learned} == {200, 800, 1600}
    for file, run in zip(files, learned):  # by how much v would grow if the data said nothing
        assert json.loads(file.read_text("utf8"))["settings"]["beta2"] ** -run[-1]["step"] == pytest.approx(1.38, abs=0.01)
    assert all(1.4 <= round(run[-1]["ivon_variance_drift"], 1) <= 1.9 for run in learned)
    assert all(run[-1]["ivon_clipped"] < 0.6 for run in learned)
    for pattern in ("table1-5-passes/*/ivon/seed*", *(f"passes/{n}-passes/*/ivon/seed*" for n in (5, 20, 40))):
        for file in RUNS.glob(f"{pattern}/metrics.json"):
            settings = json.loads(file.read_text("utf8"))["settings"]
            assert settings["lr"] * settings["clip_radius"] == pytest.approx(2e-4, rel=0.15)
            if pattern.startswith("table1"):
                assert (settings["hess_init"], settings["clip_radius"], settings["beta2"]) == (1e-3, 1e-3, 1 - 1e-5)
            else:
                assert settings["clip_radius"] == 0.41 and 0.9984 <= settings["beta2"] <= 0.9998
    taken = 1 - (1 - 1e-5) ** 10_000  # how far the paper's run takes h
    assert taken == pytest.approx(0.1, abs=0.01)


def test_what_it_says_of_the_learned_sigma_is_recorded():
    learned = json.loads((RUNS / "learned" / "everyday@2-20-passes.json").read_text("utf8"))
    for rival in ("one size", "one size a tensor"):
        assert learned["learned_minus"][rival]["acc"]["interval"][0] > 0.1
        assert learned["learned_minus"][rival]["nll"]["interval"][1] < -0.2
    stays = learned["learned_minus"]["h stays"]
    assert stays["brier"]["interval"][1] < 0
    assert all(stays[key]["interval"][0] < 0 < stays[key]["interval"][1] for key in ("acc", "ece", "nll"))
    for seed in learned["sigma"].values():
        middle = {name: q["p50"] for name, q in seed["tensors"].items()}
        for name, value in middle.items():
            if "q_proj" in name:
                assert 1.0 < value / seed["start"] < 1.25  # alike, a little above the start
        b_of_v = [middle[f"base_model.model.model.layers.{k}.self_attn.v_proj.lora_B.weight"] for k in range(30)]
        a_of_v = [middle[f"base_model.model.model.layers.{k}.self_attn.v_proj.lora_A.weight"] for k in range(30)]
        assert sum(b < a for a, b in zip(a_of_v, b_of_v)) >= 29 and max(b_of_v[:4]) < 0.8 * seed["start"]


def test_what_it_says_of_cost_is_recorded():
    times = json.loads((RUNS / "optimizer-cpu.json").read_text("utf8"))["milliseconds"]
    assert times["IVON"] / times["AdamW"] == pytest.approx(3, abs=0.2)
    assert times["IVON"] / times["AdamW fused"] == pytest.approx(10, abs=1)
    assert 0.4 < times["the random draw alone"] / times["IVON"] < 0.5
    text = (NOTEBOOKS / "02_ivon.ipynb").read_text("utf8")
    assert "about three times as long as AdamW's" in text and "ten times as long" in text
