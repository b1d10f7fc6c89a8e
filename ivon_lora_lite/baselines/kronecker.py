"""Laplace's posterior with KFAC: a Gaussian per LoRA factor, its precision a Kronecker product plus the prior's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..posterior import Posterior, check_tau, read_posterior, same_names, write_posterior

__all__ = ["KroneckerPosterior"]

FORMAT = "ivon_lora_lite.KroneckerPosterior/1"
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

    Raises:
        ValueError: names or shapes differ, or a value is not finite, an eigenvalue is negative, or p not above 0.
    """

    mean: Mapping[str, Tensor]
    input_values: Mapping[str, Tensor]
    input_vectors: Mapping[str, Tensor]
    output_values: Mapping[str, Tensor]
    output_vectors: Mapping[str, Tensor]
    metadata: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.mean:
            raise ValueError("A posterior needs at least one tensor.")
        for part in PARTS[1:]:
            same_names(self.mean, getattr(self, part), "mean", part)
        p = self.metadata.get("prior_precision")
        if not (isinstance(p, int | float) and 0 < p < float("inf")):
            raise ValueError(f"prior_precision is {p}; expected a number above 0.")
        for name, m in self.mean.items():
            if m.dim() != 2:
                raise ValueError(f"{name}: mean has shape {tuple(m.shape)}, expected a matrix.")
            out, into = m.shape
            for part, shape in zip(PARTS, ((out, into), (into,), (into, into), (out,), (out, out))):
                t = getattr(self, part)[name]
                if t.shape != shape:
                    raise ValueError(f"{name}: {part} has shape {tuple(t.shape)}, expected {shape}.")
                if not torch.isfinite(t).all():
                    raise ValueError(f"{name}: {part} holds values that are not finite.")
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
        return {
            name: self.output_vectors[name].square()
            @ (1 / (self.eigenvalues(name) + self.precision))
            @ self.input_vectors[name].square().T
            for name in self.mean
        }

    def covariance(self, name: str, jacobian: Tensor) -> Tensor:
        """J Σ_l Jᵀ ``[C, C]`` for a Jacobian ``[C, out, in]`` of one factor."""
        turned = self.output_vectors[name].T @ jacobian @ self.input_vectors[name]
        whitened = (turned / (self.eigenvalues(name) + self.precision).sqrt()).flatten(1)
        return whitened @ whitened.T

    def sample(self, seed: int, tau: float = 1.0) -> dict[str, Tensor]:
        """One draw from N(m, τΣ),  m + √τ U_b (√S ∘ z) U_aᵀ. The same seed gives the same z for every τ."""
        check_tau(tau)
        generator = torch.Generator().manual_seed(seed)
        out = {}
        for name in sorted(self.mean):
            z = torch.randn(self.mean[name].shape, generator=generator)
            z = z / (self.eigenvalues(name) + self.precision).sqrt()
            out[name] = self.mean[name] + tau**0.5 * self.output_vectors[name] @ z @ self.input_vectors[name].T
        return out

    def scale(self, tau: float) -> KroneckerPosterior:
        """N(m, τΣ) as a posterior of its own, τ > 0: A and p are divided by τ."""
        if tau == 0:
            raise ValueError("tau=0 leaves a point, not a Gaussian: use `.mean`, or sample(seed, tau=0).")
        check_tau(tau)
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        parts["input_values"] = {name: a / tau for name, a in self.input_values.items()}
        tau_so_far = tau * float(self.metadata.get("tau", 1.0))
        parts["metadata"] = {**self.metadata, "prior_precision": self.precision / tau, "tau": tau_so_far}
        return KroneckerPosterior(**parts)

    def to(self, device: torch.device | str) -> KroneckerPosterior:
        """With all tensors on a device."""
        moved = ({name: t.to(device) for name, t in getattr(self, part).items()} for part in PARTS)
        return KroneckerPosterior(*moved, self.metadata)

    def save(self, folder: str | os.PathLike) -> Path:
        """Write ``posterior.safetensors`` into a folder, all or nothing."""
        return write_posterior(folder, FORMAT, {part: getattr(self, part) for part in PARTS}, self.metadata)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> KroneckerPosterior:
        """Read ``posterior.safetensors`` from a folder (or the file itself).

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, of another format, or holds values that are no Gaussian's.
        """
        return read_posterior(folder, FORMAT, PARTS, cls)


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, at least 0, and eigenvectors of a symmetric matrix, on the CPU in fp32."""
    if matrix.device.type == "mps":  # it has no double precision
        matrix = matrix.cpu()
    values, vectors = torch.linalg.eigh(matrix.double())
    return values.clamp(min=0).float().cpu(), vectors.float().cpu().contiguous()  # as they come back from a file
