"""Every τ from one pass: the linearised Gaussian over answer logits.

Near the mean the logits are almost linear in the weights, f(θ) ≈ f(m) + J (θ − m). So θ ~ N(m, τ Σ) makes them
f ~ N(f(m), τ J Σ Jᵀ): one C × C covariance per question gives the prediction for every τ and for as many draws as one
likes. It is an approximation; exact draws are the reference (:func:`ivon_lora_lite.tau_sweep`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn
from torch.quasirandom import SobolEngine

from ..language import Question
from ..posterior import Posterior
from .jacobians import Factors, jacobian, visit_gradients
from .prediction import Trained, asked_of
from .scores import Predictions

POINTS, CHUNK = 4096, 512  # draws that integrate the softmax, and how many of them are in memory at once


@lru_cache(maxsize=8)
def normal_points(choices: int) -> Tensor:
    """Standard normals that fill space evenly (a scrambled Sobol sequence), ``[POINTS, C]``.

    Where logits spread by 7 the softmax is nearly a step, and few random draws get its average wrong by several points.
    These integrate it as well as some 50,000 random ones.
    """
    uniform = SobolEngine(choices, scramble=True, seed=0).draw(POINTS, dtype=torch.float64)
    return (2**0.5 * torch.erfinv(2 * uniform.clamp(1e-12, 1 - 1e-12) - 1)).float()


@dataclass(frozen=True)
class Linearized:
    """Gaussians over answer logits.

    Attributes:
        mean: ``[N, C]`` logits at the mean; −∞ where a question has fewer than C choices.
        covariance: ``[N, C, C]``, J Σ Jᵀ at τ = 1.
        labels: ``[N]``.
        metadata: JSON-able facts.
    """

    mean: Tensor
    covariance: Tensor
    labels: Tensor
    metadata: dict = field(default_factory=dict)

    @cached_property
    def root(self) -> Tensor:
        """A square root of the covariances, ``[N, C, C]``: Σ = root rootᵀ."""
        values, vectors = torch.linalg.eigh(self.covariance.double())
        return (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)).float()

    def _halves(self, tau: float) -> Tensor:
        """Average probabilities over the first and over the second half of the points, ``[2, N, C]``, at τ ≥ 0."""
        if tau < 0:
            raise ValueError(f"tau is {tau}; expected at least 0.")
        out = torch.zeros(2, *self.mean.shape, dtype=torch.float64)
        for k, points in enumerate(normal_points(self.mean.shape[1]).split(CHUNK)):
            draws = self.mean + tau**0.5 * torch.einsum("nij,sj->sni", self.root, points)  # [CHUNK, N, C]
            out[2 * k * CHUNK // POINTS] += draws.softmax(-1).sum(0, dtype=torch.float64)
        return out / (POINTS / 2)

    def probabilities(self, tau: float = 1.0) -> Tensor:
        """Predictive probabilities at τ ≥ 0, ``[N, C]`` in fp64."""
        return self._halves(tau).mean(0)

    def error(self, tau: float = 1.0) -> float:
        """How wrong the integral may be: half of the largest difference of a probability between the points' halves."""
        first, second = self._halves(tau)
        return float((first - second).abs().max()) / 2

    def predictions(self, tau: float = 1.0) -> Predictions:
        """The same as :class:`Predictions` with logits ``[1, N, C]``, log p, for :func:`score` and the metrics."""
        smallest = torch.finfo(torch.float32).tiny
        log_p = self.probabilities(tau).clamp(min=smallest).log().float()
        logits = log_p.masked_fill(self.mean == -torch.inf, -torch.inf)[None]
        return Predictions(logits, self.labels, {**self.metadata, "tau": tau, "linearized": True})


def linearized(
    source: Trained | nn.Module,
    questions: Sequence[Question],
    *,
    posterior: Posterior | None = None,
    format: str | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> Linearized:
    """Logit mean ``[N, C]`` and covariance J Σ Jᵀ ``[N, C, C]`` of every question, in one pass.

    A pass is one forward and C backward passes per batch; `jacobians.py` says how.

    Args:
        source: a run with a posterior, or a model with ``posterior``.
        questions: N questions.
        posterior: default: the run's own.
        format: ``"letter"``, ``"text"`` or ``"class"``; default: the run's, or text.
        batch_size: questions per pass.
        progress: show a progress bar.

    Raises:
        ValueError: there is no posterior, or it is over something else than LoRA's A and B of linear layers.
    """
    asked = asked_of(source, questions, posterior, format)
    if asked.posterior is None:
        raise ValueError("There is no posterior to linearise around: finetune with optimizer='ivon'.")
    options = {"format": asked.format, "batch_size": batch_size, "progress": progress}
    return linearized_together(asked.model, [asked.posterior], questions, **options)[0]


def linearized_together(
    model: nn.Module, posteriors: Sequence[Posterior], questions: Sequence[Question], *, format: str, **options
) -> list[Linearized]:
    """The same for several posteriors that have one mean, in one pass; arguments as of :func:`linearized`."""
    width = max((len(q.choices) for q in questions), default=0)
    mean = torch.full((len(questions), width), -torch.inf)
    covariances = torch.zeros(len(posteriors), len(questions), width, width)

    def add(index: int, f: Tensor, factors: Factors) -> None:
        c, j = len(f), jacobian(factors)
        mean[index, :c] = f.cpu()
        for covariance, posterior in zip(covariances, posteriors):
            covariance[index, :c, :c] = posterior.covariance(j).cpu()

    visit_gradients(model, posteriors[0].mean, questions, add, format=format, **options)
    labels = torch.tensor([q.answer for q in questions])
    return [Linearized(mean, covariance, labels, {"format": format}) for covariance in covariances]
