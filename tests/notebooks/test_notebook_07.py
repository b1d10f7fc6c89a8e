"""What notebook 07 builds is what the library does, and its text says what the recorded files say."""

import pytest
import torch
from cells import defined_in

from ivon_lora_lite import Linearized, Predictions, TauSweep, choose_tau, score
from ivon_lora_lite.studies import by_length, recorded


def test_linear_probabilities_are_those_of_the_library():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(30, 4, generator=generator)
    root = torch.randn(30, 4, 4, generator=generator)
    covariance = root @ root.mT
    build = defined_in("07_tau.ipynb", "linear_probabilities", torch=torch)["linear_probabilities"]
    library = Linearized(mean, covariance, torch.zeros(30, dtype=torch.long))
    for tau in (0.0, 0.3, 1.0, 2.5):
        # both integrate by Monte Carlo; the library's 256 antithetic draws have a standard error below 0.03
        gap = (build(mean, covariance, tau, draws=20_000).float() - library.probabilities(tau)).abs()
        assert gap.max() < 0.1 and gap.mean() < 0.02
    assert (build(mean, covariance, 1.0).float() - library.probabilities(0.0)).abs().max() > 0.1  # τ matters


@pytest.fixture(scope="module")
def folders():
    found = sorted(recorded("sweeps").glob("everyday@2-seed*"))
    assert len(found) >= 2 and (found[0] / "draws.safetensors").exists()
    return found


def test_what_it_says_of_tau_is_recorded(folders):
    """Free up to about 1, then paid for; the metrics have their best values at different places."""
    rivals = by_length(recorded("passes"), "everyday")["AdamW"][20]
    for folder in folders:
        sweep = TauSweep.load(folder / "test.safetensors")
        curves = {name: dict(zip(sweep.taus, values.tolist())) for name, values in sweep.curves(4).items()}
        best = {name: min(curve, key=curve.get) for name, curve in curves.items()}
        assert 0.5 <= best["nll"] <= 1.25 and best["brier"] <= 1 <= best["ece"] <= 2
        assert all(abs(curves["acc"][t] - curves["acc"][0.0]) < 0.015 for t in (0.1, 0.25, 0.5, 0.75))
        assert curves["acc"][2.0] < curves["acc"][0.0] - 0.05 and curves["acc"][4.0] < 0.5
        adamw = next(r.scores for r in rivals if r.cell.seeds[0] == sweep.metadata["run_seed"])
        assert all(curves["nll"][t] < adamw["nll"] for t in (0.0, 0.5, 1.0))
        line = sweep.linear_curves([0.0, 4.0])
        assert line["nll"][1] < line["nll"][0] < curves["nll"][2.0] and line["acc"][1] > curves["acc"][2.0]
        assert line["nll"][1] < min(curves["nll"].values()) and line["acc"][1] > line["acc"][0] - 0.01
        one, two, mean = (sweep.scores(tau, n, intervals=False) for tau, n in ((1.0, 1), (1.0, 2), (0.0, 1)))
        assert one["acc"] < mean["acc"] and all(one[name] > mean[name] for name in ("nll", "ece", "brier"))
        assert abs(two["nll"] - mean["nll"]) < 0.03


def test_what_it_says_of_the_number_of_draws_is_recorded(folders):
    many = Predictions.load(folders[0] / "draws.safetensors")
    assert many.samples == 64 and len(many.labels) == 300
    losses = {}
    for count in (1, 10, 64):
        picks = [torch.randperm(64, generator=torch.Generator().manual_seed(k))[:count] for k in range(40)]
        losses[count] = sum(score(many.probabilities[p].mean(0), many.labels, intervals=False)["nll"] for p in picks) / 40
    assert 0.85 < (losses[1] - losses[10]) / (losses[1] - losses[64]) < 0.97


def test_what_it_says_of_pruning_is_recorded(folders):
    for folder in folders:
        cut = Predictions.load(folder / "pruned.safetensors")
        rows = {tuple(row): score(p, cut.labels, intervals=False) for row, p in zip(cut.metadata["rows"], cut.probabilities)}
        whole = rows[0.0, "none"]["acc"]
        assert rows[0.9, "ratio"]["acc"] > rows[0.9, "size"]["acc"] + 0.05 > rows[0.9, "random"]["acc"] + 0.05
        assert rows[0.5, "random"]["acc"] < whole - 0.04


def test_the_choice_lies_inside_the_grid(folders):
    for folder in folders:
        validation = TauSweep.load(folder / "validation.safetensors")
        assert 0 < choose_tau(validation)[0] < validation.taus[-1]
        mean, test = validation.scores(0.0), TauSweep.load(folder / "test.safetensors").scores(0.0)
        assert mean["acc"] > test["acc"] and mean["nll"] < test["nll"]  # the validation questions are easier
