"""Means and standard errors over seeds, and the figure that shows them."""

import pytest
import torch

from ivon_lora_lite import Linearized, TauSweep, mean_and_error, score
from ivon_lora_lite.evaluation import METRICS
from ivon_lora_lite.plots import seeds_figure


def sweep(seed, taus=(0.0, 1.0), linear=True):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(taus), 3, 40, 4, generator=generator)
    labels = torch.randint(4, (40,), generator=generator)
    line = Linearized(logits[0, 0], torch.eye(4).repeat(40, 1, 1), labels) if linear else None
    return TauSweep(taus, logits, labels, line)


def test_mean_and_error_by_hand():
    mean, error = mean_and_error([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0]), torch.tensor([5.0, 2.0])])
    assert mean.tolist() == [3.0, 2.0]
    assert error.tolist() == pytest.approx([2 / 3**0.5, 0.0])
    with pytest.raises(ValueError, match="at least two seeds"):
        mean_and_error([torch.zeros(2)])


def test_points_are_means_of_what_score_gives():
    seeds = [sweep(k) for k in range(3)]
    adamw = [dict(score(s.at(0.0), s.labels, intervals=False)) for s in seeds]
    figure = seeds_figure({"one": seeds, "two": seeds[::-1]}, {"one": adamw, "two": adamw})
    points = [t for t in figure.data if t.legendgroup == "ivon"]
    assert len(points) == 2 * len(METRICS)
    for name, trace in zip(METRICS, points):
        for x, y, bar in zip(trace.x, trace.y, trace.error_y.array):
            values = torch.tensor([s.scores(x, intervals=False)[name] for s in seeds], dtype=torch.float64)
            assert y == pytest.approx(float(values.mean()), abs=6e-4)
            assert bar == pytest.approx(float(values.std()) / 3**0.5, abs=6e-4)
    levels = [t for t in figure.data if t.legendgroup == "adamw"]
    assert levels[0].y[0] == pytest.approx(sum(a["acc"] for a in adamw) / 3, abs=6e-4)
    assert len([t for t in figure.data if t.legendgroup == "linear"]) == 8


def test_without_a_linearised_gaussian_or_adamw_only_the_draws_are_shown():
    figure = seeds_figure({"one": [sweep(1, linear=False), sweep(2)]})
    assert {t.legendgroup for t in figure.data} == {"ivon"}


def test_sweeps_on_different_taus_are_refused():
    with pytest.raises(ValueError, match="different τ"):
        seeds_figure({"one": [sweep(1), sweep(2, taus=(0.0, 0.5))]})


def test_every_tau_has_as_many_draws_as_the_one_with_the_fewest():
    whole = sweep(1, taus=(0.0, 0.5, 1.0))
    fewer = TauSweep(whole.taus, whole.logits, whole.labels, drawn=(1, 2, 3))
    figure = seeds_figure({"one": [fewer, fewer]})
    nll = next(t for t in figure.data if t.yaxis == f"y{list(METRICS).index('nll') + 1}")
    assert nll.y[2] == pytest.approx(whole.scores(1.0, 2, intervals=False)["nll"], abs=6e-4)
    assert {t.name for t in figure.data} == {"IVON, 2 draws"}
