"""Draws → logits ``[S, N, C]`` → probabilities and scores.

Draws are drawn once: every metric, temperature and number of draws is computed from the stored logits afterwards. One
draw serves the whole set of questions, and the same seed gives the same ε for every τ.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from . import metrics
from .files import read_tensors, write_tensors
from .posterior import Posterior, applied_weights
from .scoring import answer_logits, collate
from .stacking import can_stack, stacked
from .tasks import Question

if TYPE_CHECKING:
    from .train import Run

__all__ = ["METRICS", "Predictions", "Scores", "predict", "score"]

METRICS = ("acc", "ece", "nll", "brier")
FORMAT = "ivon_lora_lite.Predictions/1"


@dataclass(frozen=True)
class Predictions:
    """Answer logits of S draws (or of one point) on N questions.

    Attributes:
        logits: ``[S, N, C]`` in fp32; −∞ where a question has fewer than C choices.
        labels: ``[N]`` indices of the right choices.
        metadata: JSON-able facts: task, split, samples, tau, seed …
    """

    logits: Tensor
    labels: Tensor
    metadata: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.logits.dim() != 3 or self.labels.dim() != 1 or self.logits.shape[1] != len(self.labels):
            raise ValueError(
                f"logits have shape {tuple(self.logits.shape)} and labels {tuple(self.labels.shape)}; expected "
                "[S, N, C] and [N]."
            )

    @property
    def samples(self) -> int:
        """Number of draws S (1 for a prediction at the mean)."""
        return self.logits.shape[0]

    @property
    def probabilities(self) -> Tensor:
        """Softmax of every draw, ``[S, N, C]``."""
        return self.logits.softmax(-1)

    def ensemble(self, samples: int | None = None) -> Tensor:
        """Average of the probabilities of the first ``samples`` draws (default: all), ``[N, C]``."""
        count = self.samples if samples is None else samples
        if not 1 <= count <= self.samples:
            raise ValueError(f"samples is {samples}; there are {self.samples} draws.")
        return self.probabilities[:count].mean(0)

    def mutual_information(self) -> Tensor:
        """How much the draws disagree about each question, ``[N]`` in nats."""
        return metrics.mutual_information(self.probabilities)

    def save(self, path: str | os.PathLike) -> Path:
        """Write a safetensors file, all or nothing."""
        return write_tensors(path, FORMAT, {"logits": self.logits, "labels": self.labels}, self.metadata)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Predictions:
        """Read a file of :meth:`save`.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged or holds something else.
        """
        tensors, facts = read_tensors(path, FORMAT, "predictions")
        return cls(tensors["logits"], tensors["labels"], facts)


class Scores(dict):
    """``{"acc": …, "ece": …, "nll": …, "brier": …}`` with ``.intervals`` (95 %) and a readable ``str``."""

    def __init__(self, values: dict[str, float], intervals: dict[str, tuple[float, float]], questions: int):
        super().__init__(values)
        self.intervals = intervals
        self.questions = questions

    def __str__(self) -> str:
        parts = []
        for name in METRICS:
            low, high = self.intervals.get(name, (float("nan"),) * 2)
            span = f" [{low:.3f}, {high:.3f}]" if self.intervals else ""
            parts.append(f"{name.upper()} {self[name]:.3f}{span}")
        return " · ".join(parts) + f"  ({self.questions} questions)"


def score(predictions: Predictions | Tensor, labels: Tensor | None = None, *, intervals: bool = True) -> Scores:
    """Accuracy, ECE (10 bins), NLL and Brier score of averaged predictions, with bootstrap intervals over questions.

    Args:
        predictions: :class:`Predictions`, or probabilities ``[N, C]`` with ``labels`` ``[N]``.
        labels: only with probabilities.
        intervals: also the 95 % intervals (1,000 resamples).

    Returns:
        A :class:`Scores`.
    """
    if isinstance(predictions, Predictions):
        probs, labels = predictions.ensemble(), predictions.labels
    elif labels is None:
        raise ValueError("Probabilities need labels: score(probs, labels).")
    else:
        probs = predictions
    probs = probs.double()
    values = {
        "acc": float(metrics.accuracy(probs, labels)),
        "ece": float(metrics.ece(probs, labels)),
        "nll": float(metrics.nll(probs, labels)),
        "brier": float(metrics.brier(probs, labels)),
    }
    return Scores(values, metrics.bootstrap_intervals(probs, labels) if intervals else {}, len(labels))


def predict(
    source: Run | nn.Module,
    questions: Sequence[Question],
    *,
    samples: int = 0,
    tau: float = 1.0,
    seed: int = 0,
    posterior: Posterior | None = None,
    format: str | None = None,
    batch_size: int = 8,
    draws_per_pass: int = 5,
    progress: bool = False,
) -> Predictions:
    """Predict at the mean, or with draws from N(m, τΣ); IVON's Σ is diag v.

    Args:
        source: a finished run, or a model (then with its present weights, or with ``posterior``).
        questions: what to answer.
        samples: number of draws S; 0 predicts at the mean.
        tau: scale of the covariance, τ ≥ 0.
        seed: draw s uses seed + s, for all questions and every τ.
        posterior: anything with ``mean``, ``sample`` and ``applied`` (:class:`Posterior`); default: the run's own.
        format: ``"letter"``, ``"text"`` or ``"class"``; default: the run's, or text.
        batch_size: questions per forward pass.
        draws_per_pass: draws that share a forward pass of the frozen base; 1 needs the least memory.
        progress: show a progress bar.

    Returns:
        :class:`Predictions` with S = max(samples, 1).

    Raises:
        ValueError: there are no questions; draws are asked of something that has no posterior.
    """
    if not questions:
        raise ValueError("There are no questions to predict.")
    if samples < 0:
        raise ValueError(f"samples is {samples}; expected 0 (the mean) or a number of draws.")
    model, weights = source, None
    if not isinstance(source, nn.Module):
        model, weights = source.model, source.weights
        posterior = posterior or source.posterior
        format = format or source.config["format"]
    if samples and posterior is None:
        raise ValueError("There is no posterior to draw from: finetune with optimizer='ivon', or use samples=0.")
    if posterior is not None:
        weights = posterior.mean
    batches = Batches(model, questions, format or "text", batch_size)

    if samples:
        logits = batches.draws(posterior, [seed + s for s in range(samples)], tau, draws_per_pass, progress)
    else:
        mean = (lambda: applied_weights(model, weights)) if weights is not None else nullcontext
        logits = batches.logits(mean, progress)[None]  # [S, N, C]
    facts = {"samples": samples, "tau": tau if samples else 0.0, "seed": seed, "format": format or "text"}
    return Predictions(logits, torch.tensor([q.answer for q in questions]), facts)


class Batches:
    """Questions, tokenised once in order of length, to be run through a model with any weights."""

    def __init__(self, model: nn.Module, questions: Sequence[Question], format: str, batch_size: int):
        self.model = model
        self.choices = max(len(q.choices) for q in questions)
        order = sorted(range(len(questions)), key=lambda i: len(questions[i].prompt))
        self.indices = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        self.batches = [collate([questions[i] for i in index], model.tokenizer, format) for index in self.indices]

    def logits(self, context: Callable[[], AbstractContextManager] = nullcontext, progress: bool = False) -> Tensor:
        """Logits ``[N, C]`` on the CPU, in evaluation mode, within ``context()``."""
        return self._run(context, 1, progress)[0]

    def draws(
        self, posterior: Posterior, seeds: Sequence[int], tau: float, together: int = 5, progress: bool = False
    ) -> Tensor:
        """Logits ``[S, N, C]`` of the draws with these seeds, so many ``together`` in one forward pass."""
        if together < 1:
            raise ValueError(f"draws_per_pass is {together}; expected at least 1.")
        if together == 1 or len(seeds) == 1 or not can_stack(self.model):
            return torch.stack(
                [self.logits(lambda s=s: posterior.applied(self.model, s, tau), progress) for s in seeds]
            )
        with applied_weights(self.model, posterior.mean):  # refuses a posterior of another shape
            parts = []
            for first in range(0, len(seeds), together):
                chosen = [posterior.sample(s, tau) for s in seeds[first : first + together]]
                parts.append(self._run(lambda d=chosen: stacked(self.model, d), len(chosen), progress))
        return torch.cat(parts)

    def _run(self, context: Callable[[], AbstractContextManager], copies: int, progress: bool) -> Tensor:
        from tqdm.auto import tqdm

        out = torch.full((copies, sum(map(len, self.indices)), self.choices), -torch.inf)
        training = self.model.training
        self.model.eval()
        try:
            with context(), torch.no_grad():
                pairs = list(zip(self.indices, self.batches))
                for index, batch in tqdm(pairs, desc="predict", leave=False, disable=not progress):
                    logits = answer_logits(self.model, batch, copies).cpu()  # [R, B, C]
                    out[:, index, : logits.shape[-1]] = logits
        finally:
            self.model.train(training)
        return out
