"""Doubt that decides, in pictures: handing over with a slider, histograms of doubt, and doubt over a plane."""

import html
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from ..evaluation import Abstention, Predictions, abstain, doubts, right_answers, risk_coverage
from .style import AXIS, COLORS, INK, LAYOUT, color_of, rounded, short
from .tables import STYLE
from .toys import percent

COVERAGES = tuple(round(0.05 * k, 2) for k in range(2, 21))  # 0.1, 0.15 … 1
POINTS = 90  # of a curve
PURPLE = [[0, "#ffffff"], [1, "#7b4fa3"]]  # a doubt, and no optimizer


def risk_figure(runs: Mapping[str, Sequence[Predictions]]) -> go.Figure:
    """Share of wrong answers among the most confident ones, against how many are answered; from a coverage of 0.1 on.

    Args:
        runs: title → predictions of each seed on the same N questions. A thin line for each seed, a thick one for
            their mean; titles that start with ``AdamW`` or ``IVON`` have their colours, those with an @ or a + dashes.
    """
    figure = go.Figure()
    for title, row in runs.items():
        curves = torch.stack([risk_coverage(doubts(p)["confidence"], right_answers(p))[1] for p in row])  # [seeds, N]
        count = curves.shape[1]
        kept = torch.linspace(0.1 * count, count, POINTS).round().long() - 1
        x, dash = rounded((kept + 1) / count), "dash" if "@" in title or "+" in title else "solid"
        line = {"color": color_of(title), "dash": dash}
        for curve in curves:
            thin = {"line": {**line, "width": 1}, "opacity": 0.6, "showlegend": False, "hoverinfo": "skip"}
            figure.add_scatter(x=x, y=rounded(curve[kept]), mode="lines", legendgroup=title, **thin)
        mean = rounded(curves.mean(0)[kept])
        figure.add_scatter(x=x, y=mean, mode="lines", name=title, legendgroup=title, line={**line, "width": 2.5})
    figure.update_xaxes(title={"text": "coverage: share of the questions that is answered", **AXIS}, tickformat=".0%")
    figure.update_yaxes(title={"text": "risk: share of these that is wrong", **AXIS}, tickformat=".0%", range=[0, None])
    return figure.update_layout(**LAYOUT, height=380, legend={"x": 0.02, "y": 0.98})


def doubt_maps_figure(
    maps: Mapping[str, tuple[Tensor, Tensor, Tensor]], x: Tensor, y: Tensor, most: float = 1.0
) -> go.Figure:
    """Panels of a doubt over a plane, from white (0) to purple (log 2, a coin, or a share of it), two in a row.

    Args:
        maps: title → doubt in nats ``[H, W]``, labelled points ``[n, 2]`` and their classes 0 and 1 ``[n]``.
        x, y: the evenly spaced grid, ``[W]`` and ``[H]``.
        most: the share of log 2 that is purple.
    """
    rows = (len(maps) + 1) // 2
    titles, spacing = [f"<b>{title}</b>" for title in maps], {"horizontal_spacing": 0.08, "vertical_spacing": 0.14}
    figure = make_subplots(rows, 2, subplot_titles=titles, **spacing)
    scale = {"zmin": 0, "zmax": 100 * most, "colorscale": PURPLE, "zsmooth": "best"}
    scale["colorbar"] = {"title": "% of log 2"}
    for k, (values, points, labels) in enumerate(maps.values()):
        place = {"row": k // 2 + 1, "col": k % 2 + 1}
        z = percent(values / torch.log(torch.tensor(2.0)))
        figure.add_heatmap(x=short(x), y=short(y), z=z, showscale=k == 0, **scale, **place)
        for c, symbol in enumerate(("circle-open", "circle")):
            dots, look = points[labels == c], {"symbol": symbol, "color": INK, "size": 5}
            dots = {"x": short(dots[:, 0]), "y": short(dots[:, 1]), "mode": "markers", "marker": look}
            figure.add_scatter(**dots, showlegend=False, hoverinfo="skip", **place)
    figure.update_xaxes(range=[float(x[0]), float(x[-1])]).update_xaxes(title={"text": "x₁", **AXIS}, row=rows)
    figure.update_yaxes(range=[float(y[0]), float(y[-1])]).update_yaxes(title={"text": "x₂", **AXIS}, col=1)
    return figure.update_layout(**LAYOUT, height=60 + 220 * rows)


class CoverageExplorer:
    """A slider for the share of questions that a model answers: its accuracy on them, and some that it hands over.

    Args:
        runs: title → predictions on the same questions.
        questions: in the order of the predictions, with ``stem``, ``choices`` and ``answer``.
        shown: how many of the questions that are handed over are written out, the least doubtful ones first.

    From code set the ``value`` of ``coverage`` or ``method``; ``decision`` is what :func:`~ivon_lora_lite.abstain` says
    there, and ``listed`` has the indices of the questions written out.
    """

    def __init__(self, runs: Mapping[str, Predictions], questions: Sequence, shown: int = 3):
        import ipywidgets as widgets

        self.runs, self.questions, self.shown = runs, questions, shown
        options = [(f"{c:.0%}", c) for c in COVERAGES]
        self.coverage = widgets.SelectionSlider(options=options, value=0.8, description="coverage")
        self.method = widgets.ToggleButtons(options=list(runs), style={"button_width": "170px"})
        self.said = widgets.HTML(layout={"width": "760px"})
        self.figure = go.FigureWidget(risk_figure({title: [p] for title, p in runs.items()}))
        self.figure.add_scatter(x=[], y=[], mode="markers", name="now", marker={"color": COLORS["now"], "size": 14})
        self.figure.update_layout(width=760, height=360)
        for control in (self.coverage, self.method):
            control.observe(self._redraw, names="value")
        self._redraw()
        self.widget = widgets.VBox([widgets.HBox([self.coverage, self.method]), self.figure, self.said])

    def _redraw(self, _=None) -> None:
        title, made = self.method.value, self.runs[self.method.value]
        self.decision: Abstention = abstain(made, self.coverage.value)
        right, handed, accuracy = right_answers(made), self.decision.handed_over, self.decision.accuracy
        self.figure.data[-1].update(x=[float((~handed).double().mean())], y=[1 - accuracy])
        self.listed = [i for i in self.decision.doubt.argsort(stable=True).tolist() if handed[i]][: self.shown]
        given, caught = (int((~right[which]).sum()) for which in (~handed, handed))
        text = (
            f"<p>{title} answers <b>{int((~handed).sum())} of {len(handed)}</b> questions, with a confidence of at "
            f"least {1 - self.decision.threshold:.3f}: <b>{accuracy:.1%}</b> right, <b>{given}</b> wrong. A person "
            f"gets {int(handed.sum())}, on which it would have been wrong <b>{caught}</b> times.</p>"
        )
        rows = "".join(f"<tr>{self._cells(i, made, right)}</tr>" for i in self.listed)
        head = "".join(f"<th class='text'>{t}</th>" for t in ("handed over, next to the threshold", "it would say", ""))
        text += f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if rows else ""
        self.said.value = f"<style>{STYLE}</style><div class='ivon'>{text}</div>"

    def _cells(self, i: int, made: Predictions, right: Tensor) -> str:
        (confidence, answer), question = made.ensemble()[i].max(0), self.questions[i]
        texts = question.stem, f"{question.choices[int(answer)]} {'✓' if right[i] else '✗'}"
        return "".join(f"<td class='text'>{html.escape(t)}</td>" for t in texts) + f"<td>{confidence:.3f}</td>"

    def _repr_mimebundle_(self, **kwargs):
        return self.widget._repr_mimebundle_(**kwargs)
