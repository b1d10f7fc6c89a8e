"""Questions of your own: a CSV, JSON Lines or Parquet file, a folder of such files, or a data set of the Hub.

Columns are found by their usual names, or named by the caller. Every row becomes a question or a sentence that says
what is wrong with it; none is left out.

* `reading.py`: files → rows; `rows.py`: which columns hold what; `answers.py`: what answers mean; `splitting.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..questions import Task
from .answers import classified, understood
from .reading import SPLITS as SPLITS, is_file_of_questions as is_file_of_questions, read
from .rows import check_ids, find_columns, read_row
from .splitting import divided


def names_in(parts: Mapping[str, Sequence[Mapping]]) -> list[str]:
    """The names of the columns of all rows of all splits, in order."""
    return list(dict.fromkeys(name for part in parts.values() for row in part for name in row))


def columns_like(source: str | Path, data: Mapping) -> dict:
    """How a file is read if it has all columns of questions that were read before (a task's ``data``), else nothing.

    Classes stay those of before: a file may lack some of them.
    """
    found = {"labels": data["labels"]} if data["labels"] and not data["choices"] else {}
    names = {data["question"], *data["choices"], data["answer"]}
    if not names <= set(names_in(read(Path(source).expanduser()))):
        return found
    return {**found, **{name: data[name] for name in ("question", "choices", "answer", "answer_as")}}


def read_stems(source: str | Path, like: Mapping | None = None) -> list[tuple[str, tuple[str, ...]]]:
    """Questions without an answer: the question and the choices of every row of a file; no choices, no column of them.

    Args:
        source: a file.
        like: a task's ``data``, whose columns count if the file has them.

    Raises:
        ValueError: a row has no question, or choices that cannot be read.
        FileNotFoundError: there is no such file.
    """
    parts = read(Path(source).expanduser())
    if len(parts) > 1:
        raise ValueError(f"{source} is a folder with several files: name one of them.")
    (rows,) = parts.values()
    if not rows:
        raise ValueError(f"{source} holds no rows.")
    there = names_in(parts)
    known = (like["question"], like["choices"]) if like and {like["question"], *like["choices"]} <= set(there) else ()
    columns = find_columns(source, there, *(known or (None, None)), None, with_answer=False)
    found = [read_row(f"{source}, row {n}", n, "", row, columns) for n, row in enumerate(rows, start=1)]
    return [(row.stem, row.choices) for row in found]


def load_own(
    source: str | Path,
    *,
    question: str | None = None,
    choices: str | Sequence[str] | None = None,
    answer: str | None = None,
    labels: Sequence[str] | None = None,
    answer_as: str | None = None,
    hub: Callable[[], dict] | None = None,
) -> Task:
    """A task from a file, a folder, or a data set of the Hub; the arguments are those of :func:`load_task`.

    Args:
        hub: reads the splits of a data set of the Hub, name → rows; None: ``source`` is a path.
    """
    parts = hub() if hub else read(Path(source).expanduser())
    for split, part in parts.items():
        if not part:
            raise ValueError(f"{source}{f', {split}' if split else ''} holds no rows.")
    there = names_in(parts)
    columns = find_columns(source, there, question, choices, answer)
    rows = {
        split: [
            read_row(f"{source}{f', {split}' if split else ''}, row {n}", n, split, r, columns)
            for n, r in enumerate(part, start=1)
        ]
        for split, part in parts.items()
    }
    for part in rows.values():
        check_ids(part)
    others = [name for name in there if name not in ("id", columns.question, columns.answer, *columns.choices)]
    if columns.choices:
        if labels:
            raise ValueError(f"{source}: labels= names the classes of rows without choices, and these rows have some.")
        kind, made = understood(rows, answer_as)
    else:
        kind, made = classified(source, rows, labels, others, answer_as)
    about = f"{sum(map(len, made.values()))} questions; columns: {columns.question}, {columns.answer}"
    about += f" and {', '.join(columns.choices)}" if columns.choices else ""
    about += f"; not used: {', '.join(others)}" if others else ""
    task_splits, how = divided(source, made)
    data = {"path": str(source if hub else Path(source).expanduser().resolve()), "question": columns.question}
    data |= {"choices": list(columns.choices), "answer": columns.answer, "labels": labels and list(labels)}
    data["answer_as"] = answer_as
    if not columns.choices:
        data["labels"] = list(next(iter(made.values()))[0].choices)
    about = f"{about}; answers are {kind}; {', '.join(f'{len(q)} {s}' for s, q in task_splits.items())} ({how})"
    return Task(str(source), **task_splits, splits=dict.fromkeys(task_splits, how), data=data, about=about)
