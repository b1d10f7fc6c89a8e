"""Every τ from one pass: the linearised Gaussian over answer logits.

Near the mean the logits are almost linear in the weights, f(θ) ≈ f(m) + J (θ − m). So θ ~ N(m, τ Σ) makes them
f ~ N(f(m), τ J Σ Jᵀ): one C × C covariance per question gives the prediction for every τ and for as many draws as one
likes. It is an approximation; exact draws are the reference (:func:`ivon_lora_lite.tau_sweep`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from ..language import Question
from ..posterior import Posterior
from .jacobians import Factors, jacobian, visit_gradients
from .prediction import Trained, asked_of
from .scores import Predictions

NOISE_DRAWS = 256  # fixed standard normals that integrate the softmax


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
    def _spread(self) -> Tensor:
        """Fixed draws of N(0, Σ), ``[draws, N, C]``; antithetic, so their mean is 0."""
        values, vectors = torch.linalg.eigh(self.covariance.double())
        root = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)  # Σ = root rootᵀ
        generator = torch.Generator().manual_seed(0)
        half = torch.randn(NOISE_DRAWS // 2, *self.mean.shape, generator=generator, dtype=torch.float64)
        return torch.einsum("nij,snj->sni", root, torch.cat([half, -half])).float()

    def logits(self, tau: float) -> Tensor:
        """Draws of the logits at τ, ``[draws, N, C]``; the same ε for every τ."""
        if tau < 0:
            raise ValueError(f"tau is {tau}; expected at least 0.")
        return self.mean + tau**0.5 * self._spread

    def probabilities(self, tau: float = 1.0) -> Tensor:
        """Predictive probabilities at τ ≥ 0, ``[N, C]``."""
        return self.logits(tau).softmax(-1).mean(0)

    def predictions(self, tau: float = 1.0) -> Predictions:
        """The same as :class:`Predictions`, for :func:`score` and the metrics."""
        return Predictions(self.logits(tau), self.labels, {**self.metadata, "tau": tau, "linearized": True})

    def averaged(self, tau: float = 1.0) -> Predictions:
        """The many cheap draws as the one prediction that they average to, ``[1, N, C]``: small enough to keep."""
        draws = self.logits(tau).double().log_softmax(-1)
        log_p = draws.logsumexp(0) - math.log(len(draws))
        return Predictions(log_p.float()[None], self.labels, {**self.metadata, "tau": tau, "linearized": True})


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
    asked = asked_of(source, posterior, format)
    if asked.posterior is None:
        raise ValueError("There is no posterior to linearise around: finetune with optimizer='ivon'.")
    if not questions:
        raise ValueError("There are no questions to linearise at.")
    width = max(len(q.choices) for q in questions)
    mean = torch.full((len(questions), width), -torch.inf)
    covariance = torch.zeros(len(questions), width, width)

    def add(index: int, f: Tensor, factors: Factors) -> None:
        c = len(f)
        mean[index, :c] = f.cpu()
        covariance[index, :c, :c] = asked.posterior.covariance(jacobian(factors)).cpu()

    options = {"format": asked.format, "batch_size": batch_size, "progress": progress}
    visit_gradients(asked.model, asked.posterior.mean, questions, add, **options)
    return Linearized(mean, covariance, torch.tensor([q.answer for q in questions]), {"format": asked.format})
