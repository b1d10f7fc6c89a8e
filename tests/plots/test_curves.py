"""Curves side by side, bells and ellipses."""

import pytest
import torch

from ivon_lora_lite.plots import COLORS, IVON_LINE, bell, curves_figure, ellipse, objective_figure, rings


def test_a_bell_is_the_density_of_torch():
    theta = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(bell(theta, 0.5, 1.5), torch.distributions.Normal(0.5, 1.5).log_prob(theta).exp())


def test_every_point_of_an_ellipse_has_the_same_mahalanobis_distance():
    mean, covariance = torch.tensor([1.0, -2.0]), torch.tensor([[2.0, 0.9], [0.9, 1.0]])
    away = torch.stack(ellipse(mean, covariance, 1.5)) - mean[:, None]  # [2, 73]
    distance = (away * torch.linalg.solve(covariance, away)).sum(0).sqrt()
    torch.testing.assert_close(distance, torch.full((73,), 1.5))


def test_a_name_is_in_the_legend_once_and_looks_the_same_in_all_panels():
    x = torch.linspace(0, 1, 5)
    figure = curves_figure(
        {"one": {"q": (x, x), "": (x, -x)}, "two": {"q": (x, x**2)}}, {"q": IVON_LINE}, x="θ", y="density"
    )
    named = [t for t in figure.data if t.name == "q"]
    assert [t.showlegend for t in figure.data] == [True, False, False]
    assert {t.line.color for t in named} == {COLORS["ivon"]}
    assert named[1].y == pytest.approx([0, 0.0625, 0.25, 0.5625, 1])
    assert [a.text for a in figure.layout.annotations] == ["<b>one</b>", "<b>two</b>"]
    assert figure.layout.xaxis2.title.text == "θ" and figure.layout.yaxis.title.text == "density"


def test_small_values_keep_their_digits():
    x = torch.tensor([0.0, 1.0, 2.0])
    y = torch.tensor([0.0, 1.234e-5, float("nan")])
    figure = curves_figure({"": {"q": (x, y), "none": (x, 0 * x)}}, {}, x="", y="")
    assert figure.data[0].y[:2] == pytest.approx([0, 1.234e-5]) and figure.data[0].y[2] != figure.data[0].y[2]
    assert list(figure.data[1].y) == [0, 0, 0] and list(figure.data[0].x) == [0, 1, 2]


def test_curves_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="'q' has 3 x and 2 y"):
        curves_figure({"": {"q": (torch.zeros(3), torch.zeros(2))}}, {}, x="", y="")


def test_rings_are_drawn_among_the_curves():
    x, y = torch.linspace(0, 1, 4), torch.linspace(0, 2, 3)
    ring = rings(x, y, y[:, None] * x, step=0.5)
    figure = curves_figure({"": {"rings": ring, "path": (x, x)}}, {}, x="", y="")
    assert figure.data[0].type == "contour" and figure.data[0].z.shape == (3, 4)
    assert figure.data[1].name == "path"
    levels = figure.data[0].contours  # heights 0 … 2 in steps of 0.5: the lines stand at 0.25, 0.75, 1.25 …
    assert figure.data[0].z[2] == pytest.approx([0, 4000 / 3, 8000 / 3, 4000], abs=1)
    assert (levels.start, levels.size) == (500, 1000)


def test_the_objectives_figure_has_a_bell_and_bars_to_move():
    theta = torch.linspace(-1, 1, 9)
    figure = objective_figure(theta, theta**2, ("a", "b", "a + b"))
    loss, q, bars = figure.data
    assert loss.y == pytest.approx((theta**2).tolist()) and q.line.color == COLORS["now"] and len(q.x) == 9
    assert list(bars.x) == ["a", "b", "a + b"]
