"""Trials of hyperparameters as figures."""

import pytest

from ivon_lora_lite.plots import COLORS, forest_figure, lines_figure, noise_figure

POINTS = {"sigma": [0.05, 0.1], "mean": [0.6, 0.5], "draws": [0.4, 0.7]}


def test_noise_figure_has_a_panel_for_each_length_and_names_once():
    figure = noise_figure({"5 passes": POINTS, "20 passes": POINTS}, {"5 passes": 0.55, "20 passes": 0.65})
    assert [a.text for a in figure.layout.annotations] == ["<b>5 passes</b>", "<b>20 passes</b>"]
    assert [t.showlegend for t in figure.data] == [True] * 3 + [False] * 3
    level, mean, draws = figure.data[3:]
    assert set(level.y) == {0.65} and level.line.color == COLORS["adamw"]
    assert level.x[0] < 0.05 and level.x[1] > 0.1
    assert (list(mean.x), list(mean.y), list(draws.y)) == ([0.05, 0.1], [0.6, 0.5], [0.4, 0.7])
    assert mean.line.color == draws.line.color == COLORS["ivon"] and mean.line.dash != draws.line.dash
    assert figure.layout.xaxis.type == figure.layout.xaxis2.type == "log"


def test_noise_figure_leaves_out_ticks_that_would_overlap():
    figure = noise_figure({"a": {"sigma": [0.07, 0.08, 0.1], "mean": [1] * 3, "draws": [1] * 3}}, {"a": 1})
    assert list(figure.layout.xaxis.ticktext) == ["0.07", "0.1"]


@pytest.mark.parametrize("panels, adamw", [({"a": POINTS}, {}), ({"a": {**POINTS, "draws": [0.4]}}, {"a": 0.5})])
def test_noise_figure_refuses_what_does_not_fit(panels, adamw):
    with pytest.raises(ValueError, match="'a' needs a level"):
        noise_figure(panels, adamw)


def test_lines_figure_names_its_lines_in_a_legend_or_at_their_ends():
    lines = {"a": ([0.01, 0.1], [1.0, 2.0], [0.1, 0.2]), "b": ([0.01, 0.1], [2.0, 3.0])}
    one = lines_figure({"": lines}, "σ", "cost", log="xy")
    assert one.layout.showlegend and not one.layout.annotations
    assert (one.layout.xaxis.type, one.layout.yaxis.type) == ("log", "log")
    assert list(one.layout.xaxis.ticktext) == ["0.01", "0.1"]
    assert list(one.data[0].error_y.array) == [0.1, 0.2] and one.data[1].error_y.array is None
    assert {t.line.color for t in one.data} == {COLORS["ivon"]} and one.data[0].line.dash != one.data[1].line.dash

    two = lines_figure({"left": lines, "right": {"c": ([1, 2], [3, 4])}}, "step", "σ")
    assert not two.layout.showlegend and two.layout.xaxis.type is None
    assert [(a.text, a.xref) for a in two.layout.annotations[2:]] == [("a", "x"), ("b", "x"), ("c", "x2")]


def test_forest_figure_draws_two_standard_errors_beside_each_row():
    groups = {"A": {"one": {"mean": (-0.1, 0.02), "draws": (0.3, 0.0)}}, "B": {"two": {"draws": (0.2, 0.05)}}}
    figure = forest_figure(groups, "difference", unresolved=0.024)
    assert list(figure.layout.yaxis.ticktext) == ["<b>A</b>", "one", "<b>B</b>", "two"]
    mean, draws = figure.data
    assert list(mean.x) == [-0.1] and list(mean.error_x.array) == [0.04]
    assert list(draws.x) == [0.3, 0.2] and list(draws.error_x.array) == [0.0, 0.1]
    assert [round(y) for y in (*mean.y, *draws.y)] == [1, 1, 3]  # the headings have lines of their own
    assert len(set(mean.y) | set(draws.y)) == 3  # the two of a row are not on top of each other
    low, high = figure.layout.xaxis.range
    assert low < -0.14 and high > 0.3  # the bars are inside
    band, zero = figure.layout.shapes
    assert (band.x0, band.x1, zero.x0) == (-0.024, 0.024, 0)
    assert "better" in figure.layout.xaxis.title.text
    assert len(forest_figure(groups, "difference").layout.shapes) == 1


def test_forest_figure_draws_no_bars_where_errors_are_unknown():
    figure = forest_figure({"A": {"one": {"mean": (-0.1, 0.0), "draws": (0.3, 0.0)}}}, "difference")
    assert [t.error_x.visible for t in figure.data] == [False, False]


def test_forest_figure_refuses_nothing():
    with pytest.raises(ValueError, match="no difference"):
        forest_figure({"A": {}}, "difference")
