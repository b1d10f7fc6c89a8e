"""Figures (plotly) and the τ explorer (ipywidgets). They need predictions and metrics only, no model."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from . import metrics
from .prediction import METRICS, Scores, score
from .sweep import TauSweep

__all__ = ["COLORS", "TauExplorer", "reliability_figure", "table_html", "tradeoff_figure"]

COLORS = {"ivon": "#1f5fbf", "linear": "#7fa7dd", "adamw": "#d9822b", "before": "#8a8f98", "now": "#c2255c"}
TITLES = {"acc": "accuracy ↑", "ece": "ECE ↓", "nll": "NLL ↓", "brier": "Brier ↓"}
SPANS = {"acc": 0.1, "ece": 0.1, "nll": 0.2, "brier": 0.1}  # axes show at least so much, so that noise looks small
INK = "#1c2733"
LAYOUT = {
    "template": "plotly_white",
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
    "margin": {"l": 55, "r": 15, "t": 40, "b": 50},
    "hoverlabel": {"font": {"size": 13}},
}
MEAN = "τ = 0, the mean"
CAPTION = "Bars on the dotted line are calibrated, below it overconfident. Darker bars hold more questions."
AXIS = {"standoff": 6, "font": {"size": 14}}
STYLE = """
.ivon table { border-collapse: collapse; margin: 6px 0; font-size: 14px; line-height: 1.5 }
.ivon th, .ivon td { padding: 4px 18px 4px 0; text-align: right; border: 0; font-variant-numeric: tabular-nums }
.ivon th:first-child, .ivon .text { text-align: left }
.ivon th:first-child { min-width: 170px } .ivon thead th { white-space: nowrap }
.ivon thead th { border-bottom: 2px solid currentColor }
.ivon tbody tr + tr > * { border-top: 1px solid #8885 }
.ivon .ci { white-space: nowrap } .ivon .ci, .ivon .note { opacity: .7; font-size: 12px }
.ivon .note { margin: 2px 0 8px } .ivon p { line-height: 1.5 }
"""


def tradeoff_figure(sweep: TauSweep, tau: float = 1.0, samples: int | None = None) -> go.Figure:
    """Accuracy, ECE, NLL and Brier score against τ (Figure 1 of Cong et al. 2024), with a marker at one τ.

    Args:
        sweep: predictions at several τ.
        tau: where the marker is: a sampled τ, or, with a linearised Gaussian, any τ.
        samples: number of draws; default: all.

    Returns:
        Four panels. Per panel: the sampled points, the linearised curve if there is one, the marker.
    """
    titles = [f"<b>{TITLES[name]}</b>" for name in METRICS]
    figure = make_subplots(2, 2, subplot_titles=titles, vertical_spacing=0.16, horizontal_spacing=0.13)
    sampled, taus = sweep.curves(samples), line_taus(sweep)
    line = sweep.linear_curves(taus) if sweep.linear is not None else None
    at = sweep.scores(tau, samples, linear=tau not in sweep.taus and line is not None, intervals=False)
    count = sweep.samples if samples is None else samples
    for k, name in enumerate(METRICS):
        place = {"row": k // 2 + 1, "col": k % 2 + 1, "showlegend": k == 0}
        hover = f"τ = %{{x}}<br>{TITLES[name][:-2]} %{{y:.3f}}"
        if line is not None:
            figure.add_scatter(
                x=taus, y=_round(line[name]), mode="lines", name="linearised", legendgroup="linear",
                line={"color": COLORS["linear"], "dash": "dash"}, hovertemplate=hover, **place,
            )  # fmt: skip
        figure.add_scatter(
            x=sweep.taus, y=_round(sampled[name]), mode="markers+lines", name=draws_text(count), legendgroup="ivon",
            line={"color": COLORS["ivon"]}, hovertemplate=hover, **place,
        )  # fmt: skip
        figure.add_scatter(
            x=[tau], y=[round(at[name], 4)], mode="markers", name=f"τ = {tau:g}", legendgroup="now",
            marker={"color": COLORS["now"], "size": 13, "line": {"color": "white", "width": 2}},
            hovertemplate=f"{hover}<extra></extra>", **place,
        )  # fmt: skip
    figure.update_xaxes(range=[-0.04 * taus[-1], 1.04 * taus[-1]], dtick=0.25 if taus[-1] <= 1.5 else None)
    figure.update_xaxes(title={"text": "τ", **AXIS}, row=2)
    set_ranges(figure, sampled, line)
    figure.update_annotations(font_size=14)
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.17, "yanchor": "top"}
    return figure.update_layout(**LAYOUT, height=470, legend=legend)


def line_taus(sweep: TauSweep) -> tuple[float, ...]:
    """Where the linearised curve is drawn: from 0 to 1, or as far as the draws go."""
    end = max(1.0, sweep.taus[-1])
    return tuple(round(end * i / 20, 4) for i in range(21))


def set_ranges(figure: go.Figure, *curves: Mapping[str, Tensor] | None) -> None:
    """Make every panel hold its curves, and no range narrower than ``SPANS``: else an axis would magnify noise."""
    for k, name in enumerate(METRICS):
        values = torch.cat([c[name].flatten() for c in curves if c is not None])
        figure.update_yaxes(range=axis_range(name, values), nticks=6, row=k // 2 + 1, col=k % 2 + 1)


def axis_range(name: str, values: Tensor) -> list[float]:
    """A range that holds a metric's values and is no narrower than ``SPANS``."""
    low, high = float(values.min()), float(values.max())
    pad = max(0.1 * (high - low), (SPANS[name] - (high - low)) / 2)
    return [round(low - pad, 4), round(high + pad, 4)]


def reliability_figure(predictions: Mapping[str, tuple[Tensor, Tensor]], bins: int = metrics.BINS) -> go.Figure:
    """Reliability diagrams side by side: accuracy per bin of confidence, the diagonal, and how full the bins are.

    Args:
        predictions: title → (probabilities ``[N, C]``, labels ``[N]``).
        bins: number of equal-width bins.
    """
    titles = [f"<b>{html.escape(title)}</b>" for title in predictions]
    figure = make_subplots(1, len(predictions), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.04)
    centre = [(b + 0.5) / bins for b in range(bins)]
    hover = f"confidence %{{x:.2f}} ± {0.5 / bins:.2f}<br>accuracy %{{y:.2f}}<br>questions %{{customdata}}"
    for k, (title, (probs, labels)) in enumerate(predictions.items(), start=1):
        figure.add_bar(
            x=centre, width=0.92 / bins, **reliability_bars(probs, labels, bins), name=title, showlegend=False,
            hovertemplate=f"{hover}<extra></extra>", row=1, col=k,
        )  # fmt: skip
        figure.add_scatter(
            x=[0, 1], y=[0, 1], mode="lines", line={"color": "#444", "dash": "dot", "width": 1.5},
            showlegend=False, hoverinfo="skip", row=1, col=k,
        )  # fmt: skip
    figure.update_xaxes(range=[0, 1], dtick=0.25, title={"text": "confidence", **AXIS})
    figure.update_yaxes(range=[0, 1.02], dtick=0.25, ticklabelstandoff=4)
    figure.update_yaxes(title={"text": "accuracy", **AXIS}, col=1)
    figure.update_annotations(font_size=14)
    return figure.update_layout(**LAYOUT, height=340, bargap=0)


def reliability_bars(probs: Tensor, labels: Tensor, bins: int = metrics.BINS) -> dict:
    """The bars of a reliability diagram for plotly: accuracy (``y``), number of questions (``customdata``), colour.

    The fuller a bin, the darker its bar.
    """
    table = metrics.reliability(probs.double(), labels, bins)
    shade = (table.weight / table.weight.max()).sqrt()
    colors = [f"rgba(31, 95, 191, {0.15 + 0.8 * float(a):.2f})" if a > 0 else "rgba(0,0,0,0)" for a in shade]
    counts = (table.weight * len(labels)).round().long().tolist()
    return {"y": _round(table.accuracy.nan_to_num(0.0)), "customdata": counts, "marker": {"color": colors}}


def table_html(rows: Mapping[str, Scores]) -> str:
    """A table ACC · ECE · NLL · Brier with 95 % intervals in HTML."""
    head = "".join(f"<th>{TITLES[name]}</th>" for name in METRICS)
    body = []
    for title, scores in rows.items():
        cells = [f"<td data-metric='{name}'>{cell_html(scores, name)}</td>" for name in METRICS]
        body.append(f"<tr><th>{html.escape(title)}</th>{''.join(cells)}</tr>")
    return (
        f"<style>{STYLE}</style><div class='ivon'><table><thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table>"
        f"<p class='note'>In brackets: 95 % bootstrap interval over questions. ECE with {metrics.BINS} bins.</p></div>"
    )


class TauExplorer:
    """A slider for τ, a dial for the number of draws, and what they do to accuracy and calibration.

    Args:
        sweep: predictions at several τ. With a linearised Gaussian τ moves continuously; without, along the grid.
        questions: to list those whose answer flips against τ = 0.

    Set ``explorer.tau``, ``explorer.samples`` or ``explorer.linear`` from code, or move the controls; ``scores`` are
    the metrics shown. In a notebook, make it the last line of a cell; where there is no kernel, ``explorer.figure`` and
    ``sweep.to_html(path)`` show the same.
    """

    def __init__(self, sweep: TauSweep, questions: Sequence | None = None):
        import ipywidgets as widgets

        self.sweep, self.questions = sweep, questions
        start, narrow = sweep.taus[-1], {"description_width": "initial"}
        self._tau = widgets.SelectionSlider(
            options=[(f"{t:g}", t) for t in sweep.taus], value=start, description="τ", style=narrow
        )
        self._any_tau = widgets.FloatSlider(
            value=start, min=0, max=line_taus(sweep)[-1], step=0.01, description="τ", style=narrow
        )
        self._samples = widgets.IntSlider(
            value=sweep.samples, min=1, max=sweep.samples, description="draws S", style=narrow
        )
        options = ["sampled"] + (["linearised"] if sweep.linear is not None else [])
        self._mode = widgets.ToggleButtons(options=options, style={"button_width": "90px"})
        self._mode.layout.display = None if len(options) > 1 else "none"
        self._table, self._flips = widgets.HTML(), widgets.HTML()
        self.figure = go.FigureWidget(tradeoff_figure(sweep, start))
        # one range for any number of draws: then the curves are seen to move
        line = sweep.linear_curves(line_taus(sweep)) if sweep.linear is not None else None
        set_ranges(self.figure, *(sweep.curves(s + 1) for s in range(sweep.samples)), line)
        self.reliability = go.FigureWidget(reliability_figure({f"τ = {start:g}": (self._probs(), sweep.labels)}))
        self._mean = mean_probabilities(sweep)
        self._mean_scores = None if self._mean is None else score(self._mean, sweep.labels)
        self._show_slider()
        for control in (self._tau, self._any_tau, self._samples):
            control.observe(self._redraw, names="value")
        self._mode.observe(self._change_mode, names="value")

        # given widths: a figure is drawn before the page knows how much room it has
        self.figure.update_layout(width=570)
        self.reliability.update_layout(width=370, height=390)
        caption = widgets.HTML(f"<div class='ivon'><p class='note'>{CAPTION}</p></div>", layout={"width": "370px"})
        wrap = {"flex_flow": "row wrap", "align_items": "center", "overflow": "visible"}
        self.widget = widgets.VBox(
            [
                widgets.HBox(
                    [self._tau, self._any_tau, self._samples, self._mode],
                    layout={**wrap, "grid_gap": "4px 24px", "margin": "8px 0 4px"},
                ),
                self._table,
                widgets.HBox([self.figure, widgets.VBox([self.reliability, caption])], layout=wrap),
                self._flips,
            ]
        )

    @property
    def tau(self) -> float:
        """τ now. In sampled mode it must be on the grid."""
        return self._any_tau.value if self.linear else self._tau.value

    @tau.setter
    def tau(self, value: float) -> None:
        if self.linear:
            if not 0 <= value <= self._any_tau.max:
                raise ValueError(f"tau={value}; the slider goes from 0 to {self._any_tau.max:g}.")
            self._any_tau.value = value
        elif value in self.sweep.taus:
            self._tau.value = value
        else:
            grid = ", ".join(f"{t:g}" for t in self.sweep.taus)
            raise ValueError(f"tau={value} was not sampled (grid: {grid}); set explorer.linear = True for any τ.")

    @property
    def samples(self) -> int:
        """Number of draws averaged (sampled mode)."""
        return self._samples.value

    @samples.setter
    def samples(self, value: int) -> None:
        if not 1 <= value <= self.sweep.samples:
            raise ValueError(f"samples={value}; the sweep has {self.sweep.samples} draws.")
        self._samples.value = value

    @property
    def linear(self) -> bool:
        """Whether the linearised Gaussian is shown instead of exact draws."""
        return self._mode.value == "linearised"

    @linear.setter
    def linear(self, value: bool) -> None:
        if value and self.sweep.linear is None:
            raise ValueError("This sweep has no linearised Gaussian: pass linear=linearized(run, questions).")
        self._mode.value = "linearised" if value else "sampled"

    @property
    def marker(self) -> dict[str, tuple[float, float]]:
        """Where the marker is in each panel, metric → (τ, value)."""
        traces = [t for t in self.figure.data if t.legendgroup == "now"]
        return {name: (t.x[0], t.y[0]) for name, t in zip(METRICS, traces)}

    def _probs(self) -> Tensor:
        return self.sweep.at(self.tau, None if self.linear else self.samples, linear=self.linear)

    def _change_mode(self, _=None) -> None:
        # the other slider takes over where this one was: exactly, or at the nearest τ that was sampled
        if self.linear:
            self._any_tau.value = self._tau.value
        else:
            self._tau.value = min(self.sweep.taus, key=lambda tau: abs(tau - self._any_tau.value))
        self._show_slider()

    def _show_slider(self) -> None:
        self._tau.layout.display = "none" if self.linear else None
        self._samples.layout.display = "none" if self.linear else None
        self._any_tau.layout.display = None if self.linear else "none"
        self._redraw()

    def _redraw(self, _=None) -> None:
        tau, probs = self.tau, self._probs()
        self.scores = score(probs, self.sweep.labels)
        kind = "linearised" if self.linear else draws_text(self.samples)
        rows = {MEAN: self._mean_scores} if self._mean_scores else {}
        self._table.value = table_html({**rows, f"τ = {tau:g}, {kind}": self.scores})
        curves = self.sweep.curves(self.samples)
        with self.figure.batch_update():
            for name, trace in zip(METRICS, (t for t in self.figure.data if t.legendgroup == "now")):
                trace.update(x=[tau], y=[round(self.scores[name], 4)], name=f"τ = {tau:g}")
            for name, trace in zip(METRICS, (t for t in self.figure.data if t.legendgroup == "ivon")):
                trace.update(y=_round(curves[name]), name=draws_text(self.samples))
        with self.reliability.batch_update():
            self.reliability.data[0].update(reliability_bars(probs, self.sweep.labels))
            self.reliability.layout.annotations[0].text = f"<b>τ = {tau:g}, {kind}</b>"
        self._flips.value = flips_html(self.sweep, probs, self.questions)

    def _repr_mimebundle_(self, **kwargs):
        return self.widget._repr_mimebundle_(**kwargs)


def mean_probabilities(sweep: TauSweep) -> Tensor | None:
    """Probabilities ``[N, C]`` at τ = 0, or None if the sweep does not know them."""
    if sweep.taus[0] == 0:
        return sweep.at(0.0)
    return sweep.at(0.0, linear=True) if sweep.linear is not None else None


def flips_html(sweep: TauSweep, probs: Tensor, questions: Sequence | None, limit: int = 6) -> str:
    """The questions whose answer differs from the one at the mean; nothing if the mean's answers are not known."""
    mean = mean_probabilities(sweep)
    if mean is None:
        return ""
    before, after = mean.argmax(-1), probs.argmax(-1)
    flipped = torch.nonzero(before != after).flatten().tolist()
    gained = sum(int(after[i] == sweep.labels[i]) for i in flipped)
    lost = sum(int(before[i] == sweep.labels[i]) for i in flipped)
    text = (
        f"<p>{len(flipped)} of {len(after)} answers differ from the mean's: {gained} became right, {lost} became wrong"
        f", {len(flipped) - gained - lost} stayed wrong.</p>"
    )
    if questions is not None and flipped:
        rows = "".join(
            f"<tr><td class='text'>{html.escape(questions[i].stem)}</td>"
            f"<td class='text'>{_choice(questions[i], before[i], sweep.labels[i])}</td>"
            f"<td class='text'>{_choice(questions[i], after[i], sweep.labels[i])}</td></tr>"
            for i in flipped[:limit]
        )
        head = "".join(f"<th class='text'>{title}</th>" for title in ("question", "at the mean", "now"))
        more = f"<p class='note'>… and {len(flipped) - limit} more.</p>" if len(flipped) > limit else ""
        text += f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}"
    return f"<div class='ivon'>{text}</div>"


def draws_text(count: int) -> str:
    return "1 draw" if count == 1 else f"{count} draws"


def _choice(question, choice: Tensor, label: Tensor) -> str:
    return f"{html.escape(question.choices[int(choice)])} {'✓' if choice == label else '✗'}"


def cell_html(scores: Scores, name: str) -> str:
    low, high = scores.intervals.get(name, (None, None))
    span = f" <span class='ci'>[{low:.3f}, {high:.3f}]</span>" if low is not None else ""
    return f"{scores[name]:.3f}{span}"


def _round(values: Tensor) -> list[float]:
    return [round(float(v), 4) for v in values]
