"""Reliability in each method's colour, the floor of ECE, and the temperature explorer."""

import pytest
import torch

from ivon_lora_lite import ece, ece_floor, nll
from ivon_lora_lite.evaluation import all_metrics
from ivon_lora_lite.plots import COLORS, INK, TEMPERATURES, TemperatureExplorer, calibration_figure, floor_figure


def made(seed: int, n: int = 120) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(n, 4, generator=generator)).softmax(-1)


LABELS = torch.randint(4, (120,), generator=torch.Generator().manual_seed(9))


def rgb(color: str) -> str:
    return ", ".join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))


def test_bars_have_the_colour_of_their_method_and_titles_the_ece():
    titles = {"AdamW": COLORS["adamw"], "IVON@mean": COLORS["ivon"], "before training": COLORS["before"], "any": INK}
    predictions = {title: (made(k), LABELS) for k, title in enumerate(titles)}
    figure = calibration_figure(predictions)
    bars = [t for t in figure.data if t.type == "bar"]
    assert len(bars) == 4
    for (title, (probs, labels)), bar, text in zip(predictions.items(), bars, figure.layout.annotations):
        full = [color for color, count in zip(bar.marker.color, bar.customdata) if count]
        assert all(color.startswith(f"rgba({rgb(titles[title])}, ") for color in full)
        assert f"{title}: ECE {float(ece(probs.double(), labels)):.3f}" in text.text
        alpha = [float(color.split(",")[-1][:-1]) for color in bar.marker.color]
        assert alpha.index(max(alpha)) == bar.customdata.index(max(bar.customdata)) and max(alpha) == 0.95


def test_the_floor_is_drawn_with_its_quantile_and_what_was_measured():
    floors = {(n, b): ece_floor(made(1)[:n], b) for n in (40, 120) for b in (10, 15)}
    figure = floor_figure(floors, {"AdamW": [0.05, 0.06], "IVON@mean": [0.1]})
    ten, fifteen, adamw, mean = figure.data
    for trace, bins in ((ten, 10), (fifteen, 15)):
        for k, n in enumerate((40, 120)):
            assert trace.y[k] == pytest.approx(floors[n, bins][0], abs=1e-4)
            assert trace.y[k] + trace.error_y.array[k] == pytest.approx(floors[n, bins][1], abs=2e-4)
    assert list(ten.x) == [40, 120] and fifteen.x[0] > 40  # side by side
    assert list(adamw.y) == [0.05, 0.06] and adamw.marker.color == COLORS["adamw"]
    assert mean.marker.symbol == "circle-open" and mean.marker.color == COLORS["ivon"]


def test_the_sliders_move_bars_dots_and_readout():
    rows = {"AdamW": made(1), "IVON": made(2)}
    explorer = TemperatureExplorer(rows, LABELS)
    dots = list(explorer.figure.select_traces({"mode": "markers"}))
    assert len(dots) == 2 and {dot.marker.color for dot in dots} == {COLORS["now"]}
    for title, t, bins in (("AdamW", 1.0, 10), ("AdamW", 1.5, 10), ("IVON", 2.3, 1), ("IVON", 0.5, 25)):
        explorer.method.value, explorer.temperature.value, explorer.bins.value = title, t, bins
        probs = (rows[title].double().log() / t).softmax(-1)
        expected = {name: float(value) for name, value in all_metrics(probs, LABELS, bins).items()}
        assert explorer.scores == pytest.approx(expected)
        text = explorer.figure.layout.title.text
        assert f"{title}, T = {t:g}: " in text and f"NLL <b>{expected['nll']:.3f}</b>" in text
        assert f"ECE <b>{expected['ece']:.3f}</b>" in text and f"floor {ece_floor(probs, bins)[0]:.3f}" in text
        bars = explorer.figure.data[0]
        assert len(bars.y) == len(bars.x) == bins and sum(bars.customdata) == len(LABELS)
        assert dots[0].x == dots[1].x == (t,)
        assert dots[0].y[0] == pytest.approx(float(nll(probs, LABELS)), abs=1e-4)
        assert dots[1].y[0] == pytest.approx(float(ece(probs, LABELS)), abs=1e-4)  # on its curve, which has ten bins


def test_curves_are_those_of_the_metrics_and_dots_lie_on_them():
    explorer = TemperatureExplorer({"AdamW": made(1), "IVON@mean": made(2)}, LABELS)
    lines = list(explorer.figure.select_traces({"mode": "lines"}))
    assert [line.name for line in lines] == ["AdamW", "IVON@mean"] * 2
    assert [line.line.dash for line in lines] == ["solid", "dash"] * 2
    for line, metric in zip(lines, (nll, nll, ece, ece)):
        at = TEMPERATURES.index(1.5)
        assert line.y[at] == pytest.approx(float(metric(explorer.at(line.name, 1.5), LABELS)), abs=1e-4)
    assert TEMPERATURES[0] == 0.5 and TEMPERATURES[-1] == 3.0 and 1.0 in TEMPERATURES
