"""What a variance predicts against what comes true, and methods judged by several seeds."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from .style import AXIS, COLORS, INK, LAYOUT, rounded

MARKERS = (
    {"color": COLORS["ivon"], "size": 8, "opacity": 0.7},
    {"color": INK, "size": 11, "symbol": "x-thin", "line": {"width": 2.5, "color": INK}},
)


def agreement_figure(panels: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]], x: str, y: str) -> go.Figure:
    """Panels of predicted against true values, each with its diagonal, on which a prediction is right.

    Args:
        panels: title → name → the true and the predicted values, each ``[K]``; at most two names.
        x, y: titles of the axes: what is true, what is predicted.

    Raises:
        ValueError: more than two names, or unequal numbers of true and predicted values.
    """
    figure = make_subplots(1, len(panels), subplot_titles=[f"<b>{t}</b>" for t in panels], horizontal_spacing=0.12)
    names = list(dict.fromkeys(name for groups in panels.values() for name in groups))
    if len(names) > len(MARKERS):
        raise ValueError(f"There are {len(names)} names, and a figure can tell {len(MARKERS)} apart.")
    for col, groups in enumerate(panels.values(), start=1):
        place = {"row": 1, "col": col}
        if any(len(true) != len(predicted) for true, predicted in groups.values()):
            raise ValueError("There must be as many predicted as true values.")
        values = torch.cat([torch.cat(pair) for pair in groups.values()])
        pad = 0.06 * float(values.max() - values.min())
        ends = [round(float(values.min()) - pad, 4), round(float(values.max()) + pad, 4)]
        figure.add_scatter(
            x=ends, y=ends, mode="lines", line={"color": COLORS["before"], "width": 1}, hoverinfo="skip",
            showlegend=False, **place,
        )  # fmt: skip
        for name, (true, predicted) in groups.items():
            look = {"mode": "markers", "marker": MARKERS[names.index(name)], "name": name, "legendgroup": name}
            figure.add_scatter(x=rounded(true), y=rounded(predicted), showlegend=col == 1, **look, **place)
        figure.update_xaxes(range=ends, title={"text": x, **AXIS}, **place)
        figure.update_yaxes(range=ends, title={"text": y if col == 1 else None, **AXIS}, **place)
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.2, "yanchor": "top"}
    return figure.update_layout(**LAYOUT, height=380, showlegend=len(names) > 1, legend=legend)


def dots_figure(panels: Mapping[str, Mapping[str, Sequence[float]]], *, log: bool = False) -> go.Figure:
    """Panels with a line for each method: a pale dot for each seed and a bar at their mean.

    Args:
        panels: title of the horizontal axis → method → one value for each seed ``[R]``; the same methods everywhere.
        log: a logarithmic horizontal axis.

    Raises:
        ValueError: there is nothing to show, or the panels have different methods.
    """
    methods = [list(rows) for rows in panels.values()]
    if not methods or not methods[0] or any(not values for rows in panels.values() for values in rows.values()):
        raise ValueError("There is no value to show.")
    if any(names != methods[0] for names in methods):
        raise ValueError("The panels have different methods.")
    figure = make_subplots(1, len(panels), shared_yaxes=True, horizontal_spacing=0.05)
    for col, (title, rows) in enumerate(panels.items(), start=1):
        place = {"row": 1, "col": col}
        colors = [COLORS["adamw" if name.startswith("AdamW") else "ivon"] for name in rows]
        seeds = [(value, line) for line, values in enumerate(rows.values()) for value in values]
        means = [(sum(values) / len(values), line) for line, values in enumerate(rows.values())]
        bar = {"symbol": "line-ns", "size": 16, "line": {"width": 3, "color": colors}}
        for points, marker, name in ((seeds, {"size": 9, "opacity": 0.45}, "a seed"), (means, bar, "mean")):
            x, y = zip(*points)
            marker = {"color": [colors[line] for line in y], **marker}
            figure.add_scatter(x=rounded(torch.tensor(x)), y=y, mode="markers", marker=marker, name=name, **place)
        figure.update_xaxes(title={"text": title, **AXIS}, type="log" if log else "linear", **place)
    labels = {"tickvals": list(range(len(methods[0]))), "ticktext": methods[0], "zeroline": False}
    figure.update_yaxes(range=[len(methods[0]) - 0.5, -0.5], **labels)
    return figure.update_layout(**LAYOUT, height=110 + 34 * len(methods[0]), showlegend=False)
