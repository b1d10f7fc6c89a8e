"""Laplace's posterior with KFAC: a Gaussian per LoRA factor, its precision a Kronecker product plus the prior's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from .base import Posterior, check_finite, check_tau, noise_source, positive, scaled, smallest
from .weights import check_same_names

PARTS = ("mean", "input_values", "input_vectors", "output_values", "output_vectors")


@dataclass(frozen=True)
class KroneckerPosterior(Posterior):
    """N(m, Σ) with independent blocks Σ_l = (B_l ⊗ A_l + p I)⁻¹ over the entries of W_l ``[out, in]``.

    With A = U_a diag(a) U_aᵀ and B = U_b diag(b) U_bᵀ, and W seen as a matrix, Σ_l turns W into
    U_b (S ∘ U_bᵀ W U_a) U_aᵀ with S_oi = 1/(b_o a_i + p): nothing of the size (out·in)² is ever made.

    Attributes:
        mean: name → m, ``[out, in]``.
        input_values, input_vectors: name → a ≥ 0 ``[in]``, U_a ``[in, in]``.
        output_values, output_vectors: name → b ≥ 0 ``[out]``, U_b ``[out, out]``.
        metadata: JSON-able facts, among them ``prior_precision``, the p > 0.
        pruned: name → mask of the weights that are 0 in the mean and in every draw; empty if none are.

    Raises:
        ValueError: names or shapes differ, or a value is not finite, an eigenvalue is negative, or p not above 0.
    """

    FORMAT = "ivon_lora_lite.KroneckerPosterior/1"
    PARTS = (*PARTS, "pruned")

    mean: Mapping[str, Tensor]
    input_values: Mapping[str, Tensor]
    input_vectors: Mapping[str, Tensor]
    output_values: Mapping[str, Tensor]
    output_vectors: Mapping[str, Tensor]
    metadata: Mapping[str, object] = field(default_factory=dict)
    pruned: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.mean:
            raise ValueError("A posterior needs at least one tensor.")
        for part in PARTS[1:]:
            check_same_names(self.mean, getattr(self, part), "mean", part)
        p = self.metadata.get("prior_precision")
        if not (isinstance(p, int | float) and 0 < p < float("inf")):
            raise ValueError(f"prior_precision is {p}; expected a number above 0.")
        for name, m in self.mean.items():
            if m.dim() != 2:
                raise ValueError(f"{name}: mean has shape {tuple(m.shape)}, expected a matrix.")
            out, into = m.shape
            for part, shape in zip(PARTS, ((out, into), (into,), (into, into), (out,), (out, out))):
                t = getattr(self, part)[name]
                check_finite(name, part, t, shape)
                if part.endswith("values") and t.min() < 0:
                    raise ValueError(f"{name}: {part} has the negative eigenvalue {t.min().item()}.")

    @classmethod
    def from_factors(
        cls, mean: Mapping[str, Tensor], factors: Mapping[str, tuple[Tensor, Tensor]], precision: float, **metadata
    ) -> KroneckerPosterior:
        """From name → (A ``[in, in]``, B ``[out, out]``) and the prior's precision p."""
        pairs = {name: (_eigen(a), _eigen(b)) for name, (a, b) in factors.items()}
        parts = [{name: pair[side][i] for name, pair in pairs.items()} for side in (0, 1) for i in (0, 1)]
        return cls(mean, *parts, {**metadata, "prior_precision": precision})

    @property
    def precision(self) -> float:
        """Prior precision p."""
        return float(self.metadata["prior_precision"])

    def eigenvalues(self, name: str) -> Tensor:
        """Eigenvalues b_o a_i of B ⊗ A, ``[out, in]``."""
        return torch.outer(self.output_values[name], self.input_values[name])

    @cached_property
    def variance(self) -> dict[str, Tensor]:
        """Marginal variance of every weight, (U_b ∘ U_b) S (U_a ∘ U_a)ᵀ."""
        out = {
            name: self.output_vectors[name].square()
            @ (1 / (self.eigenvalues(name) + self.precision))
            @ self.input_vectors[name].square().T
            for name in self.mean
        }
        return {name: positive(self._without_pruned(name, v)) for name, v in out.items()}

    def _without_pruned(self, name: str, t: Tensor) -> Tensor:
        return t.masked_fill(self.pruned[name].to(t.device), 0.0) if name in self.pruned else t

    def covariance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        """J Σ Jᵀ ``[C, C]``; see :meth:`Posterior.covariance`."""
        total = 0.0
        for name, j in jacobian.items():
            j = self._without_pruned(name, j)
            turned = self.output_vectors[name].to(j.device).T @ j @ self.input_vectors[name].to(j.device)
            whitened = (turned / (self.eigenvalues(name).to(j.device) + self.precision).sqrt()).flatten(1)
            total = total + whitened @ whitened.T
        return total

    def sample(self, seed: int, tau: float = 1.0) -> dict[str, Tensor]:
        """One draw from N(m, τΣ),  m + √τ U_b (√S ∘ z) U_aᵀ. The same seed gives the same z for every τ."""
        normal = noise_source(seed, tau)
        out = {}
        for name in sorted(self.mean):
            z = normal(self.mean[name].shape)
            z = z / (self.eigenvalues(name) + self.precision).sqrt()
            noise = self.output_vectors[name] @ z @ self.input_vectors[name].T
            out[name] = self.mean[name] + tau**0.5 * self._without_pruned(name, noise)
        return out

    def scale(self, tau: float) -> KroneckerPosterior:
        """N(m, τΣ) as a posterior of its own, τ > 0: A and p are divided by τ."""
        check_tau(tau, above=True)
        values = {name: a / tau for name, a in self.input_values.items()}
        metadata = {**scaled(self.metadata, tau), "prior_precision": self.precision / tau}
        return replace(self, input_values=values, metadata=metadata)

    def prune(self, fraction: float) -> KroneckerPosterior:
        """Set the fraction of weights with the smallest |m|/√(marginal variance) to 0, without noise."""
        masks = smallest(self.signal_to_noise(), fraction)
        masks = {name: mask | self.pruned[name] if name in self.pruned else mask for name, mask in masks.items()}
        mean = {name: m.masked_fill(masks[name], 0.0) for name, m in self.mean.items()}
        return replace(self, mean=mean, pruned=masks, metadata={**self.metadata, "pruned": fraction})


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, at least 0, and eigenvectors of a symmetric matrix, on the CPU in fp32."""
    if matrix.device.type == "mps":  # it has no double precision
        matrix = matrix.cpu()
    values, vectors = torch.linalg.eigh(matrix.double())
    return values.clamp(min=0).float().cpu(), vectors.float().cpu().contiguous()  # as they come back from a file
