"""Many methods beside one rival as a figure."""

import pytest

from ivon_lora_lite.plots import COLORS, methods_figure


def row(**differences):
    return {name: {"difference": d, "interval": [d - 0.01, d + 0.02]} for name, d in differences.items()}


ROWS = {
    "+ temperature": row(acc=0.0, nll=-0.04, ece=-0.03, brier=-0.004),
    "+ Laplace": row(acc=0.01, nll=0.22, ece=0.27, brier=-0.145),
    "IVON": row(acc=0.02, nll=-0.1, ece=-0.03, brier=-0.04),
    "BLoB": row(acc=0.0, nll=0.0, ece=0.0, brier=0.0),
}
FAMILIES = {"+ temperature": "adamw", "+ Laplace": "adamw", "IVON": "ivon", "BLoB": ""}


def test_every_difference_is_a_dot_with_its_interval_or_an_arrow_with_its_number():
    figure = methods_figure(ROWS, FAMILIES, single=["+ Laplace"])
    assert [a.text for a in figure.layout.annotations][:4] == [
        "<b>accuracy ↑</b>", "<b>NLL ↓</b>", "<b>ECE above its floor ↓</b>", "<b>Brier score ↓</b>",
    ]  # fmt: skip
    assert [a.text for a in figure.layout.annotations][4:] == ["+0.22 ▶", "+0.27 ▶", "◀ −0.14"]
    legend = [trace for trace in figure.data if trace.showlegend is None]  # filled, though the first method may be open
    assert [(t.x, t.marker.symbol) for t in legend] == [((None,), None)] * 3
    dots = [trace for trace in figure.data if trace.showlegend is False]
    adamw, ivon, other = dots[:3]  # accuracy
    assert (list(adamw.x), list(adamw.y)) == ([0.0, 0.01], ["+ temperature", "+ Laplace"])
    assert list(adamw.error_x.array) == [0.02, 0.02] and list(adamw.error_x.arrayminus) == [0.01, 0.01]
    assert list(adamw.marker.symbol) == ["circle", "circle-open"]
    assert (adamw.marker.color, ivon.marker.color) == (COLORS["adamw"], COLORS["ivon"])
    assert other.marker.color not in COLORS.values()
    nll = dots[3]
    assert list(nll.y) == ["+ temperature"]  # the other one is the arrow
    assert list(figure.layout.yaxis.categoryarray) == ["BLoB", "IVON", "+ Laplace", "+ temperature"]  # first on top
    assert len(dots) == 12 == len(figure.data) - len(legend)
    assert [t.legendgroup for t in legend] == [t.legendgroup for t in dots[:3]] and all(t.name for t in legend)


def test_a_wider_axis_has_room_for_all():
    figure = methods_figure(ROWS, FAMILIES, widest={"acc": 0.1, "nll": 0.6, "ece": 0.4, "brier": 0.3}, rival="X")
    assert len(figure.layout.annotations) == 4 and list(figure.layout.xaxis2.range) == [-0.6, 0.6]
    two = methods_figure(ROWS, FAMILIES, metrics=("acc", "nll"), widest={"acc": 0.1, "nll": 0.6})
    assert [a.text for a in two.layout.annotations] == ["<b>accuracy ↑</b>", "<b>NLL ↓</b>"]
    assert figure.layout.xaxis.title.text == "difference to X"


@pytest.mark.parametrize("rows, families", [({}, {}), (ROWS, {**FAMILIES, "BLoB": "sgd"})])
def test_it_refuses_no_rows_and_unknown_families(rows, families):
    with pytest.raises(ValueError, match="family"):
        methods_figure(rows, families)
