"""Calibration in pictures: reliability in each method's colour, the floor of ECE, and a slider for the temperature."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from ..evaluation import BINS, all_metrics, ece, ece_floor, nll
from .figures import reliability_bars, reliability_figure
from .style import AXIS, COLORS, INK, LAYOUT, color_of, rounded

TEMPERATURES = tuple(round(0.5 + 0.1 * i, 1) for i in range(26))  # 0.5, 0.6 … 3


def calibration_figure(predictions: Mapping[str, tuple[Tensor, Tensor]]) -> go.Figure:
    """Reliability diagrams in the colours of their methods, with the ECE beside each title.

    Args:
        predictions: title → (probabilities ``[N, C]``, labels ``[N]``); unknown methods are dark.
    """
    named = {f"{title}: ECE {float(ece(p.double(), y)):.3f}": (p, y) for title, (p, y) in predictions.items()}
    return reliability_figure(named)


def floor_figure(floors: Mapping[tuple[int, int], tuple], measured: Mapping[str, Sequence[float]]) -> go.Figure:
    """The ECE of a perfect model against the number of questions, bars up to its 95 % quantile, and measured values.

    Args:
        floors: (number of questions, bins) → mean and 95 % quantile, as :func:`~ivon_lora_lite.ece_floor` returns them.
        measured: title → values of ECE on the largest number of questions, one per seed.
    """
    figure, sizes = go.Figure(), sorted({n for n, _ in floors})
    for bins, dash, shift in zip(sorted({bins for _, bins in floors}), ("solid", "dot", "dash"), (1.0, 1.06, 1.12)):
        mean, high = zip(*(floors[n, bins] for n in sizes))
        bars = {"array": rounded(h - m for h, m in zip(high, mean)), "arrayminus": [0] * len(sizes), "width": 6}
        line = {"line": {"color": INK, "dash": dash}, "error_y": bars, "name": f"perfect, {bins} bins"}
        figure.add_scatter(x=[n * shift for n in sizes], y=rounded(mean), mode="markers+lines", **line)
    for k, (title, values) in enumerate(measured.items()):
        dots = {"color": color_of(title), "size": 13, "line": {"width": 2, "color": color_of(title)}}
        place = {"x": [sizes[-1] * (1.2 + 0.1 * k)] * len(values), "y": rounded(values), "mode": "markers"}
        symbol = "circle-open" if "@" in title else "diamond" if "+" in title else "circle"
        figure.add_scatter(**place, name=title, marker={**dots, "symbol": symbol})
    figure.update_xaxes(type="log", tickvals=sizes, title={"text": "number of test questions", **AXIS})
    figure.update_yaxes(rangemode="tozero", title={"text": "ECE", **AXIS})
    return figure.update_layout(**LAYOUT, height=340)


class TemperatureExplorer:
    """Sliders for the temperature T and the number of bins: the reliability diagram, NLL and ECE of one method.

    Args:
        predictions, labels: title → probabilities ``[N, C]``, and ``[N]``.

    From code set the ``value`` of ``temperature``, ``bins`` or ``method``; ``scores`` are the metrics shown.
    """

    def __init__(self, predictions: Mapping[str, Tensor], labels: Tensor):
        import ipywidgets as widgets

        self.logits, self.labels = {title: p.double().log() for title, p in predictions.items()}, labels
        self.temperature = widgets.SelectionSlider(options=TEMPERATURES, value=1.0, description="T")
        self.bins = widgets.IntSlider(BINS, min=1, max=50, description="bins")
        self.method = widgets.ToggleButtons(options=list(predictions), style={"button_width": "120px"})
        figure = make_subplots(2, 2, specs=[[{"rowspan": 2}, {}], [None, {}]], horizontal_spacing=0.14)
        figure.add_bar(showlegend=False, row=1, col=1)
        figure.add_shape(type="line", x0=0, y0=0, x1=1, y1=1, line_dash="dot", row=1, col=1)
        dot = {"mode": "markers", "marker": {"color": COLORS["now"], "size": 15}, "showlegend": False}
        for row, metric in enumerate((nll, ece), start=1):
            for title in predictions:
                values = rounded(metric(self.at(title, t), labels) for t in TEMPERATURES)
                look = {"color": color_of(title), "dash": "dash" if "@" in title else "solid"}
                place = {"row": row, "col": 2, "legendgroup": title, "showlegend": row == 1}
                figure.add_scatter(x=TEMPERATURES, y=values, mode="lines", name=title, line=look, **place)
            figure.add_scatter(**dot, row=row, col=2)
            figure.update_yaxes(title={"text": ("NLL", "ECE, 10 bins")[row - 1], **AXIS}, row=row, col=2)
        figure.update_xaxes(title={"text": "temperature T", **AXIS}, row=2, col=2)
        figure.update_xaxes(title={"text": "confidence", **AXIS}, range=[0, 1], row=1, col=1)
        figure.update_yaxes(title={"text": "accuracy", **AXIS}, range=[0, 1.02], row=1, col=1)
        figure.update_layout(**LAYOUT, width=780, height=430, bargap=0, legend={"orientation": "h", "y": -0.16})
        self.figure = go.FigureWidget(figure)
        for control in (self.temperature, self.bins, self.method):
            control.observe(self._redraw, names="value")
        self._redraw()
        self.widget = widgets.VBox([self.method, widgets.HBox([self.temperature, self.bins]), self.figure])

    def at(self, title: str, temperature: float) -> Tensor:
        """Probabilities of a method with its logits divided by the temperature, ``[N, C]``."""
        return (self.logits[title] / temperature).softmax(-1)

    def _redraw(self, _=None) -> None:
        title, t, bins = self.method.value, self.temperature.value, self.bins.value
        probs = self.at(title, t)
        self.scores = {name: float(value) for name, value in all_metrics(probs, self.labels, bins).items()}
        bars = reliability_bars(probs, self.labels, bins, color_of(title))
        bars |= {"x": [(b + 0.5) / bins for b in range(bins)], "width": 0.92 / bins}
        self.figure.data[0].update(**bars)  # not in one batch: the browser would lose what the other traces lack
        with self.figure.batch_update():
            for dot, metric in zip(self.figure.select_traces({"mode": "markers"}), (nll, ece)):
                dot.update(x=[t], y=rounded([metric(probs, self.labels)]))
        shown = ", ".join(f"{name.upper()} <b>{value:.3f}</b>" for name, value in self.scores.items())
        text = f"{title}, T = {t:g}: {shown} (ECE's floor {ece_floor(probs, bins)[0]:.3f})"
        self.figure.update_layout(title={"text": text, "font": {"size": 14}, "x": 0.5, "y": 0.98})

    def _repr_mimebundle_(self, **kwargs):
        return self.widget._repr_mimebundle_(**kwargs)
