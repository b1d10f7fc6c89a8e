"""Predicted against true values, and methods judged by several seeds."""

import pytest
import torch

from ivon_lora_lite.plots import COLORS, agreement_figure, dots_figure


def test_a_right_prediction_lies_on_the_diagonal_of_its_panel():
    true, far = torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([10.0])
    figure = agreement_figure({"near": {"all": (true, true)}, "far": {"all": (far, -far)}}, "is", "should be")
    diagonal, dots, other, _ = figure.data
    assert diagonal.x == diagonal.y and list(dots.x) == list(dots.y) == [-1, 0, 2]
    assert figure.layout.xaxis.range == figure.layout.yaxis.range == diagonal.x
    assert figure.layout.xaxis2.range[0] < -10 and figure.layout.xaxis2.range[1] > 10 and other.x == other.y
    assert figure.layout.xaxis2.title.text == "is" and figure.layout.yaxis.title.text == "should be"
    assert not figure.layout.showlegend


def test_two_kinds_look_the_same_in_all_panels_and_stand_in_the_legend_once():
    pair = (torch.zeros(2), torch.ones(2))
    figure = agreement_figure({"a": {"right": pair, "wrong": pair}, "b": {"right": pair, "wrong": pair}}, "x", "y")
    named = [t for t in figure.data if t.name]
    assert [(t.name, t.showlegend) for t in named[:2]] == [("right", True), ("wrong", True)]
    assert not any(t.showlegend for t in named[2:]) and named[0].marker == named[2].marker != named[1].marker


def test_an_agreement_that_cannot_be_drawn_is_refused():
    pair = (torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match="3 names"):
        agreement_figure({"": {"a": pair, "b": pair, "c": pair}}, "x", "y")
    with pytest.raises(ValueError, match="as many predicted"):
        agreement_figure({"": {"a": (torch.zeros(2), torch.ones(3))}}, "x", "y")


def test_every_method_has_a_dot_for_each_seed_and_a_bar_at_the_mean():
    figure = dots_figure({"AUROC": {"AdamW's loss": [0.5, 0.7], "sensitivity": [0.9]}})
    dots, bars = figure.data
    assert list(dots.x) == [0.5, 0.7, 0.9] and list(dots.y) == [0, 0, 1]
    assert list(bars.x) == pytest.approx([0.6, 0.9]) and list(bars.y) == [0, 1]
    assert figure.layout.yaxis.ticktext == ("AdamW's loss", "sensitivity")
    orange, blue = COLORS["adamw"], COLORS["ivon"]
    assert dots.marker.color == (orange, orange, blue) and bars.marker.line.color == (orange, blue)
    low, high = sorted(figure.layout.yaxis.range)
    assert low < 0 and high > 1 and figure.layout.yaxis.range[0] == high  # the first method is on top


def test_panels_share_their_methods_and_may_be_logarithmic():
    figure = dots_figure({"accuracy": {"a": [0.5]}, "NLL": {"a": [20.0]}}, log=True)
    assert figure.layout.xaxis2.type == "log" and figure.layout.xaxis2.title.text == "NLL"
    with pytest.raises(ValueError, match="different methods"):
        dots_figure({"accuracy": {"a": [0.5]}, "NLL": {"b": [20.0]}})


@pytest.mark.parametrize("nothing", [{}, {"AUROC": {}}, {"AUROC": {"loss": []}}])
def test_nothing_is_not_drawn_as_a_result(nothing):
    with pytest.raises(ValueError, match="no value to show"):
        dots_figure(nothing)
