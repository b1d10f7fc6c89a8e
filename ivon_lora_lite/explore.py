"""Figures (plotly) and the τ explorer (ipywidgets). They need predictions and metrics only, no model."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from . import metrics
from .prediction import METRICS, Scores
from .sweep import TauSweep

__all__ = ["COLORS", "TauExplorer", "reliability_figure", "table_html", "tradeoff_figure"]

COLORS = {"ivon": "#1f5fbf", "linear": "#7fa7dd", "adamw": "#d9822b", "before": "#8a8f98", "now": "#c2255c"}
TITLES = {"acc": "accuracy ↑", "nll": "NLL ↓", "ece": "ECE ↓", "brier": "Brier ↓"}
PANELS = ("acc", "nll", "ece", "brier")
LINE = tuple(i / 20 for i in range(21))  # where the linearised curve is drawn
LAYOUT = {
    "template": "plotly_white",
    "font": {"family": "system-ui, sans-serif", "size": 13},
    "margin": {"l": 50, "r": 20, "t": 50, "b": 45},
}


def tradeoff_figure(sweep: TauSweep, tau: float = 1.0, samples: int | None = None) -> go.Figure:
    """Accuracy, NLL, ECE and Brier score against τ (Figure 1 of Cong et al. 2024), with a marker at one τ.

    Args:
        sweep: predictions at several τ.
        tau: where the marker is.
        samples: number of draws; default: all.

    Returns:
        Four panels. Per panel: the sampled points, the linearised curve if there is one, the marker.
    """
    figure = make_subplots(2, 2, subplot_titles=[TITLES[name] for name in PANELS], vertical_spacing=0.16)
    sampled = sweep.curves(samples)
    line = sweep.linear_curves(LINE) if sweep.linear is not None else None
    count = sweep.samples if samples is None else samples
    for k, name in enumerate(PANELS):
        place = {"row": k // 2 + 1, "col": k % 2 + 1}
        if line is not None:
            figure.add_scatter(
                x=LINE, y=_round(line[name]), mode="lines", name="linearised", legendgroup="linear",
                line={"color": COLORS["linear"], "dash": "dash"}, showlegend=k == 0, **place,
            )  # fmt: skip
        figure.add_scatter(
            x=sweep.taus, y=_round(sampled[name]), mode="markers+lines", name=f"{count} draws", legendgroup="ivon",
            line={"color": COLORS["ivon"]}, showlegend=k == 0, **place,
        )  # fmt: skip
        start = sampled[name][sweep.taus.index(tau)] if tau in sweep.taus else sweep.linear_curves([tau])[name][0]
        figure.add_scatter(
            x=[tau], y=[round(float(start), 4)], mode="markers", name=f"τ = {tau:g}", legendgroup="now",
            marker={"color": COLORS["now"], "size": 13, "line": {"color": "white", "width": 2}},
            showlegend=k == 0, **place,
        )  # fmt: skip
    figure.update_xaxes(title_text="τ", row=2, range=[-0.05, max(1.0, sweep.taus[-1]) + 0.05])
    figure.update_xaxes(row=1, range=[-0.05, max(1.0, sweep.taus[-1]) + 0.05])
    legend = {"orientation": "h", "y": -0.14, "x": 0}
    return figure.update_layout(**LAYOUT, height=480, legend=legend)


def reliability_figure(predictions: Mapping[str, tuple[Tensor, Tensor]], bins: int = metrics.BINS) -> go.Figure:
    """Reliability diagrams side by side: accuracy per bin of confidence, the diagonal, and how full the bins are.

    Args:
        predictions: title → (probabilities ``[N, C]``, labels ``[N]``).
        bins: number of equal-width bins.
    """
    figure = make_subplots(1, len(predictions), subplot_titles=list(predictions), shared_yaxes=True)
    centre = [(b + 0.5) / bins for b in range(bins)]
    for k, (title, (probs, labels)) in enumerate(predictions.items(), start=1):
        heights, colors = reliability_bars(probs, labels, bins)
        figure.add_bar(
            x=centre, y=heights, width=0.92 / bins, marker={"color": colors}, name=title, showlegend=False,
            hovertemplate="confidence %{x:.2f}<br>accuracy %{y:.2f}<extra></extra>", row=1, col=k,
        )  # fmt: skip
        figure.add_scatter(
            x=[0, 1], y=[0, 1], mode="lines", line={"color": "#444", "dash": "dot", "width": 1},
            showlegend=False, hoverinfo="skip", row=1, col=k,
        )  # fmt: skip
    figure.update_xaxes(range=[0, 1], title_text="confidence")
    figure.update_yaxes(range=[0, 1.02])
    figure.update_yaxes(title_text="accuracy", col=1)
    return figure.update_layout(**LAYOUT, height=330, bargap=0)


def reliability_bars(probs: Tensor, labels: Tensor, bins: int = metrics.BINS) -> tuple[list[float], list[str]]:
    """Heights (accuracy) and colours (the fuller the bin, the darker) of a reliability diagram."""
    table = metrics.reliability(probs.double(), labels, bins)
    heights = _round(table.accuracy.nan_to_num(0.0))
    shade = (table.weight / table.weight.max()).sqrt()
    return heights, [f"rgba(31, 95, 191, {0.15 + 0.8 * float(a):.2f})" if a > 0 else "rgba(0,0,0,0)" for a in shade]


def table_html(rows: Mapping[str, Scores]) -> str:
    """A table ACC · ECE · NLL · Brier with 95 % intervals in HTML."""
    head = "".join(f"<th>{TITLES[name]}</th>" for name in METRICS)
    body = []
    for title, scores in rows.items():
        cells = [f"<td>{_cell(scores, name)}</td>" for name in METRICS]
        body.append(f"<tr><th style='text-align:left'>{html.escape(title)}</th>{''.join(cells)}</tr>")
    return (
        f"<table class='scores'><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        "<p class='note'>In brackets: 95 % bootstrap interval over questions. ECE with 10 bins.</p>"
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
        start = sweep.taus[-1]
        self._tau = widgets.SelectionSlider(options=[(f"{t:g}", t) for t in sweep.taus], value=start, description="τ")
        self._any_tau = widgets.FloatSlider(value=start, min=0, max=max(1.0, start), step=0.01, description="τ")
        self._samples = widgets.IntSlider(value=sweep.samples, min=1, max=sweep.samples, description="draws S")
        options = ["sampled"] + (["linearised"] if sweep.linear is not None else [])
        self._mode = widgets.ToggleButtons(options=options)
        self._table, self._flips = widgets.HTML(), widgets.HTML()
        self.figure = go.FigureWidget(tradeoff_figure(sweep, start))
        self.reliability = go.FigureWidget(reliability_figure({f"τ = {start:g}": (self._probs(), sweep.labels)}))
        self.reliability.update_layout(width=380)
        self._show_slider()
        for control in (self._tau, self._any_tau, self._samples):
            control.observe(self._redraw, names="value")
        self._mode.observe(self._show_slider, names="value")
        self._redraw()
        self.widget = widgets.VBox(
            [
                widgets.HBox([self._tau, self._any_tau, self._samples, self._mode]),
                self._table,
                widgets.HBox([self.figure, self.reliability]),
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
        return {name: (t.x[0], t.y[0]) for name, t in zip(PANELS, traces)}

    def _probs(self) -> Tensor:
        return self.sweep.at(self.tau, None if self.linear else self.samples, linear=self.linear)

    def _show_slider(self, _=None) -> None:
        self._tau.layout.display = "none" if self.linear else None
        self._samples.layout.display = "none" if self.linear else None
        self._any_tau.layout.display = None if self.linear else "none"
        self._redraw()

    def _redraw(self, _=None) -> None:
        tau, probs = self.tau, self._probs()
        self.scores = self.sweep.scores(tau, None if self.linear else self.samples, linear=self.linear)
        kind = "linearised" if self.linear else f"{self.samples} draws"
        self._table.value = table_html({f"τ = {tau:g}, {kind}": self.scores})
        curves = self.sweep.curves(self.samples)
        with self.figure.batch_update():
            for name, trace in zip(PANELS, (t for t in self.figure.data if t.legendgroup == "now")):
                trace.update(x=[tau], y=[round(self.scores[name], 4)], name=f"τ = {tau:g}")
            for name, trace in zip(PANELS, (t for t in self.figure.data if t.legendgroup == "ivon")):
                trace.update(y=_round(curves[name]), name=f"{self.samples} draws")
        heights, colors = reliability_bars(probs, self.sweep.labels)
        with self.reliability.batch_update():
            self.reliability.data[0].update(y=heights, marker={"color": colors})
            self.reliability.layout.annotations[0].text = f"τ = {tau:g}"
        self._flips.value = flips_html(self.sweep, probs, self.questions)

    def _repr_mimebundle_(self, **kwargs):
        return self.widget._repr_mimebundle_(**kwargs)


def flips_html(sweep: TauSweep, probs: Tensor, questions: Sequence | None, limit: int = 6) -> str:
    """The questions whose answer differs from the one at the mean."""
    mean = sweep.logits[0, 0] if sweep.taus[0] == 0 else sweep.linear.mean
    before, after = mean.argmax(-1), probs.argmax(-1)
    flipped = torch.nonzero(before != after).flatten().tolist()
    gained = sum(int(after[i] == sweep.labels[i]) for i in flipped)
    lost = sum(int(before[i] == sweep.labels[i]) for i in flipped)
    text = f"<p>{len(flipped)} answers differ from the mean's: {gained} became right, {lost} became wrong.</p>"
    if questions is None or not flipped:
        return text
    rows = "".join(
        f"<tr><td style='text-align:left'>{html.escape(questions[i].stem)}</td>"
        f"<td>{_choice(questions[i], before[i], sweep.labels[i])}</td>"
        f"<td>{_choice(questions[i], after[i], sweep.labels[i])}</td></tr>"
        for i in flipped[:limit]
    )
    return f"{text}<table><tr><th>question</th><th>at the mean</th><th>now</th></tr>{rows}</table>"


def _choice(question, choice: Tensor, label: Tensor) -> str:
    return f"{html.escape(question.choices[int(choice)])} {'✓' if choice == label else '✗'}"


def _cell(scores: Scores, name: str) -> str:
    low, high = scores.intervals.get(name, (None, None))
    span = f" <span class='ci'>[{low:.3f}, {high:.3f}]</span>" if low is not None else ""
    return f"{scores[name]:.3f}{span}"


def _round(values: Tensor) -> list[float]:
    return [round(float(v), 4) for v in values]
