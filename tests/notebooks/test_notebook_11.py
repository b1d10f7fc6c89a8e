"""Notebook 11: what it says of the recorded trials is what they say, and its functions do what they promise."""

import json
import math
import re
from functools import cache

import pytest
import torch
from cells import NOTEBOOKS

from ivon_lora_lite.studies import by_length, recorded

NAME = "11_hyperparameters.ipynb"


@cache
def trial(name):
    return json.loads((recorded("search") / f"{name}.json").read_text("utf8"))


def nll(name, kind="draws"):
    return trial(name)["validation"][kind]["nll"]


def by_sigma(passes):
    """σ₀ → name, of the trials that the notebook compares: a largest step of about 2e-4, c = 0.32."""
    if passes == 20:
        return {s: f"20-passes-ivon-lr0.2-sigma{s}-move0.32" for s in (0.035, 0.05, 0.071, 0.1)} | {
            0.084: "20-passes-ivon-lr0.00055-sigma0.084-move0.32-clip_radius0.41"
        }
    tried = {5: (0.035, 0.05, 0.071), 40: (0.05, 0.071, 0.1)}[passes]
    return {s: f"{passes}-passes-ivon-lr0.00055-sigma{s}-move0.32-clip_radius0.41" for s in tried}


def code():
    cells = json.loads((NOTEBOOKS / NAME).read_text("utf8"))["cells"]
    return [c for c in cells if c["cell_type"] == "code"]


def printed(start):
    """What the cell whose source holds a text has printed."""
    (cell,) = [c for c in code() if start in "".join(c["source"])]
    return "".join("".join(o.get("text", "")) for o in cell["outputs"])


def test_it_compares_exactly_these_trials():
    shown = printed("for slider.value in")
    for passes in (5, 20, 40):
        for sigma, name in by_sigma(passes).items():
            settings = trial(name)["config"]["settings"]
            assert settings["lr"] * settings["clip_radius"] == pytest.approx(2.1e-4, rel=0.1)
            assert settings["ess"] * settings["hess_init"] * sigma**2 == pytest.approx(1, rel=0.01)
            (line,) = [line for line in shown.splitlines() if f"σ₀ = {sigma:g} " in line]
            columns = re.split(r" {2,}", line.strip())
            assert columns[1 + (5, 20, 40).index(passes)] == f"{nll(name, 'mean'):.3f}, {nll(name):.3f}"
    assert shown.count("not tried") == 4


def test_whether_a_smaller_lambda_helps_depends_on_the_length():
    five, twenty, forty = map(by_sigma, (5, 20, 40))
    for kind in ("mean", "draws"):
        assert nll(five[0.071], kind) > nll(five[0.035], kind) + 0.01
        assert nll(twenty[0.071], kind) < nll(twenty[0.035], kind) - 0.07
        assert all(nll(of[0.1], kind) > nll(of[0.071], kind) + 0.03 for of in (twenty, forty))
    assert min(five, key=lambda s: nll(five[s])) == 0.035
    assert min(twenty, key=lambda s: nll(twenty[s])) == min(forty, key=lambda s: nll(forty[s])) == 0.071
    assert abs(nll(five[0.035]) - nll(five[0.05])) < 0.01


def band():
    seeds = torch.tensor([run.scores["nll"] for run in by_length(recorded("passes"), "everyday")["IVON"][20]])
    assert len(seeds) == 3
    return 2 * 2**0.5 * float(seeds.std())


def test_noise_and_learning_rate_matter_most_then_beta2_and_clipping_does_not():
    base = "20-passes-ivon-lr0.2-sigma0.071-move0.32"
    change = lambda name: nll(f"20-passes-ivon-{name}") - nll(base)  # noqa: E731
    noise = [change(f"lr0.2-sigma{s}-move0.32") for s in (0.035, 0.1)]
    rates = [change(f"lr{lr}-sigma0.071-move0.32") for lr in (0.1, 0.4)]
    moves = [change(f"lr0.2-sigma0.071-move{c}") for c in (0.008, 1.6)]
    clip = change("lr0.00055-sigma0.071-move0.32-clip_radius0.41")
    assert min(noise) > max(rates) and min(rates) > max(moves) and min(moves) > band() > 3 * abs(clip)
    assert 0.02 < band() < 0.03 and max(moves) < 1.5 * band()
    for c in (0.008, 1.6):
        assert nll(f"20-passes-ivon-lr0.2-sigma0.071-move{c}", "mean") > nll(base, "mean") + 0.02
    decays = [nll(f"20-passes-adamw-lr5e-05{end}", "mean") for end in ("", "-weight_decay1", "-weight_decay10")]
    assert max(decays) - min(decays) < band()
    assert {t["config"]["settings"]["beta1"] for t in map(trial, by_sigma(20).values())} == {0.9}


def test_h_starts_far_above_the_curvature_of_these_runs():
    drifts = {}
    for c in ("0.008", "0.32", "1.6"):
        record = trial(f"20-passes-ivon-lr0.2-sigma0.071-move{c}")
        drifts[c] = [row for row in record["history"] if "ivon_variance_drift" in row][-1]["ivon_variance_drift"]
        assert record["config"]["settings"]["beta2"] == pytest.approx(1 - float(c) / 800, abs=1e-9)
    assert 1 < drifts["0.008"] < 1.05 < 1.4 < drifts["0.32"] < 2 < 5 < drifts["1.6"]


def test_draws_fall_behind_the_mean_as_noise_grows():
    for passes in (5, 20, 40):
        names = dict(sorted(by_sigma(passes).items()))
        gaps = {s: nll(name) - nll(name, "mean") for s, name in names.items()}
        assert list(gaps.values()) == sorted(gaps.values())
        assert gaps[max(gaps)] > 0 > gaps[min(gaps)]
        assert gaps[min(gaps, key=lambda s: nll(names[s]))] < 0.01  # at the best σ₀


def shown_difference(find=recorded):
    """The function of the notebook, which looks for records with ``find``."""
    (source,) = [s for c in code() if (s := "".join(c["source"])).startswith("def difference")]
    names = {"torch": torch, "math": math, "json": json, "recorded": find}
    exec(source.split("\n\n\n")[0], names)
    return names["difference"]


def test_the_difference_shown_is_over_the_same_questions_and_seeds(tmp_path):
    runs = {
        "a": [[0.5, 0.5, 0.25, 0.5], [0.5, 0.5, 0.5, 0.5]],
        "b": [[0.25, 0.5, 0.25, 0.25], [0.5, 0.25, 0.5, 0.25]],
    }
    for name, seeds in runs.items():
        for seed, p in enumerate(seeds):
            (tmp_path / f"part-{name}-seed{seed}.json").write_text(json.dumps({"p_right": {"draws": p}}), "utf8")
    d, se = shown_difference(lambda name: tmp_path)("part", "a", "b", "draws")
    # −log p(a) + log p(b) in units of log 2: [−1, 0, 0, −1] and [0, −1, 0, −1]
    by_hand = math.log(2) * torch.tensor([[-1.0, 0, 0, -1], [0, -1, 0, -1]])
    assert d == pytest.approx(float(by_hand.mean()))
    assert se == pytest.approx(math.sqrt(by_hand.mean(0).var() / 4 + by_hand.mean(1).var() / 2))


@pytest.mark.parametrize("kind", ["mean", "draws"])
def test_what_it_says_of_the_transfer_is_recorded(kind):
    difference = shown_difference()
    d, se = difference("transfer", "equal-cost", "borrowed", kind)
    assert d > 2 * se  # more noise did harm on ARC-Easy
    for part, base in (("transfer", "borrowed"), ("task", "borrowed"), ("isotropic", "learned")):
        d, se = difference(part, "fast", base, kind)
        assert d < -2 * se
    for part, setting in (("rank", "equal-cost"), *((p, s) for p in ("rank", "shape") for s in ("fast", "suggested"))):
        d, se = difference(part, setting, "borrowed", kind)
        assert abs(d) < 2 * se
    config = json.loads((recorded("suggest") / "task-fast-seed21.json").read_text("utf8"))["config"]
    assert config["steps"] == 100 and config["settings"]["beta2"] == pytest.approx(1 - 0.1 / 100)


def test_a_longer_run_gets_more_noise_and_a_larger_lora_less():
    rows = re.findall(r"rank +(\d+), (\d+) steps: σ ([\d.]+),.*β₂ ([\d.]+):", printed("suggest_hyperparameters(model"))
    found = {(int(rank), int(steps)): (float(sigma), float(beta2)) for rank, steps, sigma, beta2 in rows}
    assert len(found) == 4
    for steps in (200, 800):
        assert found[32, steps][0] < found[8, steps][0]
        assert found[8, steps][1] == found[32, steps][1] == pytest.approx(1 - 0.32 / steps)
    for rank in (8, 32):
        assert found[rank, 200][0] < found[rank, 800][0]


def test_every_run_of_the_regression_ends_where_the_formula_says():
    ends = re.findall(r"σ ends at ([\d.]+), by the formula ([\d.]+)", printed("σ ends at"))
    assert len(ends) == 3 and all(run == formula for run, formula in ends)
