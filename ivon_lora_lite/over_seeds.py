"""Several seeds as one result: mean, standard error, and the τ trade-off with them (Figure 1 of Cong et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from .explore import AXIS, COLORS, LAYOUT, TITLES, axis_range, line_taus
from .prediction import METRICS
from .sweep import TauSweep

__all__ = ["mean_and_error", "seeds_figure"]


def mean_and_error(values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard error over seeds of tensors of one shape.

    Raises:
        ValueError: there are fewer than two seeds, so no standard error.
    """
    if len(values) < 2:
        raise ValueError(f"A standard error needs at least two seeds; there are {len(values)}.")
    stack = torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in values])
    return stack.mean(0), stack.std(0) / len(values) ** 0.5


def seeds_figure(
    sweeps: Mapping[str, Sequence[TauSweep]], adamw: Mapping[str, Sequence[Mapping[str, float]]] | None = None
) -> go.Figure:
    """The four metrics against τ, a row per task: exact draws, the linearised curve, and AdamW as a level.

    Args:
        sweeps: task → one sweep per seed, on the same τ.
        adamw: task → the scores of AdamW, one per seed.

    Returns:
        Panels ``[tasks, 4]``. Bars are standard errors over seeds; the linearised curve and AdamW are means.
    """
    titles = [f"<b>{TITLES[name]}</b>" for name in METRICS]  # over the first row; the rows are named at the left
    figure = make_subplots(
        len(sweeps), 4, subplot_titles=titles, horizontal_spacing=0.07, vertical_spacing=0.25 / len(sweeps)
    )
    for row, (task, seeds) in enumerate(sweeps.items(), start=1):
        if len({s.taus for s in seeds}) != 1:
            raise ValueError(f"The sweeps of {task} are on different τ, so they have no common curve.")
        taus = line_taus(seeds[0])
        linear = [s.linear_curves(taus) for s in seeds if s.linear is not None]
        sampled = [s.curves() for s in seeds]
        for col, name in enumerate(METRICS, start=1):
            place = {"row": row, "col": col, "showlegend": row == col == 1}
            mean, error = mean_and_error([curve[name] for curve in sampled])
            shown = [mean - error, mean + error]
            if len(linear) == len(seeds):
                line, _ = mean_and_error([curve[name] for curve in linear])
                shown.append(line)
                figure.add_scatter(
                    x=taus, y=_round(line), mode="lines", name="linearised", legendgroup="linear",
                    line={"color": COLORS["linear"], "dash": "dash"}, **place,
                )  # fmt: skip
            figure.add_scatter(
                x=seeds[0].taus, y=_round(mean), error_y={"array": _round(error), "thickness": 1.5}, mode="markers",
                name="IVON, draws", legendgroup="ivon", marker={"color": COLORS["ivon"], "size": 8},
                **place,
            )  # fmt: skip
            if adamw:
                level, _ = mean_and_error([torch.tensor(float(scores[name])) for scores in adamw[task]])
                shown.append(level[None])
                figure.add_scatter(
                    x=[taus[0], taus[-1]], y=_round(level.repeat(2)), mode="lines", name="AdamW", legendgroup="adamw",
                    line={"color": COLORS["adamw"], "dash": "dot"}, **place,
                )  # fmt: skip
            figure.update_yaxes(range=axis_range(name, torch.cat(shown)), nticks=5, row=row, col=col)
        figure.update_yaxes(title={"text": f"<b>{task}</b>", "standoff": 8, "font": {"size": 13}}, row=row, col=1)
    figure.update_xaxes(title={"text": "τ", **AXIS}, row=len(sweeps))
    figure.update_annotations(font_size=13)
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.3 / len(sweeps), "yanchor": "top"}
    return figure.update_layout(**LAYOUT, height=80 + 190 * len(sweeps), legend=legend)


def _round(values: Tensor) -> list[float]:
    return [round(float(v), 3) for v in values]
