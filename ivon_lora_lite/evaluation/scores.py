"""Predictions as logits ``[S, N, C]``, and their scores.

Draws are made once. Every metric and every number of draws is computed from the stored logits afterwards.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..files import read_tensors, write_tensors
from .metrics import (
    BINS,
    METRICS,
    all_metrics,
    bootstrap_intervals,
    check_probabilities,
    ece_floor,
    mutual_information,
)


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

    FORMAT = "ivon_lora_lite.Predictions/1"

    def __post_init__(self) -> None:
        if self.logits.dim() != 3 or self.labels.dim() != 1 or self.logits.shape[1] != len(self.labels):
            raise ValueError(
                f"logits have shape {tuple(self.logits.shape)} and labels {tuple(self.labels.shape)}; expected "
                "[S, N, C] and [N]."
            )
        if self.logits.isnan().any() or (self.logits == torch.inf).any() or (self.logits == -torch.inf).all(-1).any():
            raise ValueError("The logits of a prediction hold NaN or infinities: did training diverge?")

    @property
    def samples(self) -> int:
        """Number of draws S (1 for a prediction at the mean)."""
        return self.logits.shape[0]

    @property
    def probabilities(self) -> Tensor:
        """Softmax of every draw, ``[S, N, C]``, in fp64: in fp32 large differences of logits would become ties."""
        return self.logits.double().softmax(-1)

    def ensemble(self, samples: int | None = None) -> Tensor:
        """Average of the probabilities of the first ``samples`` draws (default: all), ``[N, C]``."""
        count = self.samples if samples is None else samples
        if not 1 <= count <= self.samples:
            raise ValueError(f"samples is {samples}; there are {self.samples} draws.")
        return self.probabilities[:count].mean(0)

    def mutual_information(self) -> Tensor:
        """How much the draws disagree about each question, ``[N]`` in nats."""
        return mutual_information(self.probabilities)

    def save(self, path: str | os.PathLike) -> Path:
        """Write a safetensors file, all or nothing."""
        return write_tensors(path, self.FORMAT, {"logits": self.logits, "labels": self.labels}, self.metadata)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Predictions:
        """Read a file of :meth:`save`.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged or holds something else.
        """
        tensors, facts = read_tensors(path, cls.FORMAT, "predictions")
        return cls(tensors["logits"], tensors["labels"], facts)


class Scores(dict[str, float]):
    """``{"acc": …, "ece": …, "nll": …, "brier": …}`` with ``.intervals`` (95 %) and a readable ``str``.

    Attributes:
        intervals: metric → (low, high); empty if they were not asked for.
        questions: number of questions.
        bins: of ECE.
        floor: mean ECE of a perfectly calibrated model with the same confidences (:func:`ece_floor`), or None.
    """

    def __init__(
        self,
        values: dict[str, float],
        intervals: dict[str, tuple[float, float]],
        questions: int,
        bins: int = BINS,
        floor: float | None = None,
    ):
        super().__init__(values)
        self.intervals, self.questions, self.bins, self.floor = intervals, questions, bins, floor

    def __str__(self) -> str:
        parts = []
        for name in METRICS:
            low, high = self.intervals.get(name, (float("nan"),) * 2)
            span = f" [{low:.3f}, {high:.3f}]" if self.intervals else ""
            floor = f" (floor {self.floor:.3f})" if name == "ece" and self.floor is not None else ""
            parts.append(f"{name.upper()} {self[name]:.3f}{span}{floor}")
        return " · ".join(parts) + f"  ({self.questions} questions)"


def score(
    predictions: Predictions | Tensor, labels: Tensor | None = None, *, intervals: bool = True, bins: int = BINS
) -> Scores:
    """Accuracy, ECE, NLL and Brier score of averaged predictions, with bootstrap intervals over questions.

    Args:
        predictions: :class:`Predictions`, or probabilities ``[N, C]`` with ``labels`` ``[N]``.
        labels: only with probabilities.
        intervals: also the 95 % intervals (1,000 resamples) and the floor of ECE.
        bins: of ECE.

    Returns:
        A :class:`Scores`.

    Raises:
        ValueError: there are no labels, or what is given are no probabilities.
    """
    if isinstance(predictions, Predictions):
        probs, labels = predictions.ensemble(), predictions.labels
    elif labels is None:
        raise ValueError("Probabilities need labels: score(probs, labels).")
    else:
        probs = predictions
    check_probabilities(probs)
    if probs.dim() != 2:
        raise ValueError(f"The probabilities have shape {tuple(probs.shape)}; expected [N, C], one row a question.")
    values = {name: float(value) for name, value in all_metrics(probs, labels, bins).items()}
    if not intervals:
        return Scores(values, {}, len(labels), bins)
    return Scores(values, bootstrap_intervals(probs, labels, bins=bins), len(labels), bins, ece_floor(probs, bins)[0])
