"""Scores and changed answers as HTML."""

import html
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..evaluation import BINS, METRICS, Scores, TauSweep
from .style import TITLES

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
        f"<p class='note'>In brackets: 95 % bootstrap interval over questions. {_floor(rows)}</p></div>"
    )


def _floor(rows: Mapping[str, Scores]) -> str:
    """A sentence on ECE's bins and, where it is known, on its floor."""
    bins = {scores.bins for scores in rows.values()} or {BINS}
    floors = [scores.floor for scores in rows.values() if scores.floor is not None]
    said = f"ECE with {min(bins)} bins"
    if not floors:
        return f"{said}."
    low, high = f"{min(floors):.3f}", f"{max(floors):.3f}"
    return f"{said}; a perfectly calibrated model would show {low if low == high else f'{low} to {high}'}."


def cell_html(scores: Scores, name: str) -> str:
    """A score and its interval."""
    low, high = scores.intervals.get(name, (None, None))
    span = f" <span class='ci'>[{low:.3f}, {high:.3f}]</span>" if low is not None else ""
    return f"{scores[name]:.3f}{span}"


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


def draws_html(question, draws: Tensor, others: Mapping[str, Tensor]) -> str:
    """One question: what each draw gives every choice, their average, and other predictions beside it.

    Args:
        question: with ``stem``, ``choices`` and ``answer``.
        draws: probabilities ``[S, C]``.
        others: title → probabilities ``[C]``.
    """
    columns = {**others, **{f"draw {s + 1}": p for s, p in enumerate(draws)}, "average": draws.mean(0)}
    head = "".join(f"<th>{html.escape(title)}</th>" for title in columns)
    body = []
    for c, choice in enumerate(question.choices):
        right = c == question.answer
        cells = "".join(
            f"<td style='background: rgba(31, 95, 191, {0.55 * float(p[c]):.2f})'>{float(p[c]):.2f}</td>"
            for p in columns.values()
        )
        body.append(f"<tr><th class='text'>{html.escape(choice)}{' ✓' if right else ''}</th>{cells}</tr>")
    return (
        f"<div class='ivon draws'><p><b>{html.escape(question.stem)}</b></p>"
        f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _choice(question, choice: Tensor, label: Tensor) -> str:
    return f"{html.escape(question.choices[int(choice)])} {'✓' if choice == label else '✗'}"


def tokens_html(tokens: Sequence[str], values: Tensor, title: str = "", largest: float | None = None) -> str:
    """A text whose tokens are shaded by a number each, such as their mutual information; hovering tells it.

    Args:
        tokens: T texts.
        values: ``[T]``, at least 0.
        title: what the numbers are, with their unit.
        largest: the value of the darkest shade; default: the largest that is there.
    """
    top = max(float(values.max()) if largest is None else largest, 1e-9)
    spans = "".join(
        f"<span title='{float(v):.3f}' style='background: rgba(194, 37, 92, {0.75 * min(float(v) / top, 1.0):.2f})'>"
        f"{html.escape(token)}</span>"
        for token, v in zip(tokens, values, strict=True)
    )
    scale = f"<p class='note'>{html.escape(title)}: white is 0, the darkest shade {top:.3f}.</p>" if title else ""
    return f"<div class='ivon tokens'><p style='white-space: pre-wrap'>{spans}</p>{scale}</div>"
