"""ScalaBL: noise on one number per rank, between LoRA's A and B (Samplawski et al. 2025).

    ΔW = B diag(s) A,   q(s) = N(μ, diag σ²);  A and B are points.   Loss per question as in BLoB, with the KL of s

With A = U diag(μ) Vᵀ at LoRA's start, A begins as Vᵀ and B as BU, so ΔW is what it was; μ and σ are kept positive by an
exponential. So a layer of rank r gets 2r more numbers, about a thousand in a small model. diag(s) A is again an A,
whose rows are each scaled by a random number: so a draw is an ordinary adapter, and plain PEFT reads the mean.

The public code has the KL the other way round, KL[prior ‖ q]; here it is KL[q ‖ prior], as the paper's ELBO has it.
Noise is drawn per question, which has the same mean as one draw per batch, and less variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..evaluation import predict
from ..language import Question, Task
from ..posterior import Posterior
from ..posterior.base import check_finite, check_tau, noise_source, positive, scaled, smallest
from ..posterior.weights import check_same_names
from ..training import Run
from .base import Bench, Method, Result, options_of, training_options
from .variational import LearnedNoise, LearnedNoiseSettings, gaussian_kl


@dataclass(frozen=True)
class RowPosterior(Posterior):
    """Matrices whose rows move along fixed directions:  W_i = M_i + ε_i D_i,  ε_i ~ N(0, 1), one for each row.

    Attributes:
        mean: name → M.
        spread: name → D, of the same shape, for the matrices that are not points.
        metadata: JSON-able facts; ``"points"`` lists the names that have no spread.

    Raises:
        ValueError: D has no M, or another shape, or lacks a name that is not a point, or a value is not finite.
    """

    FORMAT = "ivon_lora_lite.RowPosterior/1"
    PARTS = ("mean", "spread")

    mean: Mapping[str, Tensor]
    spread: Mapping[str, Tensor]
    metadata: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_same_names(self.mean.keys() - set(self.metadata.get("points", ())), self.spread, "mean", "spread")
        for name, m in self.mean.items():
            check_finite(name, "mean", m, m.shape)
        for name, d in self.spread.items():
            check_finite(name, "spread", d, self.mean[name].shape)

    @property
    def variance(self) -> dict[str, Tensor]:
        """Marginal variance of every coordinate that is not a point, D²."""
        return {name: positive(d.square()) for name, d in self.spread.items()}

    def sample(self, seed: int, tau: float = 1.0) -> dict[str, Tensor]:
        """One draw with the covariance times τ; the same seed gives the same ε for every τ."""
        normal = noise_source(seed, tau)
        out = dict(self.mean)
        for name in sorted(self.spread):
            d = self.spread[name]
            out[name] = out[name] + tau**0.5 * normal(len(d), 1) * d
        return out

    def scale(self, tau: float) -> RowPosterior:
        """The covariance times τ > 0, as a posterior of its own."""
        check_tau(tau, above=True)
        return replace(
            self, spread={n: tau**0.5 * d for n, d in self.spread.items()}, metadata=scaled(self.metadata, tau)
        )

    def prune(self, fraction: float) -> RowPosterior:
        """Set the fraction of coordinates with the smallest |M|/|D| to 0, without noise; points are left alone."""
        masks = smallest(self.signal_to_noise(), fraction)
        mean, spread = (
            {n: t.masked_fill(masks[n], 0.0) if n in masks else t for n, t in part.items()}
            for part in (self.mean, self.spread)
        )
        return replace(self, mean=mean, spread=spread, metadata={**self.metadata, "pruned": fraction})

    def covariance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        """Σ_i (J D_i)(J D_i)ᵀ ``[C, C]`` over all rows i of all matrices."""
        along = [(j * self.spread[n].to(j.device)).sum(-1) for n, j in jacobian.items() if n in self.spread]  # [C, r]
        return sum(rows @ rows.T for rows in along)


class ScalablTraining(LearnedNoise):
    """The scales between A and B, their noise, and the Adam that trains both.

    Attributes:
        log_mean, log_sigma: name of A → ``[r]``.
    """

    moves_start: ClassVar[bool] = True  # A is turned

    def numbers(self) -> list[Tensor]:
        self.log_mean, self.log_sigma = {}, {}
        for name, module in self.modules.items():
            b = self.pairs[name].b.weight
            if len(module.weight) > module.in_features:
                raise ValueError(
                    f"{name} has rank {len(module.weight)} and {module.in_features} inputs: use a rank not above."
                )
            left, values, right = torch.linalg.svd(module.weight.detach().float(), full_matrices=False)
            with torch.no_grad():
                module.weight.copy_(right)
                b.copy_(b.float() @ left)
            # of a row that is 0 too it needs a logarithm
            self.log_mean[name] = values.clamp(min=1e-6 * float(values.max())).log().requires_grad_()
            self.log_sigma[name] = self.around_start(values.shape).to(values).log().requires_grad_()
        return [*self.log_mean.values(), *self.log_sigma.values()]

    def changed(self, name: str, x: Tensor, out: Tensor, training: bool) -> Tensor:
        """μ ∘ A x, or s ∘ A x with an s of its own for every question."""
        scale = self.log_mean[name].exp()
        if training:
            owner, count = self.owners.of(x)
            if name not in self.noise:
                self.noise[name] = torch.randn(count, len(scale), generator=self.generator).to(scale.device)
            scale = (scale + self.log_sigma[name].exp() * self.noise[name])[owner]  # [rows, L, r]
        return out * scale.to(out.dtype)

    def kl(self) -> Tensor:
        pairs = ((self.log_mean[name].exp(), self.log_sigma[name].exp()) for name in self.modules)
        return sum(gaussian_kl(mean, sigma, self.settings.prior_sigma) for mean, sigma in pairs)

    def size(self) -> Tensor:
        """Mean of σ/μ."""
        return torch.cat([(self.log_sigma[name] - self.log_mean[name]).exp() for name in self.modules]).mean()

    @torch.no_grad()
    def detach(self) -> None:
        """A ← diag(μ) A, so that the model without hooks is the one at the mean."""
        for name, module in self.modules.items():
            module.weight.mul_(self.log_mean[name].exp()[:, None])

    def posterior(self, run: Run, facts: dict) -> RowPosterior:
        """A's rows, scaled by random numbers."""
        shares = {name: (self.log_sigma[name] - self.log_mean[name]).exp().detach().cpu() for name in self.modules}
        spread = {name: share[:, None] * run.weights[name] for name, share in shares.items()}
        return RowPosterior(dict(run.weights), spread, facts)


@dataclass(frozen=True)
class ScalablSettings(LearnedNoiseSettings):
    """As :class:`LearnedNoiseSettings`, with the prior's σ_p; σ starts uniform in [ε/√2, ε].

    Its numbers are log μ and log σ.
    """

    method: ClassVar[str] = "scalabl"
    rewrites: ClassVar[bool] = True
    training: ClassVar[type] = ScalablTraining

    prior_sigma: float = 1.0
    start: float = 0.05
    kl_weight: float = 1.0
    noise_lr: float = 1e-2


def scalabl(model: nn.Module, task: Task | Sequence[Question], **options) -> Run:
    """Finetune with ScalaBL: a Gaussian over one number per rank and layer.

    Args:
        model: with plain LoRA on linear layers.
        task: a task, or training questions.
        options: of :class:`ScalablSettings` and of :func:`finetune`.

    Returns:
        A :class:`Run` with a :class:`RowPosterior`.

    Raises:
        ValueError: a setting is out of its range; the model's LoRA is not plain pairs of matrices.
    """
    return ScalablSettings.finetune(model, task, options)


def _make(bench: Bench) -> Result:
    run, samples = scalabl(bench.model, bench.task, **bench.training()), bench.settings.samples
    predictions = predict(run, bench.questions, samples=samples, progress=bench.progress)
    numbers = sum(w.numel() for w in run.weights.values())
    floats = (numbers + sum(len(d) for d in run.posterior.spread.values())) / numbers
    return Result(predictions, run, {"train": run.seconds}, floats, samples)


SCALABL = Method(
    "scalabl",
    "ScalaBL",
    "ScalaBL: draws of one number per rank and layer",
    _make,
    settings=training_options("adamw") | options_of(ScalablSettings),
)
