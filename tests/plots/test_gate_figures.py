"""Bits and ranks: what the figures of gates hold, and what can be moved in them."""

import pytest
import torch

from ivon_lora_lite.plots import COLORS, GATES, levels_figure, parts_figure, prices_figure, ranks_figure, savings_figure


def test_levels_are_stairs_beside_errors_on_a_log_scale():
    x, errors = torch.linspace(-1, 1, 5), {2: 0.3, 4: 0.06, 32: 1e-10}
    figure = levels_figure(x, {2: x.round(), 4: x}, errors)
    assert [t.name for t in figure.data[:2]] == ["2 bits", "4 bits"]
    assert figure.data[0].y == pytest.approx(x.round().tolist())
    assert list(figure.data[2].y) == list(errors.values()) and figure.layout.yaxis2.type == "log"


def test_every_level_of_32_bits_fits_the_axis_of_the_parts():
    figure = parts_figure(["2 bits", "32 bits"])
    low, high = figure.layout.yaxis.range
    assert figure.layout.yaxis.type == "log" and low < -10 and high > 0 and len(figure.data[0].y) == 2


def test_prices_have_traces_that_can_be_moved():
    figure = prices_figure({0.0: [5.0, 8.0], 0.1: [5.0, 3.0]}, [(0.5, 0.01), (0.1, 0.05)], [(0.125, 0.01)])
    named = {t.name: t for t in figure.data}
    assert named["μ = 0.1"].y == pytest.approx([5, 3]) and named["μ = 0.1"].text[-1] == "0.1"
    assert list(named["gates"].x) == [0.5, 0.1] and named["gates"].marker.color == GATES
    assert named["cut and rounded afterwards"].marker.color == COLORS["adamw"]
    assert named["path"].line.color == named["at this price"].marker.line.color == COLORS["now"]
    assert named["path"].y is None and named["at this price"].x is None


def test_savings_have_a_panel_for_each_metric_and_a_colour_for_gates():
    row = {name: {"mean": value, "se": 0.01} for name, value in (("share", 0.25), ("acc", 0.68), ("nll", 0.93))}
    figure = savings_figure({"rounded": {"4 bits": row}, "gates": {"μ = 0.01": row, "μ = 0.1": row}})
    assert [t.line.color for t in figure.data] == [COLORS["adamw"]] * 2 + [GATES] * 2
    assert [t.showlegend for t in figure.data] == [True, False, True, False]
    assert list(figure.data[3].y) == [0.93, 0.93] and list(figure.data[3].text) == ["μ = 0.01", "μ = 0.1"]
    assert figure.layout.xaxis.type == figure.layout.xaxis2.type == "log"


def test_ranks_share_one_colour_scale():
    figure = ranks_figure({"μ = 0.01": {"query": [8, 7], "value": [8, 8]}, "μ = 0.1": {"query": [0, 3]}}, most=8)
    assert torch.tensor(figure.data[0].z).tolist() == [[8, 7], [8, 8]] and list(figure.data[1].y) == ["query"]
    assert {t.coloraxis for t in figure.data} == {"coloraxis"} and figure.layout.coloraxis.cmax == 8
    assert [a.text for a in figure.layout.annotations] == ["<b>μ = 0.01</b>", "<b>μ = 0.1</b>"]
