"""A cell of the table: one method on one task with one seed, made by the same `predict` and `score` for all methods."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path

from torch import nn

from ..baselines import METHODS as BASELINES
from ..baselines import ensemble, laplace, linearized_laplace, mc_dropout, swa, swag, temperature
from ..experiment import RUN_FILE, load_run
from ..linearization import Linearized
from ..models import LoraSettings, load_model
from ..posterior import Posterior
from ..prediction import Predictions, predict
from ..tasks import Task, load_task
from ..train import Run, finetune
from .early_stopping import BEST, KeepBest

__all__ = ["METHODS", "Cell", "Context", "Made", "Settings"]

EARLY = "AdamW, early-stopped: its weights at the lowest validation NLL"
# in the order of the table's rows
ROWS = (
    "adamw", "adamw@early", "mc_dropout", "laplace_kfac", "laplace_diag", "swa", "swag", "temperature", "ensemble",
    "ivon@mean", "ivon",
)  # fmt: skip
METHODS = {name: EARLY if name == "adamw@early" else BASELINES[name] for name in ROWS}
STANDS_ON = {name: "adamw" for name in METHODS} | {"ivon@mean": "ivon"}
STANDS_ON = {name: base for name, base in STANDS_ON.items() if name not in ("adamw", "ivon")}


@dataclass(frozen=True)
class Settings:
    """What all cells of a table share.

    Attributes:
        model, quantize, dtype, rank: the base model and LoRA's rank.
        format: ``"text"`` or ``"letter"``.
        preset: of hyperparameters, ``"small"`` or ``"paper"``.
        steps, batch_size, train_size: of training; ``train_size=None`` takes all questions.
        test_size: report on the first so many test questions.
        validation_size, evaluations: validation questions, and how often training is evaluated on them.
        samples: draws of the methods that draw.
        further_steps, collect_every: of SWA and SWAG, which train on from the AdamW run.
        checkpoint_every: write a checkpoint every so many steps, so that even a run can be resumed (0: never).
    """

    model: str = "smollm2-135m"
    quantize: str | None = None
    dtype: str = "auto"
    rank: int = 8
    format: str = "text"
    preset: str = "small"
    steps: int = 200
    batch_size: int = 4
    train_size: int | None = None
    test_size: int | None = None
    validation_size: int | None = 100
    evaluations: int = 5
    samples: int = 10
    further_steps: int = 50
    collect_every: int = 5
    checkpoint_every: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "steps", "batch_size", "evaluations", "samples", "further_steps", "collect_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        for name in ("train_size", "test_size", "validation_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")


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
        return out / self.task.replace("/", "-") / self.method / f"seed{'-'.join(map(str, self.seeds))}"

    def base(self) -> tuple[Cell, ...]:
        """The cells whose run this one starts from."""
        if self.method not in STANDS_ON:
            return ()
        return tuple(Cell(self.task, STANDS_ON[self.method], (seed,)) for seed in self.seeds)


@dataclass(frozen=True)
class Made:
    """What a method gives.

    Attributes:
        predictions: on the test questions.
        run: to be saved with the cell, if the method has weights or a posterior of its own.
        seconds: ``train`` (from scratch), ``fit`` (what comes on top of the run it stands on).
        floats: numbers stored per LoRA weight.
        passes: forward passes per test question (a backward pass counts as two).
        facts: more, such as the temperature that was fitted.
    """

    predictions: Predictions
    run: Run | None = None
    seconds: dict[str, float] | None = None
    floats: float = 1.0
    passes: float = 1.0
    facts: dict | None = None


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
        return load_task(self.name, hub=self.hub)

    @property
    def questions(self) -> list:
        return self.task.test[: self.settings.test_size]

    @property
    def validation(self) -> list:
        return self.task.validation[: self.settings.validation_size]

    def run(self, cell: Cell) -> Run:
        """A finished cell's run."""
        if cell not in self._runs:
            self._runs[cell] = load_run(cell.folder(self.out), self.model)
        return self._runs[cell]

    def config(self, cell: Cell) -> dict:
        """What decides the content of a cell; cells of a table differ in method, task and seeds only."""
        shared = {name: value for name, value in asdict(self.settings).items() if name != "checkpoint_every"}
        splits = {"test": self.task.splits["test"], "validation": self.task.splits["validation"]}
        return {"task": cell.task, "method": cell.method, "seeds": list(cell.seeds), **shared, "splits": splits}


@lru_cache(maxsize=1)
def _model(name: str, quantize: str | None, dtype: str, rank: int) -> nn.Module:
    """One model serves all cells of a process: LoRA starts afresh in every run."""
    return load_model(name, quantize=quantize, dtype=dtype, lora=LoraSettings(r=rank, alpha=2 * rank))


def make(context: Context, cell: Cell, folder: Path) -> Made:
    """Fill a cell. ``folder`` is the unfinished one: further files may be put there."""
    return _MAKERS[cell.method](context, cell, folder)


def _trained(context: Context, cell: Cell, folder: Path) -> Made:
    s = context.settings
    every = max(1, s.steps // s.evaluations)
    best = KeepBest(context.task, s.format, every, s.validation_size)
    options = {}
    if s.checkpoint_every:
        checkpoints = context.out / ".checkpoints" / cell.task / cell.method / f"seed{cell.seed}"
        options = {"output_dir": checkpoints, "save_every": s.checkpoint_every, "resume": True}
    run = finetune(
        context.model, context.task, optimizer=cell.method, steps=s.steps, seed=cell.seed, batch_size=s.batch_size,
        train_size=s.train_size, format=s.format, preset=s.preset, callbacks=[best], progress=context.progress,
        **options,
    )  # fmt: skip
    run = replace(run, history=sorted([*run.history, *best.history], key=lambda record: record["step"]))
    best.save(folder)
    if s.checkpoint_every:
        shutil.rmtree(checkpoints, ignore_errors=True)
    samples = s.samples if cell.method == "ivon" else 0
    predictions = predict(run, context.questions, samples=samples, progress=context.progress)
    seconds = {"train": run.seconds - best.seconds}
    return Made(predictions, run, seconds, 2.0 if samples else 1.0, samples or 1, {"best_step": best.step})


def _ivon_mean(context: Context, cell: Cell, folder: Path) -> Made:
    return Made(predict(context.run(*cell.base()), context.questions, progress=context.progress))


def _early(context: Context, cell: Cell, folder: Path) -> Made:
    (base,) = cell.base()
    best = KeepBest.load(base.folder(context.out) / BEST)
    run = replace(context.run(base), weights=best.weights)
    return Made(predict(run, context.questions, progress=context.progress), facts={"best_step": best.step})


def _mc_dropout(context: Context, cell: Cell, folder: Path) -> Made:
    samples = context.settings.samples
    run = context.run(*cell.base())
    return Made(mc_dropout(run, context.questions, samples=samples, progress=context.progress), passes=samples)


def _laplace(context: Context, cell: Cell, folder: Path) -> Made:
    started = time.perf_counter()
    base = context.run(*cell.base())
    run = laplace(base, context.task, cell.method.removeprefix("laplace_"), progress=context.progress)
    seconds = {"fit": time.perf_counter() - started}
    line = linearized_laplace(run, context.questions, progress=context.progress)
    facts = {"prior_precision": run.posterior.metadata["prior_precision"]}
    passes = 1 + 2 * line.mean.shape[1]
    return Made(_averaged(line), run, seconds, _size(run.posterior) / _count(run), passes, facts)


def _swag(context: Context, cell: Cell, folder: Path) -> Made:
    s = context.settings
    run = swag(context.run(*cell.base()), context.task, steps=s.further_steps, every=s.collect_every, progress=False)
    predictions = predict(run, context.questions, samples=s.samples, progress=context.progress)
    return Made(predictions, run, {"fit": run.seconds}, _size(run.posterior) / _count(run), s.samples)


def _swa(context: Context, cell: Cell, folder: Path) -> Made:
    """The mean of SWAG's Gaussian, if that is there: the same steps and the same weights; else trained on."""
    s = context.settings
    with_draws = replace(cell, method="swag")
    if (with_draws.folder(context.out) / RUN_FILE).exists():
        run = context.run(with_draws)
        run = replace(run, posterior=None, config={**run.config, "method": "swa"})
    else:
        run = swa(context.run(*cell.base()), context.task, steps=s.further_steps, every=s.collect_every, progress=False)
    return Made(predict(run, context.questions, progress=context.progress), run, {"fit": run.seconds})


def _temperature(context: Context, cell: Cell, folder: Path) -> Made:
    run = context.run(*cell.base())
    started = time.perf_counter()
    held_out = predict(run, context.validation, progress=context.progress)
    scaled, chosen = temperature(held_out, predict(run, context.questions, progress=context.progress))
    return Made(scaled, None, {"fit": time.perf_counter() - started}, facts={"temperature": chosen})


def _ensemble(context: Context, cell: Cell, folder: Path) -> Made:
    runs = [context.run(base) for base in cell.base()]
    predictions = ensemble(runs, context.questions, progress=context.progress)
    return Made(predictions, None, {"train": sum(run.seconds for run in runs)}, len(runs), len(runs))


_MAKERS: dict[str, Callable[[Context, Cell, Path], Made]] = {
    "adamw": _trained,
    "adamw@early": _early,
    "mc_dropout": _mc_dropout,
    "laplace_kfac": _laplace,
    "laplace_diag": _laplace,
    "swa": _swa,
    "swag": _swag,
    "temperature": _temperature,
    "ensemble": _ensemble,
    "ivon@mean": _ivon_mean,
    "ivon": _trained,
}


def _averaged(line: Linearized) -> Predictions:
    """The many cheap draws of a linearised Gaussian as the one prediction that they average to, ``[1, N, C]``."""
    draws = line.logits(1.0).double().log_softmax(-1)
    log_p = draws.logsumexp(0) - math.log(len(draws))
    return Predictions(log_p.float()[None], line.labels, {**line.metadata, "tau": 1.0, "linearized": True})


def _size(posterior: Posterior) -> float:
    """Numbers that a posterior stores."""
    parts = [getattr(posterior, f.name) for f in fields(posterior) if f.name != "metadata"]
    return float(sum(t.numel() for part in parts for t in part.values()))


def _count(run: Run) -> int:
    """LoRA weights."""
    return sum(w.numel() for w in run.weights.values())
