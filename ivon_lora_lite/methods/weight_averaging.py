"""SWA and SWAG: train on at a constant learning rate, and keep the mean and the spread of the weights on the way."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim.swa_utils import get_swa_multi_avg_fn
from transformers import TrainerCallback

from ..checks import check_counts
from ..evaluation import predict
from ..files import read_json
from ..language import Question, Task
from ..posterior import LowRankPosterior, trainable
from ..training import RUN_FILE, Run, finetune, load_run
from .base import METRICS_FILE, Bench, Method, Result, numbers_per_weight, options_of

SMALLEST = 1e-30  # of Σ_d: rounding can make a variance of moments 0 or negative


class WeightCollector(TrainerCallback):
    """Collects the trainable weights every few optimizer steps.

    Running moments over the n weights θ₁ … θ_n seen so far (Izmailov et al. 2018; Maddox et al. 2019):

        θ̄ ← (n θ̄ + θ)/(n + 1),   q̄ ← (n q̄ + θ²)/(n + 1),   D̂: the last K of θ_i − θ̄_i

    They are kept on the CPU in double precision, because q̄ − θ̄² subtracts nearly equal numbers. The update is torch's
    (``torch.optim.swa_utils``); its ``AveragedModel`` is not used, because it copies the whole model with the frozen
    base, and keeps no second moment. Collected weights are not part of a checkpoint: a resumed run collects afresh.

    Args:
        every: optimizer steps between two collections.
        rank: K, the largest number of deviations to keep; 0 keeps none (SWA).
    """

    reads_weights = True

    def __init__(self, every: int = 5, rank: int = 10):
        check_counts(every=every)
        check_counts(0, rank=rank)
        self.every, self.rank = every, rank
        self.forget()

    def on_train_begin(self, args, state, control, **kwargs):
        self.forget()

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every == 0:
            self.collect({name: p.detach() for name, p in trainable(model).items()})

    def forget(self) -> None:
        """Begin anew."""
        self.count, self.names = 0, []
        self._mean: list[Tensor] = []
        self._square: list[Tensor] = []
        self._deviations: deque[list[Tensor]] = deque(maxlen=self.rank)

    def collect(self, weights: dict[str, Tensor]) -> None:
        """Add one set of weights, name → tensor."""
        now = [w.to("cpu", torch.float64, copy=True) for w in weights.values()]
        if not self.count:
            self.names = list(weights)
            self._mean, self._square = [torch.zeros_like(w) for w in now], [torch.zeros_like(w) for w in now]
        average = get_swa_multi_avg_fn()
        average(self._mean, now, self.count)
        average(self._square, [w.square() for w in now], self.count)
        self.count += 1
        if self.rank:
            self._deviations.append([(w - m).float() for w, m in zip(now, self._mean)])

    def mean(self) -> dict[str, Tensor]:
        """θ̄, name → fp32 tensor."""
        if not self.count:
            raise ValueError(f"No weights were collected: training was shorter than every={self.every} steps.")
        return {name: m.float() for name, m in zip(self.names, self._mean)}

    def posterior(self, **metadata: object) -> LowRankPosterior:
        """SWAG's Gaussian; K is the number of deviations really collected (the first of them is 0).

        Raises:
            ValueError: fewer than two weights were collected, or rank is below 2.
        """
        if min(self.count, self.rank) < 2:
            raise ValueError(
                f"SWAG needs at least two collected weights and rank 2, not {self.count} and {self.rank}: train longer "
                "or collect more often."
            )
        spread = [(q - m.square()).clamp(min=SMALLEST).float() for q, m in zip(self._square, self._mean)]
        deviations = [torch.stack(column) for column in zip(*self._deviations)]  # [K, *shape]
        facts = {"collected": self.count, "rank": len(self._deviations), "every": self.every}
        return LowRankPosterior(
            self.mean(), dict(zip(self.names, spread)), dict(zip(self.names, deviations)), {**facts, **metadata}
        )


def swa(
    run: Run,
    task: Task | Sequence[Question],
    *,
    steps: int = 100,
    lr: float | None = None,
    every: int = 5,
    progress: bool = True,
) -> Run:
    """Stochastic weight averaging: the mean of the weights along further training (Izmailov et al. 2018).

    A SWAG run predicts the same when it has no draws, so ``predict(swag(run, task), questions)`` is this row too.

    Args:
        run: a finished AdamW run, the start.
        task: its task, or its training questions.
        steps: further optimizer steps, with AdamW at a constant learning rate.
        lr: default: the peak learning rate of the run.
        every: optimizer steps between two collections.
        progress: show a progress bar.

    Returns:
        A :class:`Run` whose weights are the mean; its ``seconds`` are those of the further training.

    Raises:
        ValueError: fewer than ``every`` steps, or an IVON run without ``lr``.
    """
    if steps < every:
        raise ValueError(f"{steps} steps are too few to collect weights every {every} steps.")
    collector = WeightCollector(every, rank=0)
    continued = _continue(run, task, steps, lr, collector, progress)
    return replace(continued, weights=collector.mean(), config=_config(run, continued, collector, "swa"))


def swag(
    run: Run,
    task: Task | Sequence[Question],
    *,
    steps: int = 100,
    lr: float | None = None,
    every: int = 5,
    rank: int = 10,
    progress: bool = True,
) -> Run:
    """SWAG: a Gaussian with the mean and covariance of the weights along further training (Maddox et al. 2019).

    Args:
        run, task, steps, lr, every, progress: as in :func:`swa`.
        rank: largest number of deviations K.

    Returns:
        A :class:`Run` with a :class:`LowRankPosterior`: ``predict(…, samples=10)`` and ``tau_sweep`` work on it.

    Raises:
        ValueError: fewer than two collections, rank below 2, or an IVON run without ``lr``.
    """
    if steps < 2 * every or rank < 2:
        raise ValueError(f"SWAG needs at least 2 collections and rank 2: {steps} steps, every={every}, rank={rank}.")
    collector = WeightCollector(every, rank)
    continued = _continue(run, task, steps, lr, collector, progress)
    posterior = collector.posterior(task=run.config["task"], seed=run.config["seed"])
    return replace(
        continued,
        weights=dict(posterior.mean),
        posterior=posterior,
        config=_config(run, continued, collector, "swag"),
    )


def _continue(run: Run, task, steps: int, lr: float | None, collector: WeightCollector, progress: bool) -> Run:
    """Train on from a run's weights with AdamW at a constant learning rate, everything else as in the run."""
    config = run.config
    settings = {"lr": lr}
    if config["optimizer"] == "adamw":
        settings = {**config["settings"], "lr": config["settings"]["lr"] if lr is None else lr}
    elif lr is None:
        raise ValueError("IVON's learning rate does not suit AdamW: give swa or swag an lr.")
    kept = {name: config[name] for name in ("seed", "batch_size", "accumulation", "train_size", "format")}
    return finetune(
        run.model,
        task,
        optimizer="adamw",
        steps=steps,
        start=run.weights,
        schedule="constant",
        eval_every=0,
        callbacks=[collector],
        progress=progress,
        **kept,
        **settings,
    )


def _config(run: Run, continued: Run, collector: WeightCollector, method: str) -> dict:
    """The continued run's settings, with what it began from."""
    start = {name: run.config[name] for name in ("optimizer", "steps", "seed", "settings")} | {"seconds": run.seconds}
    facts = {"method": method, "every": collector.every, "collected": collector.count, "start": start}
    return {**continued.config, "task": run.config["task"], **facts}


def _further(bench: Bench) -> dict:
    """How a cell trains on."""
    s = bench.settings
    return {"steps": s.further_steps, "every": s.collect_every, "progress": bench.progress, **bench.chosen}


def _make_swag(bench: Bench) -> Result:
    run, samples = swag(bench.run, bench.task, **_further(bench)), bench.settings.samples
    predictions = predict(run, bench.questions, samples=samples, progress=bench.progress)
    return Result(predictions, run, {"fit": run.seconds}, numbers_per_weight(run.posterior, run), samples)


def _make_swa(bench: Bench) -> Result:
    """The mean of SWAG's Gaussian, if that is there with the same settings: the same weights; else trained on."""
    with_draws = bench.finished("swag")
    same = with_draws and read_json(with_draws / METRICS_FILE)["config"].get("chosen", {}) == dict(bench.chosen)
    if same and (with_draws / RUN_FILE).exists():
        run = load_run(with_draws, bench.model)
        run = run.derived("swa", posterior=None)
    else:
        run = swa(bench.run, bench.task, **_further(bench))
    return Result(predict(run, bench.questions, progress=bench.progress), run, {"fit": run.seconds})


SWA = Method("swa", "+ SWA", "SWA: mean of the weights along further training", _make_swa, "adamw", options_of(swa))
SWAG = Method(
    "swag",
    "+ SWAG",
    "SWAG: Gaussian with the mean and covariance of the weights along further training",
    _make_swag,
    stands_on="adamw",
    settings=options_of(swag),
)
