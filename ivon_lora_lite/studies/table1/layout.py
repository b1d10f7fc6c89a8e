"""Cells → the table: means and standard errors over seeds, as Markdown, HTML and LaTeX, in the paper's layout."""

from __future__ import annotations

import csv
import html
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...evaluation import METRICS, ece_floor, score
from ...files import data_path
from ...methods import METHODS
from .records import Record

AVERAGE = "average"
# the floor is what ECE would be for perfectly calibrated predictions of the same confidence
TITLES = {"acc": "ACC (%) ↑", "ece": "ECE (×100) ↓", "floor": "ECE's floor (×100)", "nll": "NLL ↓", "brier": "Brier ↓"}
SCALE = {"acc": 100.0, "ece": 100.0, "floor": 100.0, "nll": 1.0, "brier": 1.0}
DIGITS = {"acc": 1, "ece": 1, "floor": 1, "nll": 3, "brier": 3}
COMPARED = ("ivon@mean", "ivon")  # rows that show their difference to AdamW


@dataclass(frozen=True)
class Entry:
    """Mean and standard error (None: one seed) over seeds."""

    mean: float
    error: float | None = None
    seeds: int = 1


@dataclass
class Table:
    """What the table says: ``entries[metric, method, task]``.

    The task ``"average"`` is the mean over tasks, as the paper has it. It is shown on request only: errors of unlike
    tasks are of unlike size, so one task can decide it.

    Attributes:
        entries: (metric, method, task) → :class:`Entry`, in the metrics' own units (fractions and nats).
        tasks: columns; ``"a → b"`` was trained on the task a and tested on b.
        methods: rows.
        missing: what should be there and is not, one sentence each.
        average: show the average over tasks too.
    """

    entries: dict[tuple[str, str, str], Entry]
    tasks: list[str]
    methods: list[str]
    missing: list[str] = field(default_factory=list)
    average: bool = False

    @classmethod
    def from_records(cls, records: Sequence[Record], *, partial: bool = False, average: bool = False) -> Table:
        """Means and standard errors over the seeds of finished cells.

        Args:
            records: from :func:`load_records`.
            partial: make a table although cells are missing, and say which.
            average: show the average over tasks too.

        Raises:
            ValueError: a method lacks a seed or a task that another one has, and ``partial`` is not set.
        """
        columns = [_columns(r) for r in records]
        tasks = list(dict.fromkeys(task for by_task in columns for task in by_task))
        methods = [m for m in METHODS if any(r.cell.method == m for r in records)]
        values: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
        for r, by_task in zip(records, columns):
            for task, scores in by_task.items():
                values.setdefault((r.cell.method, task), {})[r.cell.seed] = scores
        missing = _missing(records, methods)
        if missing and not partial:
            more = f" ({len(missing) - 1} more are missing.)" if len(missing) > 1 else ""
            raise ValueError(f"{missing[0]}{more} Run table1 again to make it, or show the table with --partial.")
        entries = {}
        for method in methods:
            for name in TITLES:
                seen = {task: values.get((method, task), {}) for task in tasks}
                for task, by_seed in seen.items():
                    if by_seed:
                        entries[name, method, task] = _entry([scores[name] for scores in by_seed.values()])
                own = [task for task in tasks if "→" not in task]
                seeds = set.intersection(*(set(seen[task]) for task in own))
                if seeds and len(own) > 1:
                    means = [statistics.mean(seen[t][seed][name] for t in own) for seed in sorted(seeds)]
                    entries[name, method, AVERAGE] = _entry(means)
        return cls(entries, tasks, methods, missing, average)

    @property
    def columns(self) -> list[str]:
        """Tasks, and their average if that is asked for and there are several."""
        own = [task for task in self.tasks if "→" not in task]
        return [*self.tasks, AVERAGE] if self.average and len(own) > 1 else self.tasks

    @property
    def metrics(self) -> list[str]:
        """The blocks of the table: the four metrics, and ECE's floor where it is known."""
        known = {*METRICS, *(metric for metric, _, _ in self.entries)}
        return [name for name in TITLES if name in known]

    def cell(self, metric: str, method: str, task: str) -> tuple[str, str, str, bool | None]:
        """Mean, standard error and difference to AdamW as text, and whether the difference is an improvement."""
        entry = self.entries.get((metric, method, task))
        if entry is None:
            return "–", "", "", None
        scale, digits = SCALE[metric], DIGITS[metric]
        mean = f"{scale * entry.mean:.{digits}f}"
        error = "" if entry.error is None else f"{scale * entry.error:.{digits}f}"
        base = self.entries.get((metric, "adamw", task))
        if base is None or method not in COMPARED or metric == "floor":
            return mean, error, "", None
        gain = scale * (entry.mean - base.mean)
        text = f"{gain:+.{digits}f}"
        better = None if float(text) == 0 else (gain > 0) == (metric == "acc")
        return mean, error, text, better

    def markdown(self, paper: Table | None = None) -> str:
        """For README and notebooks: a block of rows per metric; a difference in bold is an improvement on AdamW.

        Args:
            paper: show the published figures under each row.
        """
        lines = [
            f"| metric | method | {' | '.join(self.columns)} |",
            f"|---|---|{'---|' * len(self.columns)}",
        ]
        for metric in self.metrics:
            for k, (name, cells, published) in enumerate(self._rows(metric, paper)):
                texts = [_markdown_cell(*cell) for cell in cells]
                name = f"*{name}*" if published else name
                lines.append(f"| {TITLES[metric] if k == 0 else ''} | {name} | {' | '.join(texts)} |")
        return "\n".join([*lines, *(["", *(f"Missing: {m}" for m in self.missing)] if self.missing else [])])

    def compact(self, task: str | None = None) -> str:
        """One task (default: the first) as Markdown: methods × metrics."""
        task = task or self.columns[0]
        lines = [f"| {task} | {' | '.join(TITLES[m] for m in self.metrics)} |", f"|---|{'---|' * len(self.metrics)}"]
        for method in self.methods:
            cells = [_markdown_cell(*self.cell(metric, method, task)) for metric in self.metrics]
            lines.append(f"| {METHODS[method].title} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def html(self, paper: Table | None = None) -> str:
        """A ``<table>`` with colours: blue where IVON improves on AdamW, red where it does not."""
        head = "".join(f"<th>{html.escape(c)}</th>" for c in self.columns)
        rows = []
        for metric in self.metrics:
            block = self._rows(metric, paper)
            for k, (name, cells, published) in enumerate(block):
                first = f"<th rowspan='{len(block)}' class='text'>{TITLES[metric]}</th>" if k == 0 else ""
                body = "".join(f"<td>{_html_cell(*cell)}</td>" for cell in cells)
                style = " class='paper'" if published else ""
                rows.append(f"<tr{style}>{first}<td class='text'>{html.escape(name)}</td>{body}</tr>")
        notes = "".join(f"<p class='note'>Missing: {html.escape(m)}</p>" for m in self.missing)
        return (
            f"<div class='ivon'><style>{STYLE}</style><table class='table1'><thead><tr><th></th><th></th>{head}</tr>"
            f"</thead><tbody>{''.join(rows)}</tbody></table>{notes}</div>"
        )

    def latex(self, paper: Table | None = None) -> str:
        """A ``tabular`` for ``booktabs`` and ``xcolor``."""
        lines = [rf"\begin{{tabular}}{{ll{'r' * len(self.columns)}}}", r"\toprule"]
        lines += [f"Metric & Method & {' & '.join(_latex(c) for c in self.columns)} \\\\"]
        for metric in self.metrics:
            lines.append(r"\midrule")
            for k, (name, cells, published) in enumerate(self._rows(metric, paper)):
                name = rf"\textit{{{_latex(name)}}}" if published else _latex(name)
                title = _latex(TITLES[metric]) if k == 0 else ""
                lines.append(f"{title} & {name} & {' & '.join(_latex_cell(*cell) for cell in cells)} \\\\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])

    def _repr_html_(self) -> str:
        return self.html()

    def _rows(self, metric: str, paper: Table | None) -> list[tuple[str, list[tuple], bool]]:
        """(name, cells, whether it is the paper's) of a metric's rows."""
        rows = []
        for method in self.methods:
            rows.append((METHODS[method].title, [self.cell(metric, method, c) for c in self.columns], False))
            if paper is not None:
                known = [
                    paper.cell(metric, method, c) if self._comparable(c, paper) else _NOTHING for c in self.columns
                ]
                if any(cell != _NOTHING for cell in known):
                    rows.append((f"{METHODS[method].title}, paper", known, True))
        return rows

    def _comparable(self, column: str, paper: Table) -> bool:
        """An average is over other tasks unless the tasks are the same."""
        return column in paper.tasks if column != AVERAGE else set(self.tasks) == set(paper.tasks)


_NOTHING = ("–", "", "", None)


def paper_table(path: Path | None = None) -> Table:
    """Table 1 of Cong et al. (2024): Llama-2-7B, three seeds. Cells that `data/paper` lacks are absent."""
    file = path or data_path("paper", "table1.csv")
    entries = {}
    with file.open(encoding="utf8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    for row in rows:
        scale = SCALE[row["metric"]]
        error = float(row["standard_error"]) / scale if row["standard_error"] else None
        entries[row["metric"], row["method"], row["task"]] = Entry(float(row["mean"]) / scale, error, 3)
    tasks = [t for t in dict.fromkeys(row["task"] for row in rows) if t != AVERAGE]
    return Table(entries, tasks, [m for m in METHODS if any(row["method"] == m for row in rows)])


def _columns(record: Record) -> dict[str, dict[str, float]]:
    """Scores by column: the record's task, and the other tasks that it was tested on."""
    out = {record.cell.task: {**record.scores, "floor": record.floor}}
    for task, predictions in record.shifted.items():
        scores = score(predictions, intervals=False, bins=record.bins)
        floor = ece_floor(predictions.ensemble(), record.bins)[0]
        out[f"{record.cell.task} → {task}"] = {**scores, "floor": floor}
    return out


def _entry(values: Sequence[float]) -> Entry:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return Entry(statistics.mean(values), error, len(values))


def _missing(records: Sequence[Record], methods: Iterable[str]) -> list[str]:
    """Cells that another method has and this one lacks."""
    there = {(r.cell.task, r.cell.method, seed) for r in records for seed in r.cell.seeds}
    seeds = sorted({seed for r in records for seed in r.cell.seeds})
    out = []
    for task in dict.fromkeys(r.cell.task for r in records):
        for method in methods:
            lacks = [str(seed) for seed in seeds if (task, method, seed) not in there]
            if lacks:
                out.append(f"{method} on {task} lacks seed {', '.join(lacks)}.")
    return out


def _markdown_cell(mean: str, error: str, gain: str, better: bool | None) -> str:
    change = f"**({gain})** " if better else f"({gain}) " if gain else ""  # Markdown has no colours
    return change + _plain(mean, error)


def _plain(mean: str, error: str) -> str:
    return f"{mean} ± {error}" if error else mean


def _html_cell(mean: str, error: str, gain: str, better: bool | None) -> str:
    kind = {True: "better", False: "worse", None: ""}[better]
    change = f"<span class='{kind}'>({gain})</span> " if gain else ""
    return f"{change}{mean}{f'<sub>{error}</sub>' if error else ''}"


def _latex_cell(mean: str, error: str, gain: str, better: bool | None) -> str:
    color = {True: "blue", False: "red", None: "black"}[better]
    change = rf"\textcolor{{{color}}}{{({gain})}} " if gain else ""
    return rf"{change}${mean}_{{{error}}}$" if error else f"{change}{_latex(mean)}"


def _latex(text: str) -> str:
    for old, new in (
        ("%", r"\%"),
        ("_", r"\_"),
        ("&", r"\&"),
        ("#", r"\#"),
        ("τ", r"$\tau$"),
        ("↑", r"$\uparrow$"),
        ("↓", r"$\downarrow$"),
        ("×", r"$\times$"),
        ("–", "--"),
        ("→", r"$\to$"),
    ):
        text = text.replace(old, new)
    return text


STYLE = """
.table1 { border-collapse: collapse; font: 13px/1.5 system-ui, sans-serif; }
.table1 td, .table1 th { padding: 2px 8px; text-align: right; border-bottom: 1px solid #e3e3e3; }
.table1 .text { text-align: left; } .table1 sub { color: #777; font-size: 10px; }
.table1 .better { color: #1d5fbf; } .table1 .worse { color: #c02b4f; }
.table1 .paper { color: #777; font-style: italic; }
"""
