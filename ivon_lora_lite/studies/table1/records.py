"""A finished cell: its folder is whole, and its files agree with each other."""

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from ...evaluation import BINS, METRICS, Predictions, ece_floor, score
from ...files import provenance, read_json, whole_folder, write_json
from ...language import check_askable
from ...methods import METHODS, METRICS_FILE
from ...training import write_run
from .cells import Cell, Context, in_a_name
from .memory import measure_peak

PREDICTIONS = "predictions.safetensors"
KEYS = {"config", "scores", "intervals", "history", "seconds", "cost", "provenance"}
OWN = ("task", "method", "seeds", "splits")  # of the configuration; what is left but "chosen" must agree over a table


@dataclass(frozen=True)
class Record:
    """A cell's results.

    Attributes:
        cell: task, method, seeds.
        config: everything that decides the cell's content.
        scores: metric → value on the test questions.
        content: all of ``metrics.json``.
        predictions: the logits that the scores follow from.
        folder: where it lies.
        bins: of the ECE in ``scores``.
    """

    cell: Cell
    config: dict
    scores: dict[str, float]
    content: dict
    predictions: Predictions
    folder: Path
    bins: int = BINS

    @cached_property
    def shifted(self) -> dict[str, Predictions]:
        """Other task → predictions on its test questions."""
        own = self.cell.task
        names = [task for task in self.config.get("shift", []) if task != own]
        return {task: Predictions.load(self.folder / shifted_file(task)) for task in names}

    @cached_property
    def floor(self) -> float:
        """The ECE that predictions of this confidence would have if they were perfectly calibrated."""
        return ece_floor(self.predictions.ensemble(), self.bins)[0]


def fill(context: Context, cell: Cell, keep_weights: bool = True) -> Path:
    """Compute a cell and write its folder, all or nothing."""
    folder, method = cell.folder(context.out), METHODS[cell.method]
    with whole_folder(folder, last=METRICS_FILE) as temporary:
        bench = context.bench(cell, temporary)
        check_askable(bench.model, [*bench.validation, *bench.questions], bench.settings.format)
        started, peak = time.perf_counter(), measure_peak()
        made = method.make(bench)
        seconds, memory = {**made.seconds, "all": time.perf_counter() - started}, peak()
        needed = method.stands_on is None or any(other.stands_on == method.name for other in METHODS.values())
        if made.run is not None and (keep_weights or needed):
            write_run(made.run, temporary)
        config, own = context.config(cell), made.run.config if made.run else {}
        posterior = made.run.posterior.metadata if made.run and made.run.posterior else {}
        parts = _by_task(made.predictions, context, config)
        whole = parts.pop(cell.task)
        whole.save(temporary / PREDICTIONS)
        for task, predictions in parts.items():
            predictions.save(temporary / shifted_file(task))
        scores = score(whole)
        content = {
            "config": config,
            "scores": dict(scores),
            "intervals": scores.intervals,
            "facts": made.facts,
            "settings": own.get("settings", {}) | own.get(own.get("method"), {}),
            "posterior": {name: fact for name, fact in posterior.items() if name != "points"},
            "history": made.run.history if made.run else [],
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
            "cost": {"floats_per_weight": round(made.floats, 2), "passes_per_question": made.passes, **memory},
            "provenance": provenance(),
        }
        write_json(temporary / METRICS_FILE, content)
    return folder


def _by_task(predictions: Predictions, context: Context, config: dict) -> dict[str, Predictions]:
    """Predictions of the cell's own task, and of the others whose questions follow, each by its task's name."""
    sizes = {context.name: len(predictions.labels) - sum(map(len, context.shifted.values()))}
    sizes |= {task: len(questions) for task, questions in context.shifted.items()}
    parts = zip(predictions.logits.split(list(sizes.values()), 1), predictions.labels.split(list(sizes.values())))
    out = {}
    for task, (logits, labels) in zip(sizes, parts):
        choices = int(logits.isfinite().any(0).any(0).nonzero().max()) + 1  # other tasks may have more
        facts = {**predictions.metadata, **config} | ({} if task == context.name else {"tested_on": task})
        out[task] = Predictions(logits[..., :choices].contiguous(), labels.contiguous(), facts)
    return out


def shifted_file(task: str) -> str:
    """Where the predictions on another task's questions are."""
    return f"on-{in_a_name(task)}.safetensors"


def load_record(folder: str | os.PathLike, bins: int = BINS) -> Record:
    """Read a cell's folder and check that its scores follow from its predictions.

    Args:
        folder: of the cell.
        bins: of the ECE in ``scores``; the file's own has ten.

    Raises:
        FileNotFoundError: the cell is not finished.
        ValueError: a file is damaged, or was changed after the cell was made.
    """
    folder = Path(folder)
    content = read_json(folder / METRICS_FILE)
    if not isinstance(content, dict) or KEYS.difference(content) or set(OWN).difference(content["config"]):
        raise ValueError(f"{folder / METRICS_FILE} is damaged, or not the record of a cell.")
    config = content["config"]
    predictions = Predictions.load(folder / PREDICTIONS)
    repeat = "delete the folder to make this cell again"
    for name, value in config.items():
        if predictions.metadata.get(name) != value:
            raise ValueError(
                f"{folder} was edited by hand: {name} is {value} in {METRICS_FILE} and "
                f"{predictions.metadata.get(name)} in {PREDICTIONS}; {repeat}."
            )
    cell = Cell(config["task"], config["method"], tuple(config["seeds"]))
    if cell.folder(Path()).parts != folder.parts[-3:]:
        raise ValueError(f"{folder} holds {cell.label}, which belongs into {cell.folder(Path())}: move it there.")
    scores = score(predictions, intervals=False)
    for name in METRICS:
        if abs(scores[name] - content["scores"].get(name, float("nan"))) <= 1e-6:
            continue
        raise ValueError(
            f"{folder} was edited by hand: {name} is {content['scores'].get(name)} in {METRICS_FILE}, and its "
            f"predictions give {scores[name]:.6f}; {repeat}."
        )
    scores = score(predictions, intervals=False, bins=bins)
    return Record(cell, config, dict(scores), content, predictions, folder, bins)


def load_records(out: str | os.PathLike, bins: int = BINS) -> list[Record]:
    """All finished cells of a folder, in the order of the table's rows; they must belong together.

    Of several ensembles of a method there is the largest only: they share members.

    Raises:
        FileNotFoundError: there is none.
        ValueError: see :func:`load_record` and :func:`check_together`.
    """
    out = Path(out)
    rank = {name: place for place, name in enumerate(METHODS)}
    found = sorted(file.parent for file in out.glob(f"*/*/seed*/{METRICS_FILE}"))
    records = [load_record(folder, bins) for folder in found]
    if not records:
        raise FileNotFoundError(f"{out} holds no finished cell of a table: run `table1 --out {out}` first.")
    check_together(records)
    kept: dict[tuple, Record] = {}
    for r in sorted(records, key=lambda r: -len(r.cell.seeds)):
        seeds = r.cell.seeds if len(r.cell.seeds) == 1 else "several"
        kept.setdefault((r.cell.task, r.cell.method, seeds), r)
    return sorted(kept.values(), key=lambda r: (r.cell.task, rank.get(r.cell.method, len(rank)), r.cell.seeds))


def check_together(records: Sequence[Record]) -> None:
    """Refuse records that do not belong in one table: other models, settings, splits or questions.

    Raises:
        ValueError: names the first two that differ, and in what.
    """
    first = records[0]
    by_task: dict[str, Record] = {}
    for record in records:
        peer = by_task.setdefault(record.cell.task, record)
        for name in [*(n for n in first.config if n not in (*OWN, "chosen")), "splits"]:
            other = peer if name == "splits" else first
            if record.config.get(name) != other.config[name]:
                raise ValueError(
                    f"{other.folder} and {record.folder} do not belong in one table: {name} is {other.config[name]} "
                    f"and {record.config.get(name)}."
                )
        if not torch.equal(record.predictions.labels, peer.predictions.labels):
            raise ValueError(
                f"{peer.folder} and {record.folder} do not belong in one table: their test questions differ."
            )


def export(out: str | os.PathLike, to: str | os.PathLike) -> int:
    """Copy scores and predictions of all finished cells, without weights, to another folder; returns how many.

    That is enough for :class:`~ivon_lora_lite.studies.table1.Table`, and small enough to be published.
    """
    records = load_records(out)
    for record in records:
        target = record.cell.folder(Path(to))
        target.mkdir(parents=True, exist_ok=True)
        others = [shifted_file(task) for task in record.shifted]
        for name in (*others, PREDICTIONS, METRICS_FILE):
            shutil.copyfile(record.folder / name, target / name)
    return len(records)
