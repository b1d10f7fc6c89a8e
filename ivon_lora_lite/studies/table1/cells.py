"""A cell of the table: one method on one task with one seed, and what its method needs to fill it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

from torch import nn

from ...language import LoraSettings, Question, Task, full_name, is_own, load_model, load_task
from ...methods import METHODS, Bench, Settings
from ...training import Run, fingerprint, load_run


def in_a_name(task: str) -> str:
    """A task in the name of a file or folder; those of different paths may have the same."""
    return task.replace("/", "-")


@dataclass(frozen=True)
class Cell:
    """One method on one task with one seed; an ensemble has several seeds."""

    task: str
    method: str
    seeds: tuple[int, ...]

    @property
    def seed(self) -> int:
        """The first seed."""
        return self.seeds[0]

    @property
    def label(self) -> str:
        """For people: task, method and seed."""
        return f"{self.task} · {self.method} · seed {' '.join(map(str, self.seeds))}"

    def folder(self, out: Path) -> Path:
        """``OUT/TASK/METHOD/seedS`` (``glue-rte`` for glue/rte); an ensemble's has all its seeds."""
        return out / in_a_name(self.task) / self.method / f"seed{'-'.join(map(str, self.seeds))}"

    def base(self) -> tuple[Cell, ...]:
        """The cells whose run this one starts from."""
        stands_on = METHODS[self.method].stands_on
        return tuple(Cell(self.task, stands_on, (seed,)) for seed in self.seeds) if stands_on else ()


class Context:
    """Model, questions and finished runs of one (table, task), loaded when they are first asked for."""

    def __init__(self, out: Path, task: str, settings: Settings, hub: str | None = None, progress: bool = False):
        self.out, self.name, self.settings, self.hub, self.progress = out, task, settings, hub, progress
        self._runs: dict[Cell, Run] = {}

    @property
    def model(self) -> nn.Module:
        s = self.settings
        return _model(s.model, s.quantize, s.dtype, s.rank)

    @cached_property
    def task(self) -> Task:
        return self._loaded(self.name)

    @cached_property
    def shifted(self) -> dict[str, list[Question]]:
        """Test questions of the other tasks that are answered too."""
        names = [full_name(name) for name in self.settings.shift]
        return {
            name: self._loaded(name).test[: self.settings.shift_size] for name in names if name != full_name(self.name)
        }

    def _loaded(self, name: str) -> Task:
        return load_task(name, hub=self.hub, **(self.settings.columns if is_own(name) else {}))

    @cached_property
    def _own(self) -> dict[str, str]:
        """Of questions of your own, what they are: a file may change between two calls."""
        found = {}
        if self.task.data:
            found["questions"] = fingerprint([*self.task.train, *self.task.validation, *self.task.test])
        return found | {f"on {name}": fingerprint(qs) for name, qs in self.shifted.items() if is_own(name)}

    def run(self, cell: Cell) -> Run:
        """A finished cell's run."""
        if cell not in self._runs:
            self._runs[cell] = load_run(cell.folder(self.out), self.model)
        return self._runs[cell]

    def bench(self, cell: Cell, folder: Path) -> Bench:
        """What the cell's method is given; ``folder`` is the unfinished one."""

        def finished(method: str) -> Path | None:
            place = replace(cell, method=method).folder(self.out)
            return place if place.exists() else None

        return Bench(
            self.model, self.task, self.settings, cell.seeds, tuple(self.run(base) for base in cell.base()), folder,
            finished, cell.folder(self.out / ".checkpoints"),
            tuple(q for questions in self.shifted.values() for q in questions), self.chosen(cell), self.progress,
        )  # fmt: skip

    def config(self, cell: Cell) -> dict:
        """What decides the content of a cell; cells of a table differ in method, task and seeds only."""
        shared = {n: value for n, value in asdict(self.settings).items() if n not in ("checkpoint_every", "chosen")}
        shared["shift"] = [full_name(name) for name in shared["shift"]]
        usual = {"split": "test", "shift": [], "columns": {}}  # as in records from before there was a choice
        for name in usual:
            if shared[name] == usual[name]:
                del shared[name]
        if "shift" not in shared:
            del shared["shift_size"]
        splits = {"test": self.task.splits["test"], "validation": self.task.splits["validation"], **self._own}
        own = {"task": cell.task, "method": cell.method, "seeds": list(cell.seeds), "splits": splits}
        return {**own, **shared, **({"chosen": self.chosen(cell)} if self.chosen(cell) else {})}

    def chosen(self, cell: Cell) -> dict:
        """Settings that replace the defaults of a cell's method on its task."""
        return self.settings.chosen_for(cell.task, cell.method)


@lru_cache(maxsize=1)
def _model(name: str, quantize: str | None, dtype: str, rank: int) -> nn.Module:
    """One model serves all cells of a process: LoRA starts afresh in every run."""
    return load_model(name, quantize=quantize, dtype=dtype, lora=LoraSettings(r=rank), progress=False)
