"""ScalaBL: noise on one number per rank, between LoRA's A and B (Samplawski et al. 2025).

    ΔW = B diag(s) A,   q(s) = N(μ, diag σ²);  A and B are points.   Loss per question as in BLoB, with the KL of s

A starts as the right singular vectors of LoRA's random start and μ as its singular values; μ and σ are kept positive by
an exponential. So a layer of rank r gets 2r more numbers, about a thousand in a small model. diag(s) A is again an A,
whose rows are each scaled by a random number: so a draw is an ordinary adapter, and plain PEFT reads the mean.

The public code has the KL the other way round, KL[prior ‖ q]; here it is KL[q ‖ prior], as the paper's ELBO has it.
Noise is drawn per question, which has the same mean as one draw per batch, and less variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace

import torch
from torch import Tensor, nn

from ..evaluation import predict
from ..language import Question, Task
from ..posterior import Posterior, lora_layers, trainable
from ..posterior.base import check_finite, check_tau, positive, scaled, smallest
from ..posterior.weights import check_same_names
from ..training import Beside, Run, finetune
from .base import Bench, Method, Result
from .blob import Owners, gaussian_kl


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
        check_tau(tau)
        generator = torch.Generator().manual_seed(seed)
        out = dict(self.mean)
        for name in sorted(self.spread):
            d = self.spread[name]
            out[name] = out[name] + tau**0.5 * torch.randn(len(d), 1, generator=generator) * d
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


@dataclass(frozen=True)
class ScalablSettings:
    """How ScalaBL's numbers are trained.

    Attributes:
        prior_sigma: of the prior N(0, σ_p² I) over s.
        start: ε; σ starts uniform in [ε/√2, ε].
        kl_weight: 1 is the ELBO.
        scale_lr: Adam's learning rate of log μ and log σ, decaying linearly to 0.
    """

    prior_sigma: float = 1.0
    start: float = 0.05
    kl_weight: float = 1.0
    scale_lr: float = 1e-2

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; expected a finite number above 0.")

    @contextmanager
    def attach(self, model: nn.Module, seed: int) -> Iterator[ScalablTraining]:
        """Within the context LoRA is B diag(s) A; afterwards the mean of s is in A."""
        training = ScalablTraining(model, self, seed)
        hooks = training.hook()
        try:
            yield training
        finally:
            for hook in hooks:
                hook.remove()
            training.fold()


class ScalablTraining(Beside):
    """The scales between A and B, their noise in training, and the Adam that trains both.

    Attributes:
        log_mean, log_sigma: name of A → ``[r]``.
        history: one dict per log, with the mean of σ/μ and the KL.
    """

    def __init__(self, model: nn.Module, settings: ScalablSettings, seed: int):
        self.settings, self.owners, self.questions = settings, Owners(), 1
        self.generator = torch.Generator().manual_seed(seed)
        names = {id(p): name for name, p in trainable(model).items()}
        self.modules = {names[id(pair.a.weight)]: pair.a for pair in lora_layers(model).values()}
        self.log_mean: dict[str, Tensor] = {}
        self.log_sigma: dict[str, Tensor] = {}
        self.noise: dict[str, Tensor] = {}
        self.history: list[dict] = []
        for name, module in self.modules.items():
            weight = module.weight.detach()
            _, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
            with torch.no_grad():
                module.weight.copy_(right)
            uniform = torch.rand(len(values), generator=self.generator).to(values)
            self.log_mean[name] = values.log().requires_grad_()
            self.log_sigma[name] = (settings.start * (2**-0.5 + (1 - 2**-0.5) * uniform)).log().requires_grad_()
        numbers = [*self.log_mean.values(), *self.log_sigma.values()]
        super().__init__(torch.optim.Adam(numbers, lr=settings.scale_lr))

    def see(self, model: nn.Module, batch: dict, format: str) -> None:
        """A new batch gets new noise."""
        self.owners.see(model, batch, format)
        self.noise = {}

    def hook(self) -> list:
        def scale(name: str, module: nn.Linear, args: tuple, out: Tensor) -> Tensor:
            return out * self.scales(name, args[0] if module.training else None).to(out.dtype)

        return [
            module.register_forward_hook(lambda m, args, out, name=name: scale(name, m, args, out))
            for name, module in self.modules.items()
        ]

    def scales(self, name: str, x: Tensor | None) -> Tensor:
        """μ ``[r]``; with a layer's input, s for every token of it, ``[rows, L, r]``."""
        mean = self.log_mean[name].exp()
        if x is None:
            return mean
        owner, count = self.owners.of(x)
        if name not in self.noise:
            self.noise[name] = torch.randn(count, len(mean), generator=self.generator).to(mean.device)
        return (mean + self.log_sigma[name].exp() * self.noise[name])[owner]

    def kl(self) -> Tensor:
        """KL[q(s) ‖ prior] in nats, over all layers."""
        pairs = ((self.log_mean[name].exp(), self.log_sigma[name].exp()) for name in self.modules)
        return sum(gaussian_kl(mean, sigma, self.settings.prior_sigma) for mean, sigma in pairs)

    def penalty(self, step: int, steps: int) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.scale_lr * (1 - step / steps)
        return self.settings.kl_weight / self.questions * self.kl()

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        self.questions = len(train_dataloader.dataset)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in (logs or {}):
            with torch.no_grad():
                share = torch.cat([(self.log_sigma[n] - self.log_mean[n]).exp() for n in self.modules]).mean()
                now = {"scalabl_noise": float(share), "scalabl_kl": float(self.kl())}
            self.history.append({"step": state.global_step, **now})

    @torch.no_grad()
    def fold(self) -> None:
        """A ← diag(μ) A, so that the model without hooks is the one at the mean."""
        for name, module in self.modules.items():
            module.weight.mul_(self.log_mean[name].exp()[:, None])

    def finish(self, run: Run) -> Run:
        """The run with its posterior: A's rows, scaled by random numbers."""
        spread = {
            name: ((self.log_sigma[name] - self.log_mean[name]).exp().detach().cpu()[:, None] * run.weights[name])
            for name in self.modules
        }
        points = sorted(run.weights.keys() - spread.keys())
        facts = {"method": "scalabl", "points": points, "task": run.config["task"], "seed": run.config["seed"]}
        history = sorted([*run.history, *self.history], key=lambda record: record["step"])
        config = {**run.config, "method": "scalabl", "scalabl": asdict(self.settings)}
        posterior = RowPosterior(dict(run.weights), spread, facts)
        return replace(run, posterior=posterior, config=config, history=history)


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
    names = {f.name for f in fields(ScalablSettings)}
    settings = ScalablSettings(**{name: value for name, value in options.items() if name in names})
    options = {name: value for name, value in options.items() if name not in names}
    return finetune(model, task, optimizer="adamw", attachments=[settings], **options)


def _make(bench: Bench) -> Result:
    run, samples = scalabl(bench.model, bench.task, **bench.training()), bench.settings.samples
    predictions = predict(run, bench.questions, samples=samples, progress=bench.progress)
    numbers = sum(w.numel() for w in run.weights.values())
    floats = (numbers + sum(len(d) for d in run.posterior.spread.values())) / numbers
    return Result(predictions, run, {"train": run.seconds}, floats, samples)


SCALABL = Method("scalabl", "ScalaBL", "ScalaBL: draws of one number per rank and layer", _make)
