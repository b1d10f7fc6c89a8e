"""What a method is, what it is given, and what it gives back."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from ..checks import check_counts
from ..evaluation import Predictions, predict
from ..language import Question, Task, full_name, is_own
from ..posterior import LoraPair, Posterior, lora_layers
from ..training import Run
from ..training.presets import known_settings

METRICS_FILE = "metrics.json"  # in the folder of a method's result: its scores, and the settings that it was made with


def _same(task: str, other: str) -> bool:
    """Whether two names mean one task; a file may be named from different folders."""
    a, b = full_name(task), full_name(other)
    return a == b or (is_own(a) and is_own(b) and Path(a).expanduser().resolve() == Path(b).expanduser().resolve())


@dataclass(frozen=True)
class Settings:
    """What all cells of a table share.

    Attributes:
        model, quantize, dtype, rank: the base model and LoRA's rank.
        format: ``"text"`` or ``"letter"``.
        preset: of hyperparameters, ``"small"`` or ``"paper"``.
        steps, batch_size, train_size: of training; ``train_size=None`` takes all questions.
        split: what to report on: ``"test"``, or ``"validation"`` to choose settings.
        test_size: report on only this many questions, from the start.
        validation_size, evaluations: validation questions, and how often training is evaluated on them.
        samples: draws of the methods that draw.
        further_steps, collect_every: of SWA and SWAG, which train on from the AdamW run.
        checkpoint_every: steps between checkpoints, so that even a run can be resumed (0: none).
        shift, shift_size: other tasks whose test questions are answered too, and how many of them, from the start.
        chosen: task → method → settings that replace the method's defaults, such as a learning rate that was chosen on
            the task's validation questions.
        columns: of files of your own: ``question``, ``choices``, ``answer`` …, as of :func:`load_task`.
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
    split: str = "test"
    test_size: int | None = None
    validation_size: int | None = 100
    evaluations: int = 5
    samples: int = 10
    further_steps: int = 50
    collect_every: int = 5
    checkpoint_every: int = 0
    shift: tuple[str, ...] = ()
    shift_size: int | None = 500
    chosen: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    columns: Mapping[str, str | Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = ("rank", "steps", "batch_size", "evaluations", "samples", "further_steps", "collect_every")
        for name in (*counts, "train_size", "test_size", "validation_size", "shift_size"):
            value = getattr(self, name)
            if value is not None or name in counts:
                check_counts(**{name: value})
        if self.split not in ("test", "validation"):
            raise ValueError(f"There is no split {self.split!r} to report on: choose test or validation.")

    def chosen_for(self, task: str, method: str) -> dict:
        """Settings that replace the defaults of a method on a task."""
        found = next((v for name, v in self.chosen.items() if _same(name, task)), {})
        return dict(found.get(method, {}))


@dataclass(frozen=True)
class Bench:
    """What a method is given: a model, a task, settings, and the runs that it stands on.

    Attributes:
        model: with LoRA; it serves all methods, because LoRA starts afresh in every run.
        task: training, validation and test questions.
        settings: what all methods share.
        seeds: one; an ensemble has several.
        runs: finished runs of the method that this one stands on, one per seed.
        folder: unfinished; further files may be put there.
        finished: name of a method → the folder of its result on the same task and seed, or None.
        checkpoints: a folder for the run's own checkpoints.
        further: questions of other tasks, to be answered after the task's own.
        chosen: settings that replace the method's defaults.
        progress: show progress bars.
    """

    model: nn.Module
    task: Task
    settings: Settings
    seeds: tuple[int, ...]
    runs: tuple[Run, ...]
    folder: Path
    finished: Callable[[str], Path | None]
    checkpoints: Path
    further: tuple[Question, ...] = ()
    chosen: Mapping[str, float] = field(default_factory=dict)
    progress: bool = False

    @property
    def run(self) -> Run:
        """The one run that the method stands on."""
        return self.runs[0]

    def training(self) -> dict:
        """Arguments of a training of the method's own: what all methods share, and what was chosen for this one."""
        s = self.settings
        shared = {name: getattr(s, name) for name in ("steps", "batch_size", "train_size", "format", "preset")}
        return {**shared, "seed": self.seeds[0], "eval_every": 0, "progress": self.progress, **self.chosen}

    @property
    def questions(self) -> list[Question]:
        """The questions to report on: the task's own, then those of other tasks."""
        return [*self.own, *self.further]

    @property
    def own(self) -> list[Question]:
        """The task's questions to report on."""
        return getattr(self.task, self.settings.split)[: self.settings.test_size]

    @property
    def validation(self) -> list[Question]:
        """The validation questions to choose on."""
        return self.task.validation[: self.settings.validation_size]


@dataclass(frozen=True)
class Result:
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
    seconds: dict[str, float] = field(default_factory=dict)
    floats: float = 1.0
    passes: float = 1.0
    facts: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """One row of Table 1.

    Attributes:
        name: on the command line and in folders.
        title: in tables.
        about: one sentence.
        make: fills a cell.
        stands_on: the method whose finished run this one starts from; None: it trains a run of its own.
        settings: names of what may be chosen (``Settings.chosen``).
    """

    name: str
    title: str
    about: str
    make: Callable[[Bench], Result]
    stands_on: str | None = None
    settings: Collection[str] = ()


def at_the_mean_of(train: Callable[..., Run]) -> Callable[[Bench], Result]:
    """Fills a cell with what a training of the method's own predicts at its mean."""

    def make(bench: Bench) -> Result:
        run = train(bench.model, bench.task, **bench.training())
        return Result(predict(run, bench.questions, progress=bench.progress), run, {"train": run.seconds})

    return make


def mean_of_run(bench: Bench) -> Result:
    """What the run that a method stands on predicts at its mean."""
    return Result(predict(bench.run, bench.questions, progress=bench.progress))


def named_pairs(model: nn.Module, params: Mapping[str, nn.Parameter]) -> dict[str, tuple[str, LoraPair]]:
    """Name of every A → name of its B, and the two as modules.

    Args:
        model: with LoRA.
        params: name → parameter, such as :func:`trainable` gives.

    Raises:
        ValueError: an A or a B is not among them.
    """
    names, out = {id(p): name for name, p in params.items()}, {}
    for layer, pair in lora_layers(model).items():
        a, b = (names.get(id(module.weight)) for module in (pair.a, pair.b))
        if a is None or b is None:
            raise ValueError(f"{layer}: A and B of LoRA must both be trainable, and without gates.")
        out[a] = b, pair
    return out


def options_of(function: Callable, *fixed: str) -> set[str]:
    """The names of a function's or a class's optional arguments, without those that its row fixes."""
    optional = {p.name for p in inspect.signature(function).parameters.values() if p.default is not p.empty}
    return optional - {"progress", *fixed}


def training_options(optimizer: str) -> set[str]:
    """What may be chosen of a method's own training with an optimizer."""
    return known_settings(optimizer) | {"steps", "batch_size", "accumulation", "schedule"}


def numbers_per_weight(posterior: Posterior, run: Run) -> float:
    """How many numbers a posterior stores per LoRA weight."""
    stored = sum(t.numel() for part in posterior.parts().values() for t in part.values())
    return stored / sum(w.numel() for w in run.weights.values())
