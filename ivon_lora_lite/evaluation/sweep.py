"""τ from 0 to 1: predictions on a grid of temperatures, from the same draws (Figure 1 of Cong et al. 2024).

τ scales the posterior variance at test time: τ = 0 is the mean, τ = 1 the posterior. (Cong et al. 2025 write
λ_test = τ λ instead, which is the inverse direction.)
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checks import check_known
from ..files import read_tensors, write_tensors
from ..language import Question
from ..posterior import Posterior
from .linearization import Linearized
from .metrics import BINS, METRICS, all_metrics
from .prediction import Batches, Trained, asked_of
from .scores import Predictions, Scores, score

TAUS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class TauSweep:
    """Answer logits of the same S draws at T temperatures, and, if there is one, the linearised Gaussian.

    Attributes:
        taus: T temperatures in ascending order.
        logits: ``[T, S, N, C]``. At τ = 0 all draws are the same.
        labels: ``[N]``.
        linear: :class:`Linearized` over the same questions, or None.
        metadata: JSON-able facts: model, task, seed, provenance.
        drawn: how many of the S draws were made at each τ; the others repeat them. Default: all.
    """

    taus: tuple[float, ...]
    logits: Tensor
    labels: Tensor
    linear: Linearized | None = None
    metadata: dict = field(default_factory=dict)
    drawn: tuple[int, ...] = ()

    FORMAT = "ivon_lora_lite.TauSweep/1"

    def __post_init__(self) -> None:
        if self.logits.dim() != 4 or self.logits.shape[0] != len(self.taus):
            raise ValueError(f"logits have shape {tuple(self.logits.shape)}; expected [{len(self.taus)}, S, N, C].")
        n, c = self.logits.shape[2:]
        if self.labels.shape != (n,) or (self.linear is not None and self.linear.mean.shape != (n, c)):
            raise ValueError(f"Labels or linearised Gaussian do not fit logits of {n} questions with {c} choices.")
        if list(self.taus) != sorted(set(self.taus)):
            raise ValueError(f"taus are {self.taus}; expected ascending, different numbers.")
        if not self.drawn:
            object.__setattr__(self, "drawn", (self.samples,) * len(self.taus))
        if len(self.drawn) != len(self.taus) or not all(1 <= count <= self.samples for count in self.drawn):
            raise ValueError(f"drawn is {self.drawn}; expected one number from 1 to {self.samples} for each τ.")

    @property
    def samples(self) -> int:
        """Number of draws S."""
        return self.logits.shape[1]

    @property
    def fewest(self) -> int:
        """Draws that every τ has; the mean needs one. Values of τ compare with equally many only."""
        return min((made for tau, made in zip(self.taus, self.drawn) if tau), default=self.samples)

    @cached_property
    def probabilities(self) -> Tensor:
        """Averages over the first 1, 2, … S draws, ``[T, S, N, C]``: entry s−1 is the ensemble of s draws.

        Where fewer were made, the last entries are the ensemble of all of them.
        """
        count = torch.arange(1, self.samples + 1).view(-1, 1, 1)
        averages = self.logits.double().softmax(-1).cumsum(1) / count
        for t, made in enumerate(self.drawn):
            averages[t, made:] = averages[t, made - 1]
        return averages

    def at(self, tau: float, samples: int | None = None, *, linear: bool = False) -> Tensor:
        """Probabilities ``[N, C]`` at one τ.

        Args:
            tau: one of ``taus`` (sampled), or any τ ≥ 0 (linear).
            samples: number of draws, of those that were made at this τ; default: all.
            linear: from the linearised Gaussian.

        Raises:
            ValueError: τ is not on the grid, or there are fewer draws, or there is no linearised Gaussian.
        """
        if linear:
            if self.linear is None:
                raise ValueError("This sweep has no linearised Gaussian.")
            return self.linear.probabilities(tau)
        return self.probabilities[self._index(tau), self._count(samples) - 1]

    def _index(self, tau: float) -> int:
        if tau not in self.taus:
            raise ValueError(f"tau={tau} was not sampled; the grid is {', '.join(f'{t:g}' for t in self.taus)}.")
        return self.taus.index(tau)

    def _count(self, samples: int | None) -> int:
        count = self.samples if samples is None else samples
        if not 1 <= count <= self.samples:
            raise ValueError(f"samples is {samples}; the sweep has {self.samples} draws.")
        return count

    def predictions(self, tau: float, samples: int | None = None) -> Predictions:
        """The draws at one sampled τ as :class:`Predictions`; arguments as of :meth:`at`."""
        count = min(self._count(samples), self.drawn[self._index(tau)])
        facts = {**self.metadata, "samples": count, "tau": tau}
        return Predictions(self.logits[self._index(tau), :count], self.labels, facts)

    def scores(self, tau: float, samples: int | None = None, *, linear: bool = False, **options) -> Scores:
        """The four metrics at one τ; arguments as of :meth:`at`, options as of :func:`score`."""
        return score(self.at(tau, samples, linear=linear), self.labels, **options)

    def curves(self, samples: int | None = None, bins: int = BINS) -> dict[str, Tensor]:
        """The four metrics over the grid, name → ``[T]``, of :attr:`fewest` draws or of up to ``samples``."""
        count = self.fewest if samples is None else self._count(samples)
        return all_metrics(self.probabilities[:, count - 1], self.labels, bins)

    def linear_curves(self, taus: Sequence[float], bins: int = BINS) -> dict[str, Tensor]:
        """The four metrics of the linearised Gaussian at any τ, name → ``[len(taus)]``."""
        return all_metrics(torch.stack([self.at(tau, linear=True) for tau in taus]), self.labels, bins)

    def save(self, path: str | os.PathLike) -> Path:
        """Write a safetensors file, all or nothing."""
        tensors = {"logits": self.logits, "labels": self.labels}
        if self.linear is not None:
            tensors |= {"linear_mean": self.linear.mean, "linear_covariance": self.linear.covariance}
        facts = {"taus": list(self.taus), "metadata": self.metadata, "drawn": list(self.drawn)}
        facts["linear"] = self.linear.metadata if self.linear is not None else {}
        return write_tensors(path, self.FORMAT, tensors, facts)

    @classmethod
    def load(cls, path: str | os.PathLike) -> TauSweep:
        """Read a file of :meth:`save`.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged or holds something else.
        """
        tensors, facts = read_tensors(path, cls.FORMAT, "τ sweep")
        linear = None
        if "linear_mean" in tensors:
            mean, covariance = tensors["linear_mean"], tensors["linear_covariance"]
            linear = Linearized(mean, covariance, tensors["labels"], facts.get("linear", {}))
        drawn = tuple(facts.get("drawn", ()))
        return cls(tuple(facts["taus"]), tensors["logits"], tensors["labels"], linear, facts["metadata"], drawn)


def tau_sweep(
    source: Trained | nn.Module,
    questions: Sequence[Question],
    *,
    taus: Sequence[float] = TAUS,
    samples: int = 10,
    elsewhere: int | None = None,
    seed: int = 0,
    posterior: Posterior | None = None,
    linear: Linearized | None = None,
    format: str | None = None,
    batch_size: int = 8,
    draws_per_pass: int = 5,
    progress: bool = False,
    metadata: dict | None = None,
) -> TauSweep:
    """Exact draws on a grid of τ: the same ε for every τ, the same draw for all questions.

    Work is shared where possible: questions are tokenised and batched once, and τ = 0 takes one pass instead of S.

    Args:
        source: an IVON run, or a model with ``posterior``.
        questions: N questions.
        taus: temperatures, τ ≥ 0.
        samples: draws S per temperature; draw s uses seed + s, as in :func:`predict`.
        elsewhere: draws at temperatures other than 1, if fewer will do there: the curve between costs less.
        seed, posterior, format, batch_size, draws_per_pass, progress: as in :func:`predict`.
        linear: a linearised Gaussian to keep beside the draws.
        metadata: facts to keep with it.
    """
    asked = asked_of(source, questions, posterior, format)
    if asked.posterior is None:
        raise ValueError("There is no posterior to draw from: finetune with optimizer='ivon'.")
    elsewhere = samples if elsewhere is None else elsewhere
    taus = tuple(sorted({float(tau) for tau in taus}))
    if samples < 1 or not questions or not taus:
        raise ValueError("A sweep needs at least one draw, one question and one τ.")
    if not 1 <= elsewhere <= samples:
        raise ValueError(f"elsewhere is {elsewhere}; expected 1 to {samples} draws.")
    batches = Batches(asked.model, questions, asked.format, batch_size)
    rows, counts = [], tuple(1 if tau == 0 else samples if tau == 1 else elsewhere for tau in taus)
    for tau, count in zip(taus, counts):
        made = batches.draws(asked.posterior, range(seed, seed + count), tau, draws_per_pass, progress)
        rows.append(made[torch.arange(samples) % count])  # [S, N, C]
    facts = {"samples": samples, "seed": seed, **(metadata or {})}
    return TauSweep(taus, torch.stack(rows), batches.labels, linear, facts, counts)


def choose_tau(
    sweep: TauSweep | Linearized,
    objective: str = "nll",
    max_accuracy_loss: float = 1.0,
    taus: Sequence[float] = (),
    samples: int | None = None,
) -> tuple[float, str]:
    """The τ that serves an objective best on a validation split.

    Args:
        sweep: predictions on *validation* questions: a sampled sweep (chooses on its grid) or a linearised Gaussian.
        objective: ``"nll"``, ``"ece"``, ``"brier"`` (smallest wins) or ``"acc"`` (largest wins); at a tie the smaller
            τ.
        max_accuracy_loss: how much accuracy may be given up against τ = 0, as a share: 0.01 is one point, 1.0 no limit.
        taus: candidates for a linearised Gaussian; default: 0, 0.05 … 1.5, 2, 3, 4, 6, 8.
        samples: draws of a sampled sweep to judge by, as many as you will predict with; default: what every τ has.

    Returns:
        τ and a sentence that states the trade-off.
    """
    check_known("objective", objective, METRICS)
    if isinstance(sweep, Linearized):
        taus = tuple(sorted(taus)) or (*(i / 20 for i in range(31)), 2.0, 3.0, 4.0, 6.0, 8.0)
        table = all_metrics(torch.stack([sweep.probabilities(tau) for tau in taus]), sweep.labels)
    else:
        taus, table = sweep.taus, sweep.curves(samples)
    if taus[0] != 0:
        raise ValueError("Choosing τ needs τ = 0 among the candidates, to compare with.")
    allowed = [i for i in range(len(taus)) if table["acc"][0] - table["acc"][i] <= max_accuracy_loss + 1e-9]
    sign = -1 if objective == "acc" else 1
    best = min(allowed, key=lambda i: (round(sign * float(table[objective][i]), 6), taus[i]))
    was, now = ({name: float(values[i]) for name, values in table.items()} for i in (0, best))
    kind = "left-out training" if sweep.metadata.get("leave_one_out") else "validation"
    sentence = (
        f"τ = {taus[best]:g} has the best {objective.upper()} of {len(allowed)} admissible values on "
        f"{len(sweep.labels)} {kind} questions: {objective.upper()} {was[objective]:.3f} → {now[objective]:.3f}, "
        f"accuracy {was['acc']:.3f} → {now['acc']:.3f}, compared with the mean (τ = 0)."
    )
    if taus[best] == taus[-1]:
        sentence += " It is the largest that was tried."
    return float(taus[best]), sentence
