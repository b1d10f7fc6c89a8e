"""Colours, layout and axes that all figures share: a colour means one thing everywhere."""

import math

import plotly.io as pio
import torch
from torch import Tensor

COLORS = {"ivon": "#1f5fbf", "linear": "#7fa7dd", "adamw": "#d9822b", "before": "#8a8f98", "now": "#c2255c"}
TITLES = {"acc": "accuracy ↑", "ece": "ECE ↓", "nll": "NLL ↓", "brier": "Brier ↓"}
SPANS = {"acc": 0.1, "ece": 0.1, "nll": 0.2, "brier": 0.1}  # axes show at least this much: else they magnify noise
INK = "#1c2733"
_AXIS = {"gridcolor": "#ebf0f8", "linecolor": "#ebf0f8", "zerolinecolor": "#ebf0f8", "ticks": "", "automargin": True}
# a template is kept in every figure of a notebook: plotly's own have twenty times as much
pio.templates["ivon_lora_lite"] = {
    "layout": {
        "paper_bgcolor": "white", "plot_bgcolor": "white", "hovermode": "closest", "xaxis": _AXIS, "yaxis": _AXIS,
        "colorway": [COLORS["ivon"], COLORS["adamw"], "#2a9d8f", "#7b4fa3", COLORS["before"]],
    }
}  # fmt: skip
LAYOUT = {
    "template": "ivon_lora_lite",
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
    "margin": {"l": 55, "r": 15, "t": 40, "b": 50},
    "hoverlabel": {"font": {"size": 13}},
}
AXIS = {"standoff": 6, "font": {"size": 14}}


def axis_range(name: str, values: Tensor) -> list[float]:
    """A range that holds a metric's values and is no narrower than ``SPANS``."""
    low, high = float(values.min()), float(values.max())
    pad = max(0.1 * (high - low), (SPANS[name] - (high - low)) / 2)
    return [round(low - pad, 4), round(high + pad, 4)]


def color_of(title: str) -> str:
    """The colour of a method by how its title begins: ``IVON`` or ``τ``, ``AdamW``, ``before``; others are dark."""
    known = {"IVON": "ivon", "τ": "ivon", "AdamW": "adamw", "before": "before"}
    return next((COLORS[key] for start, key in known.items() if title.startswith(start)), INK)


def rounded(values: Tensor, digits: int = 4) -> list[float]:
    """Numbers short enough for a file that holds the figure."""
    return [round(float(v), digits) for v in values]


def short(values: Tensor, digits: int = 3):
    """The same as a float32 array, which a figure keeps in few bytes; more digits where all values are small."""
    values = torch.as_tensor(values, dtype=torch.float64)
    largest = float(values.nan_to_num(0, 0, 0).abs().max()) if values.numel() else 0.0
    decimals = digits + (max(0, -math.ceil(math.log10(largest))) if largest else 0)
    return (torch.round(values, decimals=decimals) + 0.0).float().numpy()
