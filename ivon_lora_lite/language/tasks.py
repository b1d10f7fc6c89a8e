"""Tasks by name: the paper's six data sets, the embedded one, MMLU and GLUE; `sources.py` lists them.

Data sets come from the Hugging Face Hub, or from a local folder laid out like it (``hub=DIR`` or the variable
``IVON_LORA_HUB``).
"""

import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..files import data_path, first_line
from .own import SPLITS, is_file_of_questions, load_own
from .questions import Question, Task
from .sources import TASKS, Source, source_of

HELD_OUT = 10  # where the source has no validation split, every 10th training question is held out


def load_task(
    name: str | os.PathLike = "everyday",
    *,
    hub: str | os.PathLike | None = None,
    question: str | None = None,
    choices: str | Sequence[str] | None = None,
    answer: str | None = None,
    labels: Sequence[str] | None = None,
    answer_as: str | None = None,
) -> Task:
    """Load a task by name, or questions of your own.

    Of your own may be multiple choice with 2 to 8 choices (a column with a list, or one column each; trailing cells may
    be empty), or classification (a text and its class). Columns are found by their usual names. One file is split by a
    hash of the question's words, 60 % for training and 20 % each for validation and test, so that equal questions stay
    together; a folder has files train, validation (else 20 % of train) and test. ``task.about`` says what was read.

    Args:
        name: one of ``TASKS``: everyday (embedded; ``everyday@1`` is its first edition), arc_easy, arc_challenge,
            openbookqa, winogrande_s, winogrande_m, boolq, mmlu, GLUE's classification tasks as glue/rte, glue/mnli …,
            and single subjects of MMLU as mmlu/college_chemistry …, which are for evaluation only. Or your own: a file
            (.csv, .tsv, .jsonl, .json, .parquet), a folder of such files, or a data set of the Hub with ``question``.
        hub: a folder laid out like the Hub (``DIR/allenai/ai2_arc`` …). Default: the variable ``IVON_LORA_HUB``, else
            the Hub.
        question, answer: names of columns.
        choices: the name of the column with the list of choices, or the names of their columns.
        labels: the words of the classes, in the order of their numbers; default: those that are there.
        answer_as: what answers are, if that is not clear: ``"letter"``, ``"text"``, ``"index0"``, ``"index1"``, or
            ``"label"`` (as ARC has them beside its choices).

    Returns:
        A :class:`Task`. Questions that do not have four choices are left out of ARC and OpenBookQA, as in the paper.

    Raises:
        ValueError: unknown name; missing columns, an answer outside the choices, a single choice, an empty split. Of
            rows of your own the sentence names the row, its value and what was expected.
        FileNotFoundError: there is no such file; neither the Hub nor the folder has the data set.
    """
    name = os.fspath(name)
    columns = {"question": question, "choices": choices, "answer": answer, "labels": labels, "answer_as": answer_as}
    if is_own(name) or question is not None:
        return _own(name, columns, hub or os.environ.get("IVON_LORA_HUB"))
    if any(value is not None for value in columns.values()):
        raise ValueError(
            f"{name} is a known task with columns of its own: leave question, choices, answer and so on out."
        )
    name = full_name(name)
    source = source_of(name.partition("@")[0])
    hub = hub or os.environ.get("IVON_LORA_HUB")
    rows = _embedded(name) if not source.path else _downloaded(name, source, hub)
    held_out = "" if "validation" in rows and source.test != "validation" else f"every {HELD_OUT}th of train"
    splits = {"train": source.train, "validation": held_out or "validation", "test": source.test}
    wanted = {source.train, source.test} - {""}
    for split in sorted(wanted):
        if split not in rows:
            raise ValueError(f"{name}: the data set has no {split!r} split; it has {', '.join(rows) or 'none'}.")
    parsed = {split: _questions(name, split, rows[split], source) for split in wanted}
    if not source.train:
        train, validation, splits["train"] = [], _questions(name, "validation", rows["validation"], source), "none"
    elif held_out:
        train = [q for i, q in enumerate(parsed[source.train]) if i % HELD_OUT]
        validation = parsed[source.train][::HELD_OUT]
        splits["train"] = f"{source.train} without {held_out}"
    else:
        train, validation = parsed[source.train], _questions(name, "validation", rows["validation"], source)
    task = Task(name, train, validation, parsed[source.test], splits)
    for split in ("train", "validation", "test"):
        if not getattr(task, split) and splits[split] != "none":
            raise ValueError(f"{name}: no usable question is left in the {split} split.")
    return task


def is_own(name: str) -> bool:
    """Whether a name means a file or folder of your own and no known task."""
    return name.partition("@")[0] not in TASKS and is_file_of_questions(name)


def _own(name: str, columns: dict, hub: str | os.PathLike | None) -> Task:
    if is_own(name):
        return load_own(name, **columns)
    source = Source(name, None, (), lambda row: None, "test", "a data set of the Hub")
    return load_own(name, **columns, hub=lambda: _splits_of(name, _downloaded(name, source, hub)))


def _splits_of(name: str, rows: dict[str, Iterable[dict]]) -> dict[str, list[dict]]:
    """The splits of a data set that are used here; one that has a single split is divided."""
    found = {split: [list(rows[n]) for n in names if n in rows] for split, names in SPLITS.items()}
    found = {split: parts[0] for split, parts in found.items() if parts}
    if {"train", "test"} <= found.keys():
        return found
    if len(rows) == 1:
        return {"": list(next(iter(rows.values())))}
    raise ValueError(f"{name} has the splits {', '.join(rows)}; expected train and test, or a single one to divide.")


def full_name(name: str) -> str:
    """A task's name with its edition, as results record it: ``everyday`` is ``everyday@2``; a path stays as it is.

    Raises:
        ValueError: unknown name or edition.
    """
    if is_own(name):
        return name
    bare, _, edition = name.partition("@")
    newest = source_of(bare).edition
    if not edition:
        return f"{bare}@{newest}" if newest else bare
    known = [str(number + 1) for number in range(newest)]
    if edition not in known:
        raise ValueError(f"There is no edition {edition!r} of {bare}. Known editions: {', '.join(known) or 'none'}.")
    return name


def name_in_record(name: str) -> str:
    """The full name of a task that a result names; results without an edition are older than the second."""
    return f"{name}@1" if name in TASKS and TASKS[name].edition else name


def _questions(name: str, split: str, rows: Iterable[dict], source: Source) -> list[Question]:
    out = []
    for number, row in enumerate(rows):
        where = f"{name}, {split} row {number}"
        missing = [column for column in source.columns if column not in row]
        if missing:
            raise ValueError(f"{where}: column {missing[0]!r} is missing; the row has {', '.join(sorted(row))}.")
        empty = [column for column in source.columns if row[column] is None]
        if empty:
            raise ValueError(f"{where}: column {empty[0]!r} is empty.")
        try:
            question = source.convert(row)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{where} does not fit the format of {source.path or name}: {error}") from error
        if question is not None:
            out.append(question)
    return out


def _embedded(name: str) -> dict[str, list[dict]]:
    bare, _, edition = name.partition("@")
    folder = data_path(bare) if int(edition) == TASKS[bare].edition else data_path(bare, "editions", edition)
    return {
        split: [json.loads(line) for line in (folder / f"{split}.jsonl").read_text("utf8").splitlines()]
        for split in ("train", "validation", "test")
    }


def _downloaded(name: str, source: Source, hub: str | os.PathLike | None) -> dict[str, Iterable[dict]]:
    import datasets

    path = source.path
    if hub:
        folder = Path(hub).expanduser() / source.path
        if not folder.is_dir():
            raise FileNotFoundError(f"{name}: the folder {hub} has no {source.path}. Is it laid out like the Hub?")
        path = str(folder)
    datasets.utils.logging.disable_progress_bar()
    try:
        if not hub:
            return dict(datasets.load_dataset(path, source.config))
        # the cache of datasets knows a folder by its README: rows that were edited since would not be seen
        with tempfile.TemporaryDirectory() as fresh:
            loaded = datasets.load_dataset(path, source.config, cache_dir=fresh, keep_in_memory=True)
            return {split: loaded[split].to_list() for split in loaded}
    except Exception as error:  # datasets raises a dozen types for the same three causes
        cause = error
        while cause.__cause__ is not None:  # datasets wraps what went wrong
            cause = cause.__cause__
        raise FileNotFoundError(
            f"{name}: could not load {source.path} from {'the folder ' + str(hub) if hub else 'the Hugging Face Hub'} "
            f"({first_line(cause)}). Check the connection, or name a folder laid out like the Hub with --hub DIR or "
            "the variable IVON_LORA_HUB."
        ) from error
