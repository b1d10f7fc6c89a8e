"""Figures of predictions: the τ trade-off, for one run and over seeds, and reliability diagrams."""

import html
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from ..evaluation import BINS, METRICS, TauSweep, mean_and_error, reliability
from .style import AXIS, COLORS, LAYOUT, TITLES, axis_range, color_of, rounded

SYMBOLS = {"AdamW": "diamond", "AdamW, early-stopped": "diamond-open", "AdamW + temperature": "cross"}


def tradeoff_figure(sweep: TauSweep, tau: float = 1.0, samples: int | None = None) -> go.Figure:
    """Accuracy, ECE, NLL and Brier score against τ (Figure 1 of Cong et al. 2024), with a marker at one τ.

    Args:
        sweep: predictions at several τ.
        tau: where the marker is: a sampled τ, or, with a linearised Gaussian, any τ.
        samples: number of draws; default: as many as every τ has.

    Returns:
        Four panels. Per panel: the sampled points, the linearised curve if there is one, the marker.
    """
    titles = [f"<b>{TITLES[name]}</b>" for name in METRICS]
    figure = make_subplots(2, 2, subplot_titles=titles, vertical_spacing=0.16, horizontal_spacing=0.13)
    count = sweep.fewest if samples is None else samples
    sampled, taus = sweep.curves(count), line_taus(sweep)
    line = sweep.linear_curves(taus) if sweep.linear is not None else None
    at = sweep.scores(tau, count, linear=tau not in sweep.taus and line is not None, intervals=False)
    for k, name in enumerate(METRICS):
        place = {"row": k // 2 + 1, "col": k % 2 + 1, "showlegend": k == 0}
        hover = f"τ = %{{x}}<br>{TITLES[name][:-2]} %{{y:.3f}}"
        if line is not None:
            figure.add_scatter(
                x=taus, y=rounded(line[name]), mode="lines", name="linearised", legendgroup="linear",
                line={"color": COLORS["linear"], "dash": "dash"}, hovertemplate=hover, **place,
            )  # fmt: skip
        figure.add_scatter(
            x=sweep.taus, y=rounded(sampled[name]), mode="markers+lines", name=curve_text(sweep, count),
            legendgroup="ivon", line={"color": COLORS["ivon"]}, hovertemplate=hover, **place,
        )  # fmt: skip
        figure.add_scatter(
            x=[tau], y=[round(at[name], 4)], mode="markers", name=f"τ = {tau:g}", legendgroup="now",
            marker={"color": COLORS["now"], "size": 13, "line": {"color": "white", "width": 2}},
            hovertemplate=f"{hover}<extra></extra>", **place,
        )  # fmt: skip
    figure.update_xaxes(range=[-0.04 * taus[-1], 1.04 * taus[-1]], dtick=0.25 if taus[-1] <= 1.5 else None)
    figure.update_xaxes(title={"text": "τ", **AXIS}, row=2)
    set_ranges(figure, sweep, sampled)
    figure.update_annotations(font_size=14)
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.17, "yanchor": "top"}
    return figure.update_layout(**LAYOUT, height=470, legend=legend)


def path_figure(
    sweep: TauSweep, tau: float = 1.0, rivals: Mapping[str, Mapping[str, float]] | None = None
) -> go.Figure:
    """Accuracy against NLL: the path that τ walks from the mean outwards, a marker on it, and other methods as points.

    Every τ has as many draws as the τ that has the fewest, so that the path shows what τ does.

    The axes hold what :func:`worth_seeing` says; a line that leads out of the picture names where it goes.

    Args:
        sweep: predictions at several τ.
        tau: where the marker is, a sampled τ.
        rivals: title → scores on the same questions. A title that starts with ``AdamW`` has AdamW's colour.
    """
    curves, figure, kept = sweep.curves(), go.Figure(), worth_seeing(sweep)
    ranges = {
        name: axis_range(
            name, torch.cat([curves[name][kept], torch.tensor([s[name] for s in (rivals or {}).values()])])
        )
        for name in ("nll", "acc")
    }
    names, shown = [f"τ = {t:g}" for t in sweep.taus], _labelled(sweep.taus, curves, ranges)
    bend = int(curves["nll"].argmin())  # labels lie on the outer side: above on the way there, then below
    places = ["top center" if k <= bend else "bottom left" for k in range(len(names))]
    hover = "%{hovertext}<br>NLL %{x:.3f}<br>accuracy %{y:.3f}<extra></extra>"
    figure.add_scatter(
        x=rounded(curves["nll"]), y=rounded(curves["acc"]), mode="markers+lines+text", name="IVON, from τ to τ",
        text=[name if k in shown else "" for k, name in enumerate(names)], textposition=places,
        textfont={"size": 12}, line={"color": COLORS["ivon"]}, marker={"size": 7}, hovertext=names, hovertemplate=hover,
    )  # fmt: skip
    for title, scores in (rivals or {}).items():
        color = COLORS["adamw" if title.startswith("AdamW") else "before"]
        figure.add_scatter(
            x=[round(scores["nll"], 4)], y=[round(scores["acc"], 4)], mode="markers", hovertext=[title], name=title,
            hovertemplate=hover, marker={"color": color, "size": 11, "symbol": SYMBOLS.get(title, "x")},
        )  # fmt: skip
    at = sweep.scores(tau, sweep.fewest, intervals=False)
    figure.add_scatter(
        x=[round(at["nll"], 4)], y=[round(at["acc"], 4)], mode="markers", name="now", legendgroup="now",
        hovertext=[f"τ = {tau:g}"], showlegend=False, hovertemplate=hover,
        marker={"color": COLORS["now"], "size": 14, "line": {"color": "white", "width": 2}},
    )  # fmt: skip
    if not kept.all():
        gone = ", ".join(f"τ = {t:g}" for t, k in zip(sweep.taus, kept.tolist()) if not k)
        verb = "lies" if (~kept).sum() == 1 else "lie"
        about = {"text": f"{gone} {verb} further out", "showarrow": False, "font": {"size": 12}}
        figure.add_annotation(**about, xref="paper", yref="paper", x=0.01, y=0.02, xanchor="left", yanchor="bottom")
    for name, update in (("nll", figure.update_xaxes), ("acc", figure.update_yaxes)):
        update(range=ranges[name], title={"text": TITLES[name].replace("↓", "←"), **AXIS})
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.2, "yanchor": "top"}
    return figure.update_layout(**LAYOUT, height=460, legend=legend)


def _labelled(taus: Sequence[float], curves: Mapping[str, Tensor], ranges: Mapping[str, Sequence[float]]) -> set[int]:
    """Which points of a path get a label: the ends and τ = 1 before the others, and none that would lie on another."""
    x, y = ((curves[name] - ranges[name][0]) / (ranges[name][1] - ranges[name][0]) for name in ("nll", "acc"))
    first = [0, len(taus) - 1, *(k for k, t in enumerate(taus) if t == 1.0)]
    shown: set[int] = set()
    for k in dict.fromkeys([*first, *range(len(taus))]):
        if all(abs(x[k] - x[j]) > 0.09 or abs(y[k] - y[j]) > 0.045 for j in shown):
            shown.add(k)
    return shown


def first_tau(sweep: TauSweep) -> float:
    """Where a slider stands at first: the posterior itself if it was sampled, else the largest τ."""
    return 1.0 if 1.0 in sweep.taus else sweep.taus[-1]


def line_taus(sweep: TauSweep) -> tuple[float, ...]:
    """Where the linearised curve is drawn: from 0 to 1, or as far as the draws go."""
    end = max(1.0, sweep.taus[-1])
    return tuple(round(end * i / 20, 4) for i in range(21))


def worth_seeing(sweep: TauSweep) -> Tensor:
    """Which τ the axes hold, ``[T]``: those that cost at most 15 points of accuracy, up to the last such.

    Beyond, noise destroys what was learned, and a picture of that would hide the trade that τ is for.
    """
    accuracy = sweep.curves()["acc"]
    last = int((accuracy >= accuracy.max() - 0.15).nonzero().max())
    return torch.arange(len(sweep.taus)) <= last


def set_ranges(figure: go.Figure, sweep: TauSweep, *curves: Mapping[str, Tensor]) -> None:
    """Make every panel hold its curves, and the linearised one, as far as they are :func:`worth_seeing`.

    No range is narrower than ``SPANS``: else an axis would magnify noise.
    """
    kept = worth_seeing(sweep)
    shown = [{name: values[kept] for name, values in curve.items()} for curve in curves]
    if sweep.linear is not None:
        end = max(1.0, *[t for t, k in zip(sweep.taus, kept.tolist()) if k])
        shown.append(sweep.linear_curves([t for t in line_taus(sweep) if t <= end]))
    for k, name in enumerate(METRICS):
        values = torch.cat([curve[name].flatten() for curve in shown])
        figure.update_yaxes(range=axis_range(name, values), nticks=6, row=k // 2 + 1, col=k % 2 + 1)


def seeds_figure(
    sweeps: Mapping[str, Sequence[TauSweep]], adamw: Mapping[str, Sequence[Mapping[str, float]]] | None = None
) -> go.Figure:
    """The four metrics against τ, a row per task: exact draws, the linearised curve, and AdamW as a level.

    Args:
        sweeps: task → one sweep per seed, on the same τ.
        adamw: task → the scores of AdamW, one per seed.

    Returns:
        Panels ``[tasks, 4]``. Bars are standard errors over seeds; the linearised curve and AdamW are means. Every τ
        has as many draws as the τ that has the fewest, so that the curves show what τ does.
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
        fewest = min(s.fewest for s in seeds)
        sampled = [s.curves(fewest) for s in seeds]
        for col, name in enumerate(METRICS, start=1):
            place = {"row": row, "col": col, "showlegend": row == col == 1}
            mean, error = mean_and_error([curve[name] for curve in sampled])
            kept = torch.stack([worth_seeing(s) for s in seeds]).any(0)
            shown = [(mean - error)[kept], (mean + error)[kept]]
            if len(linear) == len(seeds):
                line, _ = mean_and_error([curve[name] for curve in linear])
                shown.append(line)
                figure.add_scatter(
                    x=taus, y=rounded(line, 3), mode="lines", name="linearised", legendgroup="linear",
                    line={"color": COLORS["linear"], "dash": "dash"}, **place,
                )  # fmt: skip
            figure.add_scatter(
                x=[t for t, k in zip(seeds[0].taus, kept.tolist()) if k], y=rounded(mean[kept], 3),
                error_y={"array": rounded(error[kept], 3), "thickness": 1.5},
                mode="markers", name=f"IVON, {draws_text(fewest)}", legendgroup="ivon",
                marker={"color": COLORS["ivon"], "size": 8}, **place,
            )  # fmt: skip
            if adamw:
                level, _ = mean_and_error([torch.tensor(float(scores[name])) for scores in adamw[task]])
                shown.append(level[None])
                figure.add_scatter(
                    x=[taus[0], taus[-1]], y=rounded(level.repeat(2), 3), mode="lines", name="AdamW",
                    legendgroup="adamw", line={"color": COLORS["adamw"], "dash": "dot"}, **place,
                )  # fmt: skip
            figure.update_yaxes(range=axis_range(name, torch.cat(shown)), nticks=5, row=row, col=col)
        figure.update_yaxes(title={"text": f"<b>{task}</b>", "standoff": 8, "font": {"size": 13}}, row=row, col=1)
    figure.update_xaxes(title={"text": "τ", **AXIS}, row=len(sweeps))
    figure.update_annotations(font_size=13)
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.3 / len(sweeps), "yanchor": "top"}
    return figure.update_layout(**LAYOUT, height=80 + 190 * len(sweeps), legend=legend)


def lengths_figure(results: Mapping[str, Mapping[float, Sequence[Mapping[str, float]]]]) -> go.Figure:
    """The four metrics against the length of training, a line per method; bars are standard errors over seeds.

    Args:
        results: method → passes over the training questions → scores, one per seed. Methods whose titles start with
            ``AdamW`` or ``IVON`` have these colours, the first of each without an @ the full line, further ones dashed
            and dotted.
    """
    titles = [f"<b>{TITLES[name]}</b>" for name in METRICS]
    figure = make_subplots(2, 2, subplot_titles=titles, vertical_spacing=0.16, horizontal_spacing=0.11)
    dashes: dict[str, Iterator[str]] = {}
    looks: dict[str, tuple[str, str]] = {}  # method → colour, dash
    for method in sorted(results, key=lambda title: "@" in title):
        color = COLORS["ivon" if method.startswith("IVON") else "adamw" if method.startswith("AdamW") else "before"]
        looks[method] = color, next(dashes.setdefault(color, cycle(("solid", "dash", "dot", "dashdot"))))
    for method, by_length in results.items():
        color, dash = looks[method]
        lengths = sorted(by_length)
        for k, name in enumerate(METRICS):
            values = [torch.tensor([scores[name] for scores in by_length[n]], dtype=torch.float64) for n in lengths]
            errors = [float(v.std() / len(v) ** 0.5) if len(v) > 1 else 0.0 for v in values]
            figure.add_scatter(
                x=lengths, y=[round(float(v.mean()), 4) for v in values], mode="markers+lines", name=method,
                legendgroup=method, line={"color": color, "dash": dash}, showlegend=k == 0,
                error_y={"array": [round(e, 4) for e in errors], "thickness": 1.5, "width": 0},  # one seed: no bar
                row=k // 2 + 1, col=k % 2 + 1,
            )  # fmt: skip
    ticks = sorted({n for by_length in results.values() for n in by_length})
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{n:g}" for n in ticks])
    figure.update_xaxes(title={"text": "passes over the training questions", **AXIS}, row=2)
    figure.update_annotations(font_size=14)
    legend = {"orientation": "h", "x": 0.5, "xanchor": "center", "y": -0.16, "yanchor": "top"}
    return figure.update_layout(**LAYOUT, height=560, legend=legend)


def reliability_figure(predictions: Mapping[str, tuple[Tensor, Tensor]], bins: int = BINS) -> go.Figure:
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
            x=centre, width=0.92 / bins, **reliability_bars(probs, labels, bins, color_of(title)), name=title,
            showlegend=False, hovertemplate=f"{hover}<extra></extra>", row=1, col=k,
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


def reliability_bars(probs: Tensor, labels: Tensor, bins: int = BINS, color: str = COLORS["ivon"]) -> dict:
    """The bars of a reliability diagram for plotly: accuracy (``y``), number of questions (``customdata``), colour.

    The fuller a bin, the darker its bar.
    """
    rgb = ", ".join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))
    table = reliability(probs.double(), labels, bins)
    shade = (table.weight / table.weight.max()).sqrt()
    colors = [f"rgba({rgb}, {0.15 + 0.8 * float(a):.2f})" if a > 0 else "rgba(0,0,0,0)" for a in shade]
    counts = (table.weight * len(labels)).round().long().tolist()
    return {"y": rounded(table.accuracy.nan_to_num(0.0)), "customdata": counts, "marker": {"color": colors}}


def curve_text(sweep: TauSweep, samples: int) -> str:
    """What a curve over τ averages: the same number of draws everywhere, or fewer at some τ."""
    fewer = any(made < samples for tau, made in zip(sweep.taus, sweep.drawn) if tau)
    return f"{'up to ' if fewer else ''}{draws_text(samples)}"


def draws_text(count: int) -> str:
    """A number of draws in words."""
    return "1 draw" if count == 1 else f"{count} draws"
