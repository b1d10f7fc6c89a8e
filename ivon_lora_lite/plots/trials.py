"""Trials of hyperparameters: what noise does to a score, lines of IVON, and differences as a forest plot."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .style import AXIS, COLORS, INK, LAYOUT

KINDS = {"mean": ("IVON@mean", "circle-open"), "draws": ("IVON", "circle")}
DASHES = ("solid", "dash", "dot", "dashdot")
GREY = "rgba(138, 143, 152, 0.18)"


def noise_figure(panels: Mapping[str, Mapping[str, Sequence[float]]], adamw: Mapping[str, float]) -> go.Figure:
    """The NLL at the mean and with draws against σ, a panel for each length of training, on common axes.

    Args:
        panels: title → ``sigma``, ``mean`` and ``draws``, each of the same length ``[T]``, in order of σ.
        adamw: title → the NLL of AdamW there, a dotted level.

    Raises:
        ValueError: a panel without AdamW's level, or with lists of different lengths.
    """
    figure = make_subplots(1, len(panels), subplot_titles=[f"<b>{t}</b>" for t in panels], shared_yaxes=True)
    ticks = sorted({sigma for points in panels.values() for sigma in points["sigma"]})
    ends = [ticks[0] / 1.15, ticks[-1] * 1.15]
    for col, (title, points) in enumerate(panels.items(), start=1):
        if title not in adamw or len({len(points[name]) for name in ("sigma", "mean", "draws")}) != 1:
            raise ValueError(f"{title!r} needs a level of AdamW, and as many scores as there are σ.")
        place = {"row": 1, "col": col, "showlegend": col == 1}
        figure.add_scatter(
            x=ends, y=[round(adamw[title], 3)] * 2, mode="lines", name="AdamW, best trial",
            line={"color": COLORS["adamw"], "dash": "dot"}, **place,
        )  # fmt: skip
        for kind, (name, symbol) in KINDS.items():
            figure.add_scatter(
                x=list(points["sigma"]), y=[round(v, 3) for v in points[kind]], mode="markers+lines", name=name,
                line={"color": COLORS["ivon"], "dash": "dash" if kind == "mean" else "solid"},
                marker={"symbol": symbol, "size": 9}, **place,
            )  # fmt: skip
    shown = [t for k, t in enumerate(ticks) if k == 0 or t / ticks[k - 1] > 1.2 or t == ticks[-1]]
    edges = {"type": "log", "tickvals": shown, "ticktext": [f"{t:g}" for t in shown]}
    figure.update_xaxes(**edges, title={"text": "σ at the start", **AXIS})
    figure.update_yaxes(title={"text": "validation NLL", **AXIS}, col=1)
    figure.update_annotations(font_size=14)
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.24, "yanchor": "top"}
    return figure.update_layout(**LAYOUT, height=380, width=800, legend=legend)


def lines_figure(
    panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], x: str, y: str, log: str = ""
) -> go.Figure:
    """Panels of up to four lines of IVON, named in a legend or, where there are several panels, at the lines' ends.

    Args:
        panels: title (may be empty) → name → x, y and perhaps errors of y, each ``[K]``.
        x, y: titles of the axes.
        log: which axes are logarithmic: ``""``, ``"x"`` or ``"xy"``; on a logarithmic x each value has a tick.
    """
    figure = make_subplots(1, len(panels), subplot_titles=[f"<b>{t}</b>" for t in panels if t], horizontal_spacing=0.1)
    ticks = sorted({value for lines in panels.values() for xs, *_ in lines.values() for value in xs})
    for col, lines in enumerate(panels.values(), start=1):
        for (name, (xs, ys, *errors)), dash in zip(lines.items(), DASHES):
            values, look = [float(f"{v:.4g}") for v in ys], {"color": COLORS["ivon"], "dash": dash}
            bars = {"array": [float(f"{e:.3g}") for e in errors[0]], "thickness": 1} if errors else None
            kind = "lines" if len(values) > 12 else "lines+markers"
            figure.add_scatter(x=list(xs), y=values, name=name, mode=kind, line=look, error_y=bars, row=1, col=col)
            if len(panels) > 1:
                end = {"x": xs[-1], "y": values[-1], "xanchor": "right", "yshift": 11, "showarrow": False}
                figure.add_annotation(text=name, **end, row=1, col=col)
    figure.update_xaxes(title={"text": x, **AXIS}).update_yaxes(title={"text": y, **AXIS}, col=1)
    if "x" in log:
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{t:g}" for t in ticks])
    if "y" in log:
        figure.update_yaxes(type="log", dtick=1)
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": 1, "yanchor": "bottom", "itemwidth": 60}
    return figure.update_layout(**LAYOUT, height=350, showlegend=len(panels) == 1, legend=legend)


def forest_figure(
    groups: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]], title: str, unresolved: float = 0.0
) -> go.Figure:
    """Differences as points with bars of two standard errors, one line for each setting, under bold headings.

    Args:
        groups: heading → setting → ``"mean"`` and ``"draws"`` → the difference and its standard error (0: no bar).
        title: of the horizontal axis.
        unresolved: a grey band of this half width around 0, for differences that are too small to read.

    Raises:
        ValueError: there is nothing to show.
    """
    lines = [row for head, rows in groups.items() for row in ((f"<b>{head}</b>", None), *rows.items())]
    if not any(row for _, row in lines):
        raise ValueError("There is no difference to show.")
    figure, ends = go.Figure(), [-unresolved, unresolved]
    if unresolved:
        figure.add_vrect(x0=-unresolved, x1=unresolved, fillcolor=GREY, line_width=0, layer="below")
    figure.add_vline(x=0, line={"color": INK, "width": 1})
    for kind, shift in (("mean", -0.16), ("draws", 0.16)):
        points = [(k + shift, *row[kind]) for k, (_, row) in enumerate(lines) if row and kind in row]
        name, symbol = KINDS[kind]
        bars = [round(2 * error, 4) for *_, error in points]
        ends += [x for (_, d, _), bar in zip(points, bars) for x in (d - bar, d + bar)]
        figure.add_scatter(
            x=[round(d, 4) for _, d, _ in points], y=[y for y, _, _ in points], mode="markers", name=name,
            error_x={"array": bars, "thickness": 1.5, "width": 3, "visible": any(bars)},
            marker={"color": COLORS["ivon"], "symbol": symbol, "size": 9},
            hovertemplate="%{x:+.3f}",
        )  # fmt: skip
    labels = {"tickvals": list(range(len(lines))), "ticktext": [label for label, _ in lines], "showgrid": False}
    figure.update_yaxes(range=[len(lines) - 0.4, -0.6], zeroline=False, automargin=True, **labels)
    pad = 0.04 * (max(ends) - min(ends))
    span = [round(min(ends) - pad, 4), round(max(ends) + pad, 4)]
    figure.update_xaxes(range=span, zeroline=False, title={"text": f"← better      {title}      worse →", **AXIS})
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": 1.0, "yanchor": "bottom"}
    return figure.update_layout(**LAYOUT, height=110 + 25 * len(lines), legend=legend)
