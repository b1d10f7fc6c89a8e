"""A Gaussian posterior N(m, diag v) over named tensors: to draw from, to scale, to prune, to keep as a file.

The file ``posterior.safetensors`` lies beside PEFT's ``adapter_model.safetensors`` and uses its names. Reading it needs
neither the optimizer nor the code that trained it; plain PEFT reads the same folder and predicts at the mean.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from .files import atomic_path
from .ivon import IVON

__all__ = ["POSTERIOR_FILE", "GaussianPosterior", "applied_weights", "trainable"]

POSTERIOR_FILE = "posterior.safetensors"
FORMAT = "ivon_lora_lite.GaussianPosterior/1"


@dataclass(frozen=True)
class GaussianPosterior:
    """Independent Gaussians over named tensors.

    Attributes:
        mean: name → tensor m.
        variance: name → tensor v > 0, of the same names and shapes.
        metadata: JSON-able facts: λ, δ, step, where it came from.

    Raises:
        ValueError: names or shapes differ, or a value is not finite, or a variance is not positive.

    >>> q = GaussianPosterior({"w": torch.zeros(2)}, {"w": torch.ones(2)})
    >>> torch.equal(q.sample(seed=1)["w"] / 2, q.scale(0.25).sample(seed=1)["w"])
    True
    """

    mean: Mapping[str, Tensor]
    variance: Mapping[str, Tensor]
    metadata: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.mean:
            raise ValueError("A posterior needs at least one tensor.")
        _same_names(self.mean, self.variance, "mean", "variance")
        for name, m in self.mean.items():
            v = self.variance[name]
            if m.shape != v.shape:
                raise ValueError(f"{name}: mean has shape {tuple(m.shape)}, variance {tuple(v.shape)}.")
            if not torch.isfinite(m).all():
                raise ValueError(f"{name}: the mean holds values that are not finite.")
            if not (torch.isfinite(v).all() and (v > 0).all()):
                raise ValueError(f"{name}: the variance must be finite and above 0, its minimum is {v.min().item()}.")

    # ------------------------------------------------------------------------------------------------ where from

    @classmethod
    def from_optimizer(cls, optimizer: IVON, model: nn.Module, **metadata: object) -> GaussianPosterior:
        """The posterior that an IVON optimizer holds over a model's trainable parameters.

        λ and δ (per group, where groups differ) and the step count go into the metadata.
        """
        names = {id(p): name for name, p in trainable(model).items()}
        groups = [[p for p in group["params"] if id(p) in names] for group in optimizer.param_groups]
        params = [p for group in groups for p in group]
        if not params:
            raise ValueError("None of the optimizer's parameters is a trainable parameter of this model.")
        facts: dict[str, object] = {"step": max(optimizer.state[p].get("step", 0) for p in params)}
        for fact in ("ess", "weight_decay"):
            values = [group[fact] for group in optimizer.param_groups]
            facts[fact] = values[0] if len(set(values)) == 1 else values
        return cls(
            {names[id(p)]: optimizer.mean(p).detach().cpu().clone() for p in params},
            {names[id(p)]: optimizer.variance(p).detach().cpu() for p in params},
            facts | metadata,
        )

    @classmethod
    def isotropic(cls, model: nn.Module, variance: float, **metadata: object) -> GaussianPosterior:
        """The model's present weights as mean, with one variance everywhere: for adapters trained elsewhere."""
        mean = {name: p.detach().float().cpu().clone() for name, p in trainable(model).items()}
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
        _check_tau(tau)
        generator = torch.Generator().manual_seed(seed)
        out = {}
        for name in sorted(self.mean):
            m, v = self.mean[name], self.variance[name]
            noise = torch.randn(m.shape, generator=generator, dtype=torch.promote_types(m.dtype, torch.float32))
            out[name] = m + (tau * v).sqrt() * noise
        return out

    def scale(self, tau: float) -> GaussianPosterior:
        """N(m, τ·diag v) as a posterior of its own, τ > 0."""
        if tau == 0:
            raise ValueError("tau=0 leaves a point, not a Gaussian: use `.mean`, or sample(seed, tau=0).")
        _check_tau(tau)
        metadata = {**self.metadata, "tau": tau * float(self.metadata.get("tau", 1.0))}
        return GaussianPosterior(self.mean, {name: _positive(tau * v) for name, v in self.variance.items()}, metadata)

    def signal_to_noise(self) -> dict[str, Tensor]:
        """|m| / √v per coordinate."""
        return {name: m.abs() / self.variance[name].sqrt() for name, m in self.mean.items()}

    def prune(self, fraction: float) -> GaussianPosterior:
        """Set the fraction of coordinates with the smallest |m|/√v to 0, without noise (Graves 2011; Cong et al. 2025).

        The threshold is shared by all tensors. A pruned coordinate keeps the smallest positive variance, so the KL of a
        pruned posterior means little.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction is {fraction}; expected a share between 0 and 1.")
        ratios = self.signal_to_noise()
        order = torch.cat([ratios[name].flatten() for name in ratios]).argsort()
        drop = torch.zeros(len(order), dtype=torch.bool)
        drop[order[: round(fraction * len(order))]] = True
        masks = dict(zip(ratios, drop.split([r.numel() for r in ratios.values()])))
        mean, variance = {}, {}
        for name, m in self.mean.items():
            mask, v = masks[name].view(m.shape), self.variance[name]
            mean[name] = m.masked_fill(mask, 0.0)
            variance[name] = v.masked_fill(mask, torch.finfo(v.dtype).tiny)
        return GaussianPosterior(mean, variance, {**self.metadata, "pruned": fraction})

    def kl(self, prior_variance: float | Mapping[str, float] | None = None) -> float:
        """KL[N(m, diag v) ‖ N(0, v₀ I)] = ½ Σ ((m² + v)/v₀ − 1 − log(v/v₀)), in nats.

        Args:
            prior_variance: v₀, one number or one per name. Default: the best one per tensor, mean(m² + v) (Graves
                2011).
        """
        total = 0.0
        for name, m in self.mean.items():
            m, v = m.double(), self.variance[name].double()
            if isinstance(prior_variance, Mapping) and name not in prior_variance:
                raise ValueError(f"prior_variance has no entry for {name}.")
            prior = prior_variance[name] if isinstance(prior_variance, Mapping) else prior_variance
            prior = float((m.square() + v).mean()) if prior is None else prior
            if not prior > 0:
                raise ValueError(f"prior_variance is {prior} for {name}; expected a number above 0.")
            total += float(0.5 * ((m.square() + v) / prior - 1 - (v / prior).log()).sum())
        return total

    def summary(self) -> dict[str, float]:
        """Size, σ and |m|/σ at a glance."""
        sigma = torch.cat([v.flatten() for v in self.variance.values()]).sqrt()
        ratio = torch.cat([r.flatten() for r in self.signal_to_noise().values()])
        return {
            "parameters": sigma.numel(),
            "tensors": len(self.mean),
            "sigma_mean": float(sigma.mean()),
            "sigma_min": float(sigma.min()),
            "sigma_max": float(sigma.max()),
            "snr_median": float(ratio.median()),
            "kl": self.kl(),
        }

    @contextmanager
    def applied(self, model: nn.Module, seed: int | None = None, tau: float = 1.0) -> Iterator[None]:
        """Within the context the model's weights are a draw (or the mean, without a seed); after it, what they were."""
        with applied_weights(model, self.mean if seed is None else self.sample(seed, tau)):
            yield

    # ------------------------------------------------------------------------------------------------ file

    def save(self, folder: str | os.PathLike) -> Path:
        """Write ``posterior.safetensors`` into a folder, all or nothing."""
        from safetensors.torch import save_file

        path = Path(folder) / POSTERIOR_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {f"mean/{name}": m.contiguous() for name, m in self.mean.items()}
        tensors |= {
            f"variance/{name}": v.clone(memory_format=torch.contiguous_format) for name, v in self.variance.items()
        }
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, {"format": FORMAT, "facts": json.dumps(dict(self.metadata))})
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike) -> GaussianPosterior:
        """Read ``posterior.safetensors`` from a folder (or the file itself).

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, of another format, or holds values that are no Gaussian's.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(folder)
        path = path / POSTERIOR_FILE if path.is_dir() or not path.suffix else path
        if not path.is_file():
            raise FileNotFoundError(f"There is no posterior at {path}: IVON runs write one beside the adapter.")
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
        if header.get("format") != FORMAT:
            raise ValueError(f"{path} is not a posterior of this package (format {header.get('format')!r}).")
        halves: dict[str, dict[str, Tensor]] = {"mean": {}, "variance": {}}
        for key, tensor in tensors.items():
            half, _, name = key.partition("/")
            if half not in halves:
                raise ValueError(f"{path} holds an unknown tensor {key!r}.")
            halves[half][name] = tensor
        try:
            return cls(halves["mean"], halves["variance"], json.loads(header.get("facts", "{}")))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by the names under which PEFT saves them (without the adapter's name)."""
    adapters = [f".{name}" for name in getattr(model, "peft_config", {})]
    out = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            for adapter in adapters:
                name = name.replace(f"{adapter}.", ".").removesuffix(adapter)
            out[name] = p
    return out


@contextmanager
def applied_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Put named weights into a model for the length of a context; restores the former ones whatever happens.

    Raises:
        ValueError: names or shapes do not fit the model's trainable parameters.
    """
    params = trainable(model)
    _same_names(params, weights, "the model", "the weights")
    for name, p in params.items():
        if p.shape != weights[name].shape:
            raise ValueError(
                f"{name}: the model has shape {tuple(p.shape)}, the weights {tuple(weights[name].shape)}: were they "
                "made with another rank or base model?"
            )
    # ordinary tensors even if the caller predicts in inference_mode; the caller's own mode holds inside the context
    with torch.inference_mode(False), torch.no_grad():
        saved = {name: p.detach().clone() for name, p in params.items()}
    try:
        _write(params, weights)
        yield
    finally:
        _write(params, saved)


def _write(params: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    with torch.inference_mode(False), torch.no_grad():
        for name, p in params.items():
            p.copy_(weights[name])


def _same_names(a: Mapping, b: Mapping, a_is: str, b_is: str) -> None:
    for one, other, one_is, other_is in ((a, b, a_is, b_is), (b, a, b_is, a_is)):
        extra = sorted(set(one) - set(other))
        if extra:
            raise ValueError(f"{one_is} has {extra[0]!r} ({len(extra)} in all), which {other_is} lacks.")


def _positive(v: Tensor) -> Tensor:
    return v.clamp(min=torch.finfo(v.dtype).tiny)


def _check_tau(tau: float) -> None:
    if not 0 <= tau < float("inf"):
        raise ValueError(f"tau is {tau}; expected a finite number of at least 0.")
