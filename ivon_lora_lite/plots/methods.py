"""Many methods beside one rival: a row for each, a panel for each metric."""

from collections.abc import Collection, Mapping

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .style import COLORS, INK, LAYOUT

PANELS = {"acc": "accuracy ↑", "nll": "NLL ↓", "ece": "ECE above its floor ↓", "brier": "Brier score ↓"}
WIDEST = {"acc": 0.08, "nll": 0.2, "ece": 0.08, "brier": 0.08}
FAMILIES = {"adamw": "made from AdamW's run", "ivon": "from IVON's run", "": "trained in another way"}


def methods_figure(
    rows: Mapping[str, Mapping[str, Mapping]],
    families: Mapping[str, str],
    single: Collection[str] = (),
    metrics: Collection[str] = tuple(PANELS),
    widest: Mapping[str, float] = WIDEST,
    rival: str = "AdamW",
) -> go.Figure:
    """Differences to a rival as dots with 95 % intervals, a row for each method and a panel for each metric.

    Args:
        rows: title → what :func:`~ivon_lora_lite.paired_differences` returned for (rival, method).
        families: title → ``"adamw"``, ``"ivon"`` or ``""``, whose run the method is made from; it decides the colour.
        single: titles that rest on one seed; their dots are open.
        metrics: which of the panels accuracy, NLL, ECE and Brier score to show.
        widest: metric → half the width of its axis. A difference beyond nine tenths of it is an arrow at
            the edge with its number.
        rival: its name, for the axes.

    Raises:
        ValueError: there is no row, or a family is not known.
    """
    if not rows or not {families[title] for title in rows} <= FAMILIES.keys():
        raise ValueError(f"Give at least one row, and to each a family out of {list(FAMILIES)}.")
    titles = [f"<b>{PANELS[metric]}</b>" for metric in metrics]
    figure = make_subplots(1, len(titles), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.02)
    for col, metric in enumerate(metrics, start=1):
        edge = widest[metric]
        for family, name in FAMILIES.items():
            own = {t: d[metric] for t, d in rows.items() if families[t] == family}
            if not own:
                continue
            inside = {t: d for t, d in own.items() if abs(d["difference"]) <= 0.9 * edge}
            trace = _dots(inside, COLORS.get(family, INK), single)
            figure.add_scatter(**trace, name=name, legendgroup=family, showlegend=False, row=1, col=col)
            if col == 1:  # in the legend the dot is filled, even where the first method rests on one seed
                dot = {"color": COLORS.get(family, INK), "size": 9}
                full = {"x": [None], "y": [None], "mode": "markers", "marker": dot}
                figure.add_scatter(**full, name=name, legendgroup=family, row=1, col=1)
            _arrows(figure, {t: d for t, d in own.items() if t not in inside}, edge, COLORS.get(family, INK), col)
        figure.add_vline(x=0, line={"color": INK, "width": 1}, layer="below", row=1, col=col)
        figure.update_xaxes(range=[-edge, edge], tickvals=[-edge / 2, 0, edge / 2], zeroline=False, col=col)
    figure.update_xaxes(title={"text": f"difference to {rival}", "font": {"size": 12}}, tickangle=0)
    figure.update_yaxes(categoryorder="array", categoryarray=list(rows)[::-1], range=[-0.6, len(rows) - 0.4])
    figure.update_annotations(selector={"xanchor": "center"}, font_size=13)
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "yref": "container", "y": 0.01, "yanchor": "bottom"}
    size = {"height": 150 + 21 * len(rows), "width": 260 + 140 * len(titles), "margin_b": 85}
    return figure.update_layout(**LAYOUT, **size, legend=legend)


def _dots(points: Mapping[str, Mapping], color: str, single: Collection[str]) -> dict:
    """The settings of a scatter of differences with their intervals."""
    numbers = [(d["difference"], *d["interval"]) for d in points.values()]
    bars = {"thickness": 1.5, "width": 3, "symmetric": False}
    bars |= {"array": [round(high - d, 4) for d, _, high in numbers]}
    bars |= {"arrayminus": [round(d - low, 4) for d, low, _ in numbers]}
    symbols = ["circle-open" if title in single else "circle" for title in points] or ["circle"]
    look = {"color": color, "size": 9, "symbol": symbols, "line": {"width": 2, "color": color}}
    values = {"x": [round(d, 4) for d, *_ in numbers], "y": list(points)}
    return {**values, "mode": "markers", "marker": look, "error_x": bars, "hovertemplate": "%{y}: %{x:+.3f}"}


def _arrows(figure: go.Figure, points: Mapping[str, Mapping], edge: float, color: str, col: int) -> None:
    """An arrow at the edge of a panel, and the number, for each difference beyond it."""
    for title, d in points.items():
        right = d["difference"] > 0
        text = f"{d['difference']:+.2f} ▶" if right else f"◀ {d['difference']:+.2f}"
        place = {"x": edge if right else -edge, "xanchor": "right" if right else "left", "y": title, "showarrow": False}
        figure.add_annotation(text=text.replace("-", "−"), font={"color": color, "size": 12}, **place, row=1, col=col)
