"""SWAG's posterior: a Gaussian whose covariance is a diagonal plus a few directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from .base import Posterior, check_finite, check_tau, noise_source, positive, scaled, smallest
from .weights import check_same_names

SHARE = 0.5  # s: the two parts estimate the same variance, so each gets half


@dataclass(frozen=True)
class LowRankPosterior(Posterior):
    """N(θ̄, Σ) over named tensors with  Σ = s (Σ_d + D̂ D̂ᵀ/(K−1)),  s = ½  (Maddox et al. 2019, equation 1).

    Attributes:
        mean: name → θ̄.
        diagonal: name → Σ_d > 0, of the same names and shapes.
        deviations: name → D̂, ``[K, *shape]`` with the same K ≥ 2 for all names.
        metadata: JSON-able facts.

    Raises:
        ValueError: names or shapes differ, or a value is not finite, or Σ_d is not positive, or K < 2.

    >>> one = torch.ones(1)
    >>> LowRankPosterior({"w": one}, {"w": one}, {"w": torch.tensor([[1.0], [-1.0]])}).variance
    {'w': tensor([1.5000])}
    """

    FORMAT = "ivon_lora_lite.LowRankPosterior/1"
    PARTS = ("mean", "diagonal", "deviations")

    mean: Mapping[str, Tensor]
    diagonal: Mapping[str, Tensor]
    deviations: Mapping[str, Tensor]
    metadata: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.mean:
            raise ValueError("A posterior needs at least one tensor.")
        for part in ("diagonal", "deviations"):
            check_same_names(self.mean, getattr(self, part), "mean", part)
        if self.rank < 2:
            raise ValueError(f"There are deviations of {self.rank} weights; a covariance needs at least 2.")
        for name, m in self.mean.items():
            check_finite(name, "mean", m, m.shape)
            check_finite(name, "diagonal", self.diagonal[name], m.shape)
            check_finite(name, "deviations", self.deviations[name], (self.rank, *m.shape))
            if not (self.diagonal[name] > 0).all():
                raise ValueError(f"{name}: diagonal must be above 0, not {self.diagonal[name].min().item()}.")

    @property
    def rank(self) -> int:
        """Number of deviations K."""
        return min((len(d) if d.dim() else 0) for d in self.deviations.values())

    @cached_property
    def variance(self) -> dict[str, Tensor]:
        """Marginal variance of every coordinate, s (Σ_d + Σ_k D̂_k²/(K−1))."""
        return {
            name: SHARE * (self.diagonal[name] + d.square().sum(0) / (self.rank - 1))
            for name, d in self.deviations.items()
        }

    def sample(self, seed: int, tau: float = 1.0) -> dict[str, Tensor]:
        """One draw,  θ̄ + √(τ s) (Σ_d^½ z₁ + D̂ z₂/√(K−1)). The same seed gives the same z₁, z₂ for every τ.

        Args:
            seed: of the draw.
            tau: τ ≥ 0; 0 is the mean.

        Returns:
            name → tensor.
        """
        normal = noise_source(seed, tau)
        z2 = normal(self.rank) / (self.rank - 1) ** 0.5  # one for all tensors
        out = {}
        for name in sorted(self.mean):
            m, d = self.mean[name], self.deviations[name]
            z1 = normal(m.shape)
            spread = self.diagonal[name].sqrt() * z1 + torch.tensordot(z2.to(d.dtype), d, 1)
            out[name] = m + (tau * SHARE) ** 0.5 * spread
        return out

    def scale(self, tau: float) -> LowRankPosterior:
        """N(θ̄, τΣ) as a posterior of its own, τ > 0."""
        check_tau(tau, above=True)
        diagonal = {name: positive(tau * v) for name, v in self.diagonal.items()}
        deviations = {name: tau**0.5 * d for name, d in self.deviations.items()}
        return LowRankPosterior(self.mean, diagonal, deviations, scaled(self.metadata, tau))

    def covariance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        """s (J Σ_d Jᵀ + (J D̂)(J D̂)ᵀ/(K−1)) ``[C, C]``; the deviations tie all tensors together."""
        rows = {name: j.flatten(1) for name, j in jacobian.items()}
        diagonal = sum((j * self.diagonal[name].to(j.device).flatten()) @ j.T for name, j in rows.items())
        along = sum(j @ self.deviations[name].to(j.device).flatten(1).T for name, j in rows.items())  # [C, K]
        return SHARE * (diagonal + along @ along.T / (self.rank - 1))

    def prune(self, fraction: float) -> LowRankPosterior:
        """Set the fraction of coordinates with the smallest |θ̄|/√(marginal variance) to 0, without noise."""
        masks = smallest(self.signal_to_noise(), fraction)
        mean = {name: m.masked_fill(masks[name], 0.0) for name, m in self.mean.items()}
        diagonal = {name: v.masked_fill(masks[name], torch.finfo(v.dtype).tiny) for name, v in self.diagonal.items()}
        deviations = {name: d.masked_fill(masks[name], 0.0) for name, d in self.deviations.items()}
        return LowRankPosterior(mean, diagonal, deviations, {**self.metadata, "pruned": fraction})
