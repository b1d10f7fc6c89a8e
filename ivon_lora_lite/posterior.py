"""A Gaussian posterior N(m, diag v) over named tensors: to draw from, to scale, to prune, to keep as a file.

The file ``posterior.safetensors`` lies beside PEFT's ``adapter_model.safetensors`` and uses its names. Reading it needs
neither the optimizer nor the code that trained it; plain PEFT reads the same folder and predicts at the mean.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from .files import write_tensors
from .ivon import IVON

__all__ = ["POSTERIOR_FILE", "GaussianPosterior", "Posterior", "applied_weights", "put_weights", "trainable"]

POSTERIOR_FILE = "posterior.safetensors"
FORMAT = "ivon_lora_lite.GaussianPosterior/1"
T = TypeVar("T")


class Posterior(Protocol):
    """What :func:`predict` and :func:`tau_sweep` draw from: a mean, and draws around it at any τ.

    Attributes:
        mean: name → tensor; the names are those of :func:`trainable`.
    """

    mean: Mapping[str, Tensor]

    def sample(self, seed: int, tau: float = 1.0) -> dict[str, Tensor]:
        """One draw, name → tensor, with the covariance times τ. The same seed gives the same noise for every τ."""
        ...

    @contextmanager
    def applied(self, model: nn.Module, seed: int | None = None, tau: float = 1.0) -> Iterator[None]:
        """Within the context the model's weights are a draw (or the mean, without a seed); after it, what they were."""
        with applied_weights(model, self.mean if seed is None else self.sample(seed, tau)):
            yield


@dataclass(frozen=True)
class GaussianPosterior(Posterior):
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
        same_names(self.mean, self.variance, "mean", "variance")
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
        check_tau(tau)
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
        check_tau(tau)
        metadata = {**self.metadata, "tau": tau * float(self.metadata.get("tau", 1.0))}
        return GaussianPosterior(self.mean, {name: positive(tau * v) for name, v in self.variance.items()}, metadata)

    def signal_to_noise(self) -> dict[str, Tensor]:
        """|m| / √v per coordinate."""
        return {name: m.abs() / self.variance[name].sqrt() for name, m in self.mean.items()}

    def prune(self, fraction: float) -> GaussianPosterior:
        """Set the fraction of coordinates with the smallest |m|/√v to 0, without noise (Graves 2011; Cong et al. 2025).

        The threshold is shared by all tensors. A pruned coordinate keeps the smallest positive variance, so the KL of a
        pruned posterior means little.
        """
        masks = smallest(self.signal_to_noise(), fraction)
        mean = {name: m.masked_fill(masks[name], 0.0) for name, m in self.mean.items()}
        variance = {name: v.masked_fill(masks[name], torch.finfo(v.dtype).tiny) for name, v in self.variance.items()}
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

    # ------------------------------------------------------------------------------------------------ file

    def save(self, folder: str | os.PathLike) -> Path:
        """Write ``posterior.safetensors`` into a folder, all or nothing."""
        return write_posterior(folder, FORMAT, {"mean": self.mean, "variance": self.variance}, self.metadata)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> GaussianPosterior:
        """Read ``posterior.safetensors`` from a folder (or the file itself).

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, of another format, or holds values that are no Gaussian's.
        """
        return read_posterior(folder, FORMAT, ("mean", "variance"), cls)


def write_posterior(
    folder: str | os.PathLike, format: str, parts: Mapping[str, Mapping[str, Tensor]], metadata: Mapping
) -> Path:
    """Write ``posterior.safetensors``, all or nothing: tensors ``part/name``; format and facts in the header."""
    tensors = {f"{part}/{name}": t for part, members in parts.items() for name, t in members.items()}
    return write_tensors(Path(folder) / POSTERIOR_FILE, format, tensors, dict(metadata))


def read_posterior(folder: str | os.PathLike, format: str, parts: Sequence[str], build: Callable[..., T]) -> T:
    """Read a file of :func:`write_posterior` and hand its parts and facts to ``build``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, of another format, or ``build`` refuses what it holds.
    """
    path, header, tensors = _read(folder)
    if header.get("format") != format:
        raise ValueError(f"{path} is not a posterior of this package (format {header.get('format')!r}).")
    sorted_in: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        if part not in sorted_in:
            raise ValueError(f"{path} holds an unknown tensor {key!r}.")
        sorted_in[part][name] = tensor
    try:
        return build(*sorted_in.values(), json.loads(header.get("facts", "{}")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def posterior_format(folder: str | os.PathLike) -> str | None:
    """The format that a posterior's file states in its header."""
    return _read(folder, values=False)[1].get("format")


def _read(folder: str | os.PathLike, values: bool = True) -> tuple[Path, dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    path = Path(folder)
    path = path / POSTERIOR_FILE if path.is_dir() or not path.suffix else path
    if not path.is_file():
        raise FileNotFoundError(f"There is no posterior at {path}: IVON runs write one beside the adapter.")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys() if values}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    return path, header, tensors


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by the names under which PEFT saves them (without the adapter's name)."""
    adapters = [f".{name}" for name in getattr(model, "peft_config", {})]
    out = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            for adapter in adapters:
                name = name.replace(f".modules_to_save{adapter}.", ".")  # a classifier's head
                name = name.replace(f"{adapter}.", ".").removesuffix(adapter)
            out[name] = p
    return out


@contextmanager
def applied_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Put named weights into a model for the length of a context; restores the former ones whatever happens.

    Raises:
        ValueError: names or shapes do not fit the model's trainable parameters.
    """
    params = _fitting(model, weights)
    # ordinary tensors even if the caller predicts in inference_mode; the caller's own mode holds inside the context
    with torch.inference_mode(False), torch.no_grad():
        saved = {name: p.detach().clone() for name, p in params.items()}
    try:
        _write(params, weights)
        yield
    finally:
        _write(params, saved)


def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put named weights into a model to stay.

    Raises:
        ValueError: names or shapes do not fit the model's trainable parameters.
    """
    _write(_fitting(model, weights), weights)


def smallest(values: Mapping[str, Tensor], fraction: float) -> dict[str, Tensor]:
    """Masks of the fraction of all coordinates with the smallest values; all tensors share the threshold."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is {fraction}; expected a share between 0 and 1.")
    order = torch.cat([v.flatten() for v in values.values()]).argsort()
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[order[: round(fraction * len(order))]] = True
    parts = chosen.split([v.numel() for v in values.values()])
    return {name: part.view(v.shape) for (name, v), part in zip(values.items(), parts)}


def _fitting(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    params = trainable(model)
    same_names(params, weights, "the model", "the weights")
    for name, p in params.items():
        if p.shape != weights[name].shape:
            raise ValueError(
                f"{name}: the model has shape {tuple(p.shape)}, the weights {tuple(weights[name].shape)}: were they "
                "made with another rank or base model?"
            )
    return params


def _write(params: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    with torch.inference_mode(False), torch.no_grad():
        for name, p in params.items():
            p.copy_(weights[name])


def same_names(a: Mapping, b: Mapping, a_is: str, b_is: str) -> None:
    for one, other, one_is, other_is in ((a, b, a_is, b_is), (b, a, b_is, a_is)):
        extra = sorted(set(one) - set(other))
        if extra:
            raise ValueError(f"{one_is} has {extra[0]!r} ({len(extra)} in all), which {other_is} lacks.")


def positive(v: Tensor) -> Tensor:
    return v.clamp(min=torch.finfo(v.dtype).tiny)


def check_tau(tau: float) -> None:
    if not 0 <= tau < float("inf"):
        raise ValueError(f"tau is {tau}; expected a finite number of at least 0.")
