"""Maps of a plane, bands over a line and tables of a search."""

import pytest
import torch

from ivon_lora_lite.plots import COLORS, functions_figure, maps_figure, percent, search_figure, short


def test_a_map_its_borders_and_the_two_classes():
    x, y = torch.linspace(0, 1, 4), torch.linspace(0, 2, 3)
    p = torch.linspace(0, 1, 12).reshape(3, 4)
    points, labels = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]), torch.tensor([1, 0, 1])
    figure = maps_figure({"a": p, "b": 1 - p}, x, y, points, labels, borders={"b": torch.stack([p, p])})
    kinds = [trace.type for trace in figure.data]
    assert kinds == ["contour", "scatter", "scatter"] + ["contour"] * 3 + ["scatter"] * 2
    assert figure.data[0].z[0].tolist() == [0, 9, 18, 27] and figure.data[3].z[2, 3] == 0
    assert (figure.data[3].x0, figure.data[3].dx * 3, figure.data[3].y0, figure.data[3].dy) == (0, 1, 0, 1)
    assert figure.data[4].contours.start == figure.data[4].contours.end == 50
    assert figure.data[4].line.color == COLORS["ivon"]
    assert len(figure.data[1].x) == 1 and len(figure.data[2].x) == 2  # class 0, class 1
    assert figure.layout.xaxis2.title.text == "x₁" and figure.layout.yaxis.title.text == "x₂"


def test_a_map_off_the_grid_is_refused():
    with pytest.raises(ValueError, match=r"a: the map is \(4, 3\), the grid \(3, 4\)"):
        maps_figure({"a": torch.zeros(4, 3)}, torch.arange(4.0), torch.arange(3.0), torch.zeros(0, 2), torch.zeros(0))


def test_short_numbers_have_as_many_decimals_as_are_asked_for():
    values = torch.tensor([0.12345, -0.00001])
    assert [str(v) for v in short(values)] == ["0.123", "0.0"]  # no minus before a zero
    assert [str(v) for v in short(values, 4)] == ["0.1235", "0.0"]


def test_percent_rounds():
    assert percent(torch.tensor([0.004, 0.006, 1.0])).tolist() == [0, 1, 100]


def test_runs_are_lines_and_draws_a_band_of_two_standard_deviations():
    x = torch.tensor([0.0, 0.5, 1.0])
    draws = torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
    data = torch.tensor([0.2]), torch.tensor([0.7])
    figure = functions_figure({"AdamW": draws}, {"IVON": draws}, x, x, data)
    lines, band = figure.data[:4], figure.data[4:]
    assert [t.line.color for t in lines[:2]] == [COLORS["adamw"]] * 2 and lines[1].y.tolist() == [2, 1, 0]
    assert [t.y.tolist() for t in band[:3]] == [[-1, 1, -1], [3, 1, 3], [1, 1, 1]]
    assert band[1].fill == "tonexty" and band[0].x0 == 0 and band[0].dx == 0.5
    assert [t.name for t in figure.data if t.showlegend] == ["truth", "data"]
    assert figure.layout.xaxis2.title.text == "input x"


def test_the_lowest_score_of_a_search_is_framed():
    scores = {(r, c): 10 * r + abs(c - 2) for r in (1, 0.1) for c in (1, 2, 3000)}
    figure = search_figure({"AdamW": (scores, "rate", "decay")}, worst=5)
    assert figure.data[0].y == ("1", "0.1") and figure.data[0].x == ("1", "2", "3,000")
    assert figure.data[0].z[1][0] == 2 and figure.data[0].zmax == 5
    frame = figure.layout.shapes[0]
    assert (frame.x0, frame.x1, frame.y0, frame.y1) == (0.5, 1.5, 0.5, 1.5)
    assert figure.layout.xaxis.title.text == "decay" and figure.layout.yaxis.title.text == "rate"
