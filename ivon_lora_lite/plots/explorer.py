"""The τ explorer: a slider on predictions (ipywidgets). It needs predictions and metrics only, no model."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from torch import Tensor

from ..evaluation import METRICS, TauSweep, score
from .figures import (
    curve_text,
    draws_text,
    first_tau,
    line_taus,
    path_figure,
    reliability_bars,
    reliability_figure,
    set_ranges,
    tradeoff_figure,
)
from .style import rounded
from .tables import flips_html, mean_probabilities, table_html

MEAN = "τ = 0, the mean"
CAPTION = "Bars on the dotted line are calibrated, below it overconfident. Darker bars hold more questions."


class TauExplorer:
    """A slider for τ, a dial for the number of draws, and what they do to accuracy and calibration.

    Args:
        sweep: predictions at several τ. With a linearised Gaussian τ moves continuously; without, along the grid.
        questions: to list those whose answer flips against τ = 0.
        rivals: title → scores of other methods on the same questions, points beside the path of accuracy and NLL.

    Set ``explorer.tau``, ``explorer.samples`` or ``explorer.linear`` from code, or move the controls; ``scores`` are
    the metrics shown. In a notebook, make it the last line of a cell; where there is no kernel, ``explorer.figure`` and
    ``sweep_html(sweep, path)`` show the same.
    """

    def __init__(
        self,
        sweep: TauSweep,
        questions: Sequence | None = None,
        rivals: Mapping[str, Mapping[str, float]] | None = None,
    ):
        import ipywidgets as widgets

        self.sweep, self.questions = sweep, questions
        start, narrow = first_tau(sweep), {"description_width": "initial"}
        self._tau = widgets.SelectionSlider(
            options=[(f"{t:g}", t) for t in sweep.taus], value=start, description="τ", style=narrow
        )
        self._any_tau = widgets.FloatSlider(
            value=start, min=0, max=line_taus(sweep)[-1], step=0.01, description="τ", style=narrow
        )
        self._samples = widgets.IntSlider(
            value=sweep.fewest, min=1, max=sweep.samples, description="draws S", style=narrow
        )
        options = ["sampled"] + (["linearised"] if sweep.linear is not None else [])
        self._mode = widgets.ToggleButtons(options=options, style={"button_width": "90px"})
        self._mode.layout.display = None if len(options) > 1 else "none"
        self._table, self._flips = widgets.HTML(), widgets.HTML()
        self.figure = go.FigureWidget(tradeoff_figure(sweep, start))
        # one range for any number of draws: then the curves are seen to move
        set_ranges(self.figure, sweep, *(sweep.curves(s + 1) for s in range(sweep.samples)))
        self.reliability = go.FigureWidget(reliability_figure({f"τ = {start:g}": (self._probs(), sweep.labels)}))
        self.path = go.FigureWidget(path_figure(sweep, start, rivals))
        self._mean = mean_probabilities(sweep)
        self._mean_scores = None if self._mean is None else score(self._mean, sweep.labels)
        self._show_slider()
        for control in (self._tau, self._any_tau, self._samples):
            control.observe(self._redraw, names="value")
        self._mode.observe(self._change_mode, names="value")

        # given widths: a figure is drawn before the page knows how much room it has
        self.figure.update_layout(width=570)
        self.reliability.update_layout(width=370, height=390)
        self.path.update_layout(width=570, height=430)
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
                widgets.HBox([self.path, self._flips], layout=wrap),
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
        made = self.samples if self.linear else min(self.samples, self.sweep.drawn[self.sweep.taus.index(tau)])
        kind = "linearised" if self.linear else draws_text(made)
        rows = {MEAN: self._mean_scores} if self._mean_scores else {}
        self._table.value = table_html({**rows, f"τ = {tau:g}, {kind}": self.scores})
        curves = self.sweep.curves(self.samples)
        with self.figure.batch_update():
            for name, trace in zip(METRICS, (t for t in self.figure.data if t.legendgroup == "now")):
                trace.update(x=[tau], y=[round(self.scores[name], 4)], name=f"τ = {tau:g}")
        with self.figure.batch_update():  # a batch of its own: in one batch all traces need the same keys
            for name, trace in zip(METRICS, (t for t in self.figure.data if t.legendgroup == "ivon")):
                trace.update(y=rounded(curves[name]), name=curve_text(self.sweep, self.samples))
        self.path.data[0].update(x=rounded(curves["nll"]), y=rounded(curves["acc"]))
        with self.path.batch_update():
            at = {"x": [round(self.scores["nll"], 4)], "y": [round(self.scores["acc"], 4)]}
            self.path.data[-1].update(**at, hovertext=[f"τ = {tau:g}"])
        with self.reliability.batch_update():
            self.reliability.data[0].update(reliability_bars(probs, self.sweep.labels))
            self.reliability.layout.annotations[0].text = f"<b>τ = {tau:g}, {kind}</b>"
        self._flips.value = flips_html(self.sweep, probs, self.questions)

    def _repr_mimebundle_(self, **kwargs):
        return self.widget._repr_mimebundle_(**kwargs)
