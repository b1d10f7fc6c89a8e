"""What the uncertainty of the table's methods is good for: abstaining, finding errors, noticing foreign questions."""

import math
import statistics
from collections.abc import Sequence

from ...evaluation import DOUBTS, accuracy_at, aurc, doubts, error_detection, right_answers, shift_detection
from ...methods import METHODS
from .records import Record

SHORT = {"confidence": "conf.", "entropy": "entropy", "mutual_information": "MI"}


def decision_scores(record: Record) -> dict[str, float]:
    """Column → value, higher is better except for AURC; the AUROCs of a doubt that a point has not are NaN."""
    doubt, right = doubts(record.predictions)["confidence"], right_answers(record.predictions)
    out = {"AURC ×100 ↓": 100 * aurc(doubt, right), "ACC at 80 % ↑": 100 * accuracy_at(doubt, right)}
    errors = error_detection(record.predictions)
    out |= {f"errors, {SHORT[d]} ↑": 100 * errors.get(d, math.nan) for d in DOUBTS}
    for task, predictions in record.shifted.items():
        found = shift_detection(record.predictions, predictions)
        out |= {f"{task}, {SHORT[d]} ↑": 100 * found[d]["auroc"] if d in found else math.nan for d in DOUBTS}
    return out


def decision_table(records: Sequence[Record], task: str | None = None) -> str:
    """Markdown: methods × decisions, mean ± standard error over seeds; the last columns are AUROCs ×100.

    Args:
        records: from :func:`load_records`.
        task: which; default: the first.
    """
    task = task or records[0].cell.task
    chosen = [r for r in records if r.cell.task == task]
    methods = [m for m in METHODS if any(r.cell.method == m for r in chosen)]
    scores = {m: [decision_scores(r) for r in chosen if r.cell.method == m] for m in methods}
    columns = list(scores[methods[0]][0])
    lines = [f"| {task} | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for method in methods:
        cells = [_cell([s[column] for s in scores[method]]) for column in columns]
        lines.append(f"| {METHODS[method].title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    if any(map(math.isnan, values)):
        return "–"
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{error}"
