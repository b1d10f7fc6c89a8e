"""Curves side by side, bells and ellipses: how losses and Gaussians over one or two weights are drawn."""

import math
from collections.abc import Mapping

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from .style import AXIS, COLORS, INK, LAYOUT, short

SHADE, TINT = "rgba(28, 39, 51, 0.15)", "rgba(28, 39, 51, 0.5)"
EXACT = {"mode": "lines", "fill": "tozeroy", "fillcolor": SHADE, "line": {"color": INK, "width": 1}}
LOSS = {"mode": "lines", "line": {"color": INK, "width": 2.5}}
GRID = {"gridcolor": "#e6e8ec", "zeroline": False, "showline": False, "ticks": ""}
IVON_LINE = {"mode": "lines", "line": {"color": COLORS["ivon"], "width": 2.5}}
ADAMW_LINE = {"mode": "lines", "line": {"color": COLORS["adamw"], "width": 2.5}}


def bell(theta: Tensor, mean: Tensor | float, sigma: Tensor | float) -> Tensor:
    """The density of N(mean, σ²) at θ, a tensor of the shape of ``theta``."""
    return torch.exp(-((theta - mean) / sigma).square() / 2) / (sigma * math.sqrt(2 * math.pi))


def ellipse(mean: Tensor, covariance: Tensor, deviations: float = 2.0) -> tuple[Tensor, Tensor]:
    """The contour of a Gaussian over two weights, so many standard deviations from its mean.

    Args:
        mean: ``[2]``.
        covariance: ``[2, 2]``, positive definite.

    Returns:
        x and y of 73 points of the closed curve.
    """
    angle = torch.linspace(0, 2 * math.pi, 73, dtype=mean.dtype)
    circle = deviations * torch.stack([angle.cos(), angle.sin()])  # [2, 73]
    return tuple(mean[:, None] + torch.linalg.cholesky(covariance) @ circle)


def rings(x: Tensor, y: Tensor, height: Tensor, step: float, count: int = 12) -> go.Contour:
    """The lowest grey lines of equal height, as a trace for :func:`curves_figure`.

    Args:
        x, y: ``[X]`` and ``[Y]``.
        height: ``[Y, X]``; it is kept to a thousandth of ``step``.
        step: the difference in height between neighbouring lines.
        count: how many lines, from half a step above the lowest point on.
    """
    levels = {"coloring": "lines", "start": 500, "end": 1000 * count - 500, "size": 1000}
    above = (1000 * (height - height.min()) / step).clamp(max=1000 * count + 1000)
    grey = {"colorscale": [[0, "#c4c8ce"], [1, "#c4c8ce"]], "showscale": False, "line": {"width": 1}}
    values = {"x": short(x), "y": short(y), "z": above.round().numpy().astype("uint16")}
    return go.Contour(**values, contours=levels, hoverinfo="skip", **grey)


def curves_figure(
    panels: Mapping[str, Mapping[str, tuple[Tensor, Tensor] | go.Contour]],
    styles: Mapping[str, Mapping],
    *,
    x: str,
    y: str,
    height: int = 320,
) -> go.Figure:
    """Panels side by side with named curves; a name has one style and one entry in the legend.

    Args:
        panels: title → name → x and y, each ``[K]``, or a trace such as :func:`rings`. NaN interrupts a curve.
        styles: name → settings of a plotly scatter; names without one are drawn as INK lines.
        x, y: titles of the axes.
        height: of the figure in pixels.

    Raises:
        ValueError: a curve has an x and a y of unequal length.
    """
    titles = [f"<b>{title}</b>" if title else "" for title in panels]
    figure = make_subplots(1, len(panels), subplot_titles=titles, horizontal_spacing=0.07)
    seen = set()
    for col, curves in enumerate(panels.values(), start=1):
        for name, curve in curves.items():
            if isinstance(curve, go.Contour):
                figure.add_trace(curve, row=1, col=col)
                continue
            if (sizes := tuple(map(len, curve)))[0] != sizes[1]:
                raise ValueError(f"The curve {name!r} has {sizes[0]} x and {sizes[1]} y.")
            place = {"row": 1, "col": col, "legendgroup": name, "showlegend": name not in seen and bool(name)}
            style = {"line_simplify": False, **LOSS, **styles.get(name, {})}
            figure.add_scatter(x=short(curve[0], 4), y=short(curve[1], 4), name=name, **style, **place)
            seen.add(name)
    figure.update_xaxes(title={"text": x, **AXIS}, **GRID).update_yaxes(**GRID)
    figure.update_yaxes(title={"text": y, **AXIS}, col=1)
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.24, "yanchor": "top"}
    figure.update_layout(**LAYOUT, height=height, legend=legend, showlegend=len(seen) > 1)
    return figure if any(titles) else figure.update_layout(margin_t=15)


def objective_figure(theta: Tensor, loss: Tensor, parts: tuple[str, ...]) -> go.Figure:
    """A loss over one weight and, to be moved, a Gaussian below it (trace 1) and a bar for each part (trace 2).

    Args:
        theta, loss: ``[K]``.
        parts: names of the bars.
    """
    figure = make_subplots(1, 2, column_widths=[0.64, 0.36], horizontal_spacing=0.1)
    figure.add_scatter(x=short(theta, 4), y=short(loss, 4), name="loss ℓ", **LOSS, row=1, col=1)
    pen = {"color": COLORS["now"], "width": 2}
    figure.add_scatter(x=short(theta, 4), name="q", mode="lines", line=pen, fill="tozeroy", row=1, col=1)
    bars = {"marker_color": [TINT, TINT, COLORS["now"]], "textposition": "outside", "width": 0.6}
    figure.add_bar(x=list(parts), y=[0.0] * len(parts), texttemplate="%{y:.2f}", showlegend=False, **bars, row=1, col=2)
    figure.update_xaxes(**GRID).update_yaxes(**GRID)
    figure.update_xaxes(title={"text": "θ", **AXIS}, col=1).update_xaxes(tickangle=0, col=2)
    figure.update_yaxes(title={"text": "loss · density of q", **AXIS}, col=1)
    figure.update_yaxes(title={"text": "objective", **AXIS}, col=2)
    return figure.update_layout(**LAYOUT, height=340, legend={"x": 0.3, "y": 0.98}, margin_t=15)
