"""A Gaussian posterior N(m, diag v) over named tensors: to draw from, to scale, to prune, to keep as a file.

The file ``posterior.safetensors`` lies beside PEFT's ``adapter_model.safetensors`` and uses its names. Reading it needs
neither the optimizer nor the code that trained it; plain PEFT reads the same folder and predicts at the mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..ivon import IVON
from .base import Posterior, check_finite, check_tau, noise_source, positive, scaled, smallest
from .weights import check_same_names, read_weights, trainable


@dataclass(frozen=True)
class GaussianPosterior(Posterior):
    """Independent Gaussians over named tensors.

    Attributes:
        mean: name → tensor m.
        variance: name → tensor v > 0, of the same names and shapes.
        metadata: JSON-able facts: λ, δ, step, where it came from. Under ``"points"`` it may list names that have a mean
            and no variance: weights that are the same in every draw.

    Raises:
        ValueError: names or shapes differ, or a value is not finite, or a variance is not positive.

    >>> q = GaussianPosterior({"w": torch.zeros(2)}, {"w": torch.ones(2)})
    >>> torch.equal(q.sample(seed=1)["w"] / 2, q.scale(0.25).sample(seed=1)["w"])
    True
    """

    FORMAT = "ivon_lora_lite.GaussianPosterior/1"
    PARTS = ("mean", "variance")

    mean: Mapping[str, Tensor]
    variance: Mapping[str, Tensor]
    metadata: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.mean:
            raise ValueError("A posterior needs at least one tensor.")
        points = set(self.metadata.get("points", ()))
        check_same_names(self.mean.keys() - points, self.variance, "mean", "variance")
        for name, m in self.mean.items():
            check_finite(name, "mean", m, m.shape)
        for name, v in self.variance.items():
            check_finite(name, "variance", v, self.mean[name].shape)
            if not (v > 0).all():
                raise ValueError(f"{name}: the variance must be above 0, its minimum is {v.min().item()}.")

    # ------------------------------------------------------------------------------------------------ where from

    @classmethod
    def from_optimizer(cls, optimizer: IVON, model: nn.Module, **metadata: object) -> GaussianPosterior:
        """The posterior that an IVON optimizer holds over a model's trainable parameters.

        λ and δ (per group, where groups differ) and the step count go into the metadata. Weights that another optimizer
        trains are points.
        """
        weights, own = trainable(model), {id(p) for group in optimizer.param_groups for p in group["params"]}
        learned = {name: p for name, p in weights.items() if id(p) in own}
        if not learned:
            raise ValueError("None of the optimizer's parameters is a trainable parameter of this model.")
        facts: dict[str, object] = {"step": max(optimizer.state[p].get("step", 0) for p in learned.values())}
        if points := sorted(weights.keys() - learned.keys()):
            facts["points"] = points
        for fact in ("ess", "weight_decay"):
            values = [group[fact] for group in optimizer.param_groups]
            facts[fact] = values[0] if len(set(values)) == 1 else values
        return cls(
            {name: optimizer.mean(p).detach().cpu().clone() for name, p in weights.items()},
            {name: optimizer.variance(p).detach().cpu() for name, p in learned.items()},
            facts | metadata,
        )

    @classmethod
    def isotropic(cls, model: nn.Module, variance: float, **metadata: object) -> GaussianPosterior:
        """The model's present weights as mean, with one variance everywhere: for adapters trained elsewhere."""
        mean = read_weights(model)
        return cls(mean, {name: torch.full_like(m, variance) for name, m in mean.items()}, metadata)

    # ------------------------------------------------------------------------------------------------ what to do

    def sample(self, seed: int, tau: float = 1.0) -> dict[str, Tensor]:
        """One draw from N(m, τ·diag v). The same seed gives the same ε for every τ.

        Args:
            seed: of the draw.
            tau: τ ≥ 0; 0 is the mean, 1 the posterior.

        Returns:
            name → tensor.
        """
        normal = noise_source(seed, tau)
        out = {}
        for name in sorted(self.mean):
            m, v = self.mean[name], self.variance.get(name)
            out[name] = m
            if v is not None:  # it is no point
                out[name] = m + (tau * v).sqrt() * normal(m.shape, dtype=torch.promote_types(m.dtype, torch.float32))
        return out

    def scale(self, tau: float) -> GaussianPosterior:
        """N(m, τ·diag v) as a posterior of its own, τ > 0."""
        check_tau(tau, above=True)
        variance = {name: positive(tau * v) for name, v in self.variance.items()}
        return GaussianPosterior(self.mean, variance, scaled(self.metadata, tau))

    def covariance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        """J diag(v) Jᵀ ``[C, C]``; see :meth:`Posterior.covariance`."""
        return sum(
            (j.flatten(1) * self.variance[name].to(j.device).flatten()) @ j.flatten(1).T
            for name, j in jacobian.items()
            if name in self.variance
        )

    def prune(self, fraction: float) -> GaussianPosterior:
        """Set the fraction of coordinates with the smallest |m|/√v to 0, without noise (Graves 2011; Cong et al. 2025).

        The threshold is shared by all tensors; points are left alone. A pruned coordinate keeps the smallest positive
        variance, so the KL of a pruned posterior means little.
        """
        masks = smallest(self.signal_to_noise(), fraction)
        mean = dict(self.mean) | {name: self.mean[name].masked_fill(mask, 0.0) for name, mask in masks.items()}
        variance = {name: v.masked_fill(masks[name], torch.finfo(v.dtype).tiny) for name, v in self.variance.items()}
        return GaussianPosterior(mean, variance, {**self.metadata, "pruned": fraction})

    def kl(self, prior_variance: float | Mapping[str, float] | None = None) -> float:
        """KL[N(m, diag v) ‖ N(0, v₀ I)] = ½ Σ ((m² + v)/v₀ − 1 − log(v/v₀)) over what is not a point, in nats.

        Args:
            prior_variance: v₀, one number or one per name. Default: the best one per tensor, mean(m² + v) (Graves
                2011). (The optimizer's diagnostics take one v₀ for all tensors of a group, so their KL is larger.)
        """
        total = 0.0
        for name, v in self.variance.items():
            m, v = self.mean[name].double(), v.double()
            if isinstance(prior_variance, Mapping) and name not in prior_variance:
                raise ValueError(f"prior_variance has no entry for {name}.")
            prior = prior_variance[name] if isinstance(prior_variance, Mapping) else prior_variance
            prior = float((m.square() + v).mean()) if prior is None else prior
            if not prior > 0:
                raise ValueError(f"prior_variance is {prior} for {name}; expected a number above 0.")
            total += float(0.5 * ((m.square() + v) / prior - 1 - (v / prior).log()).sum())
        return total

    def summary(self) -> dict[str, float]:
        """Size, σ, |m|/σ and KL at a glance."""
        return super().summary() | {"kl": self.kl()}
