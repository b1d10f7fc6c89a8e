"""What gates do to bits and ranks: levels of rounding, error against cost, savings, and the rank of every layer."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from .style import AXIS, COLORS, INK, LAYOUT, TITLES, short

GATES = "#2b8a3e"  # what gates decided; plain LoRA, trained by AdamW and rounded or not, has AdamW's colour
SHADES = ("#8fce9b", GATES, INK)  # from coarse to fine
BELOW = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.24, "yanchor": "top"}


def levels_figure(x: Tensor, levels: Mapping[int, Tensor], errors: Mapping[int, float]) -> go.Figure:
    """Rounded numbers as stairs, and the largest error of each bit width on a log scale.

    Args:
        x: ``[K]``.
        levels: bits → the rounded numbers ``[K]``, at most three.
        errors: bits → the largest error.
    """
    titles = ("<b>rounded to 2, 4 and 8 bits</b>", "<b>largest error</b>")
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.13, column_widths=[0.55, 0.45])
    for (bits, y), color in zip(levels.items(), SHADES):
        line = {"color": color, "width": 2.5 if color != INK else 1}
        figure.add_scatter(x=short(x), y=short(y), name=f"{bits} bits", line=line, row=1, col=1)
    dots = {"mode": "lines+markers", "line": {"color": GATES, "dash": "dot"}, "marker": {"size": 9}}
    figure.add_scatter(x=list(map(str, errors)), y=list(errors.values()), showlegend=False, **dots, row=1, col=2)
    for col, (x_title, y_title) in enumerate((("x", "rounded x"), ("bits", "error (log scale)")), start=1):
        figure.update_xaxes(title={"text": x_title, **AXIS}, col=col)
        figure.update_yaxes(title={"text": y_title, **AXIS}, col=col)
    figure.update_yaxes(type="log", dtick=2, exponentformat="power", col=2)
    return figure.update_layout(**LAYOUT, height=340, legend={"x": 0.02, "y": 0.98})


def parts_figure(names: Sequence[str]) -> go.Figure:
    """A bar for each level on a log scale from 1e-11 to 1; its trace 0 is to be moved. What is zero has no bar."""
    figure = go.Figure(layout={**LAYOUT, "height": 300, "width": 700, "bargap": 0.4})
    figure.add_bar(x=list(names), y=[None] * len(names), marker_color=GATES, textposition="outside", cliponaxis=False)
    title = {"text": "what the level adds (log scale)", "font": {"size": 13}}
    return figure.update_yaxes(type="log", range=[-11, 0.4], dtick=2, exponentformat="power", title=title)


def prices_figure(paths: Mapping[float, Sequence[float]], gates: Sequence[tuple], peers: Sequence[tuple]) -> go.Figure:
    """Expected rank in training for every price, and error against cost; "path" and "at this price" are to be moved.

    Args:
        paths: μ → the expected rank at equally spaced steps.
        gates: pairs of cost and error of what gates decided, a point each.
        peers: the same of what it is compared with.
    """
    titles = ("<b>expected rank in training</b>", "<b>error against cost</b>")
    figure = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.12, column_widths=[0.42, 0.58])
    for mu, y in paths.items():
        style = {"mode": "lines+text", "line": {"color": SHADES[0]}, "textposition": "middle right"}
        style["text"] = [""] * (len(y) - 1) + [f"{mu:g}"]
        figure.add_scatter(dx=10, y=y, name=f"μ = {mu:g}", showlegend=False, **style, row=1, col=1)
    figure.add_scatter(dx=10, line={"color": COLORS["now"], "width": 3}, name="path", showlegend=False, row=1, col=1)
    figure.add_hline(y=2, line={"color": INK, "dash": "dot", "width": 1}, row=1, col=1)
    kinds = (("gates", gates, GATES, "circle"), ("cut and rounded afterwards", peers, COLORS["adamw"], "diamond"))
    for name, points, color, symbol in kinds:
        x, y = zip(*points)
        dot = {"mode": "markers", "marker": {"color": color, "symbol": symbol, "size": 9, "opacity": 0.75}}
        figure.add_scatter(x=x, y=y, name=name, **dot, row=1, col=2)
    ring = {"color": "rgba(0,0,0,0)", "size": 14, "line": {"color": COLORS["now"], "width": 2.5}}
    figure.add_scatter(mode="markers", marker=ring, name="at this price", row=1, col=2)
    figure.update_xaxes(title={"text": "step (at the end: μ)", **AXIS}, range=[0, 345], col=1)
    figure.update_yaxes(title={"text": "rank (the true one is dotted)", **AXIS}, rangemode="tozero", col=1)
    ticks = {"type": "log", "tickvals": [0.01, 0.03, 0.1, 0.3, 1, 2], "tickformat": "~g"}
    figure.update_xaxes(**ticks, title={"text": "share of the bit operations", **AXIS}, col=2)
    figure.update_yaxes(**ticks, title={"text": "mean squared error", **AXIS}, col=2)
    return figure.update_layout(**LAYOUT, height=380, legend=BELOW)


def savings_figure(families: Mapping[str, Mapping[str, Mapping[str, Mapping]]], metrics=("acc", "nll")) -> go.Figure:
    """Scores against the share of bit operations; bars are standard errors over seeds.

    Args:
        families: title → label of a point → ``share`` and metrics → ``{"mean", "se"}``. The family "gates" has the
            colour of gates, the others AdamW's.
        metrics: one panel each.
    """
    titles = [f"<b>{TITLES[name]}</b>" for name in metrics]
    figure = make_subplots(1, len(metrics), subplot_titles=titles, horizontal_spacing=0.09)
    for (title, points), symbol in zip(families.items(), ("square", "diamond", "star", "circle")):
        color = GATES if title == "gates" else COLORS["adamw"]
        for col, metric in enumerate(metrics, start=1):
            side = "top" if TITLES[metric].endswith("↑") == (color != GATES) else "bottom"  # labels stay apart
            figure.add_scatter(
                x=[round(row["share"]["mean"], 4) for row in points.values()],
                y=[round(row[metric]["mean"], 4) for row in points.values()],
                error_y={"array": [round(row[metric]["se"], 4) for row in points.values()], "thickness": 1},
                mode="lines+markers+text", text=list(points), textposition=f"{side} center", textfont={"size": 11},
                line={"width": 1, "dash": "dot", "color": color}, marker={"symbol": symbol, "size": 10},
                name=title, legendgroup=title, showlegend=col == 1, row=1, col=col,
            )  # fmt: skip
    ticks = {"tickvals": [0.01, 0.03, 0.1, 0.25, 0.5, 1], "tickformat": "~g", "range": [-2.3, 0.2]}
    figure.update_xaxes(type="log", **ticks, title={"text": "share of the bit operations", **AXIS})
    return figure.update_layout(**LAYOUT, height=420, legend=BELOW)


def ranks_figure(panels: Mapping[str, Mapping[str, Sequence[int]]], most: int) -> go.Figure:
    """Ranks as heat maps, one below the other: a column for each layer, a row for each of the names.

    Args:
        panels: title → name of a row → the rank of every layer; ``most`` is the rank of the darkest colour.
    """
    figure = make_subplots(
        len(panels), 1, subplot_titles=[f"<b>{t}</b>" for t in panels], shared_xaxes=True, vertical_spacing=0.1
    )
    for row, lines in enumerate(panels.values(), start=1):
        cells = {"z": short(torch.tensor(list(lines.values())), 4), "y": list(lines), "xgap": 1, "ygap": 1}
        figure.add_heatmap(**cells, coloraxis="coloraxis", row=row, col=1)
    figure.update_yaxes(autorange="reversed").update_xaxes(title={"text": "layer", **AXIS}, row=len(panels))
    scale = {"colorscale": [[0, "#f1f3f5"], [1, GATES]], "cmin": 0, "cmax": most, "colorbar": {"title": "rank"}}
    return figure.update_layout(**LAYOUT, height=60 + 170 * len(panels), coloraxis=scale)
