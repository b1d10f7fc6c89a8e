"""What a posterior over LoRA's weights looks like: the learned σ by layer and factor."""

import re
from collections.abc import Mapping

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from ..posterior import GaussianPosterior
from .style import AXIS, COLORS, LAYOUT

QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}
FACTORS = {"A": COLORS["ivon"], "B": "#7b4fa3"}


def sigma_by_tensor(posterior: GaussianPosterior) -> dict[str, dict[str, float]]:
    """name → the 10 %, 50 % and 90 % quantile of σ = √v over a tensor's coordinates."""
    levels = torch.tensor(list(QUANTILES.values()))
    return {
        name: dict(zip(QUANTILES, v.flatten().float().sqrt().quantile(levels).tolist()))
        for name, v in posterior.variance.items()
    }


def sigma_figure(sigmas: Mapping[str, Mapping[str, float]], start: float | None = None) -> go.Figure:
    """The learned σ by layer: a panel per adapted module, a line per LoRA factor, a band from its 10 % to its 90 %.

    Args:
        sigmas: name → quantiles, from :func:`sigma_by_tensor`. Names are PEFT's: a layer's number, the module, then
            ``lora_A`` or ``lora_B``.
        start: the σ that all weights had before training, for a dotted line.

    Raises:
        ValueError: no name is that of a LoRA factor in a numbered layer.
    """
    found: dict[str, dict[str, dict[int, Mapping[str, float]]]] = {}
    for name, quantiles in sigmas.items():
        if match := re.search(r"\.(\d+)\..*?(\w+)\.lora_([AB])\b", name):
            layer, module, factor = match.groups()
            found.setdefault(module, {}).setdefault(factor, {})[int(layer)] = quantiles
    if not found:
        raise ValueError(f"None of these is a LoRA factor in a numbered layer: {', '.join(list(sigmas)[:3])}.")
    titles = [f"<b>{module}</b>" for module in sorted(found)]
    figure = make_subplots(1, len(found), subplot_titles=titles, shared_yaxes=True, horizontal_spacing=0.04)
    for col, module in enumerate(sorted(found), start=1):
        for factor, layers in sorted(found[module].items()):
            place = {"row": 1, "col": col, "legendgroup": factor}
            x, color = sorted(layers), FACTORS[factor]
            low, middle, high = ([round(layers[i][q], 5) for i in x] for q in QUANTILES)
            figure.add_scatter(
                x=[*x, *reversed(x)], y=[*high, *reversed(low)], fill="toself", opacity=0.2, fillcolor=color,
                line={"width": 0}, mode="lines", hoverinfo="skip", showlegend=False, **place,
            )  # fmt: skip
            figure.add_scatter(
                x=x, y=middle, mode="lines+markers", name=f"LoRA's {factor}", line={"color": color},
                marker={"size": 5}, showlegend=col == 1, hovertemplate="layer %{x}<br>σ %{y:.4f}", **place,
            )  # fmt: skip
        if start is not None:
            figure.add_hline(y=start, line={"color": "#444", "dash": "dot", "width": 1.5}, row=1, col=col)
    figure.update_xaxes(title={"text": "layer", **AXIS})
    figure.update_yaxes(title={"text": "σ", **AXIS}, col=1)
    figure.update_annotations(font_size=14)
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.22, "yanchor": "top"}
    return figure.update_layout(**LAYOUT, height=360, legend=legend)
