"""Runs of several lengths: folders `5-passes`, `20-passes` …, each a table of its own (`benchmarks/passes.py`)."""

import os
from pathlib import Path

from ..language import full_name
from ..methods import METHODS
from .table1 import Record, load_records

TITLES = {"temperature": "AdamW + temperature"}  # where a table's title needs the row above it


def by_length(folder: str | os.PathLike, task: str = "everyday") -> dict[str, dict[int, list[Record]]]:
    """All finished runs of a task: title of a method → passes over the training questions → records, one per seed.

    Args:
        folder: that holds the folders ``N-passes``.
        task: by its name.

    Raises:
        FileNotFoundError: there is no finished run of this task.
    """
    found: dict[str, dict[int, list[Record]]] = {}
    places = sorted(Path(folder).glob("*-passes"), key=lambda place: int(place.name.partition("-")[0]))
    for place in places:
        for record in load_records(place):
            if record.cell.task == full_name(task):
                title = TITLES.get(record.cell.method, METHODS[record.cell.method].title)
                found.setdefault(title, {}).setdefault(int(place.name.partition("-")[0]), []).append(record)
    if not found:
        raise FileNotFoundError(f"{folder} holds no finished run on {task}: benchmarks/passes.py makes them.")
    return found
