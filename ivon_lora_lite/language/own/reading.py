"""Files → rows, each a dict of named values."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

SPLITS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


def is_file_of_questions(name: str) -> bool:
    """Whether a name is a file or folder, or would be a file that can be read here."""
    return Path(name).suffix.lower() in READERS or Path(name).exists()


def _csv(path: Path) -> list[dict]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        marks = ("\t", ",", ";") if path.suffix.lower() == ".tsv" else (",", ";", "\t")
        mark = max(marks, key=header.count)  # of equally many the first
        try:
            reader = csv.DictReader(file, delimiter=mark, strict=True)
            names, rows = list(reader.fieldnames or ()), list(reader)
        except csv.Error as error:
            raise ValueError(f"{path} is no CSV that can be read: {error}.") from error
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise ValueError(f"{path} has several columns named {twice[0]!r}: give each a name of its own.")
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            count = len(row) - (None in row) + len(row.get(None, ())) - list(row.values()).count(None)
            expected = len(row) - (None in row)
            raise ValueError(
                f"{path}, row {number}: it has {count} cells, the header {expected}. Quote commas in a text."
            )
    return rows


def _jsonl(path: Path) -> list[dict]:
    rows = []
    for number, line in enumerate(path.read_text("utf-8-sig").split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: this is no JSON ({error.msg}): {line[:60]!r}.") from error
            if not isinstance(rows[-1], dict):
                raise ValueError(f"{path}, line {number}: expected an object with named values, got {line[:60]!r}.")
    return rows


def _json(path: Path) -> list[dict]:
    text = path.read_text("utf-8-sig")
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if not text.lstrip().startswith("["):
            return _jsonl(path)
        raise ValueError(f"{path}, line {error.lineno}: this is no JSON ({error.msg}).") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected a list of objects with named values, one a question.")
    return rows


def _parquet(path: Path) -> list[dict]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is no Parquet file that can be read: {error}") from error


READERS: dict[str, Callable[[Path], list[dict]]] = {
    ".csv": _csv, ".tsv": _csv, ".jsonl": _jsonl, ".json": _json, ".parquet": _parquet
}  # fmt: skip


def _rows(path: Path) -> list[dict]:
    try:
        return READERS[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 ({error.reason}): save it in UTF-8.") from error


def read(path: Path) -> dict[str, list[dict]]:
    """Split → rows; one file has the split ``""``."""
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise ValueError(f"{path} is of a kind that cannot be read here: use one of {', '.join(READERS)}.")
        return {"": _rows(path)}
    if not path.is_dir():
        raise FileNotFoundError(f"There is no file {path}.")
    files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in READERS]
    found = {}
    for split, names in SPLITS.items():
        mine = [file for file in files if file.stem.lower() in names]
        if len(mine) > 1:
            raise ValueError(f"{path} has two files of the {split} split: {mine[0].name} and {mine[1].name}.")
        if mine:
            found[split] = _rows(mine[0])
    missing = [split for split in ("train", "test") if split not in found]
    if missing:
        raise FileNotFoundError(
            f"{path} has no {missing[0]} file: expected train, validation and test as {', '.join(READERS)}; "
            f"it has {', '.join(file.name for file in files) or 'none of these'}."
        )
    return found
