"""What every posterior can do, and how it is found again by the format that its file states."""

from __future__ import annotations

import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..files import format_of, read_tensors, write_tensors
from .weights import applied_weights

POSTERIOR_FILE = "posterior.safetensors"
EXTENSIONS = "ivon_lora_lite.extensions"  # entry points of packages that bring posteriors of their own
KINDS: dict[str, type[Posterior]] = {}  # format → class; a class with a FORMAT enters itself


class Posterior(ABC):
    """A distribution over named weights. A subclass gives ``mean``, ``sample`` and, to be saved, FORMAT and PARTS.

    Attributes:
        mean: name → tensor; the names are those of :func:`trainable`.
        metadata: JSON-able facts.
        variance: of every coordinate that is not a point, name → tensor; not every kind has one.
    """

    FORMAT: ClassVar[str | None] = None
    PARTS: ClassVar[tuple[str, ...]] = ()  # attributes of tensors, name → tensor, that its file holds
    mean: Mapping[str, Tensor]
    metadata: Mapping[str, object]
    variance: Mapping[str, Tensor]

    def __init_subclass__(cls) -> None:
        if cls.FORMAT is not None:
            KINDS[cls.FORMAT] = cls

    @abstractmethod
    def sample(self, seed: int, tau: float = 1.0) -> dict[str, Tensor]:
        """One draw, name → tensor, with the covariance times τ. The same seed gives the same noise for every τ."""

    def covariance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        """J Σ Jᵀ ``[C, C]`` of C functions of the weights.

        Args:
            jacobian: name → ``[C, *shape]``.

        Raises:
            ValueError: this posterior has no covariance to ask for.
        """
        raise ValueError(f"{type(self).__name__} has no covariance that could be linearised: predict with draws.")

    @contextmanager
    def applied(self, model: nn.Module, seed: int | None = None, tau: float = 1.0) -> Iterator[None]:
        """Within the context the model's weights are a draw (or the mean, without a seed); after it, what they were."""
        with applied_weights(model, self.mean if seed is None else self.sample(seed, tau)):
            yield

    def signal_to_noise(self) -> dict[str, Tensor]:
        """|m| / √v per coordinate that is not a point; v is the marginal variance."""
        if not hasattr(self, "variance"):
            raise ValueError(f"{type(self).__name__} has no variance that |m|/σ could be made of.")
        return {name: self.mean[name].abs() / v.sqrt() for name, v in self.variance.items()}

    def summary(self) -> dict[str, float]:
        """Size, σ (the root of the marginal variance) and |m|/σ at a glance."""
        ratio = torch.cat([r.flatten() for r in self.signal_to_noise().values()])
        sigma = torch.cat([v.flatten() for v in self.variance.values()]).sqrt()
        return {
            "parameters": sigma.numel(),
            "tensors": len(self.mean),
            "sigma_mean": float(sigma.mean()),
            "sigma_min": float(sigma.min()),
            "sigma_max": float(sigma.max()),
            "snr_median": float(ratio.median()),
        }

    def scale(self, tau: float) -> Posterior:
        """The same with its covariance times τ > 0, as a posterior of its own."""
        raise ValueError(f"{type(self).__name__} cannot be scaled: give tau to sample() or applied().")

    def prune(self, fraction: float) -> Posterior:
        """The same with a fraction of its coordinates at 0, without noise: those of the smallest |m|/σ."""
        raise ValueError(f"{type(self).__name__} cannot be pruned.")

    def parts(self) -> dict[str, Mapping[str, Tensor]]:
        """What its file holds: part → name → tensor."""
        return {part: getattr(self, part) for part in self.PARTS}

    def save(self, folder: str | os.PathLike) -> Path:
        """Write ``posterior.safetensors`` into a folder, all or nothing."""
        tensors = {f"{part}/{name}": t for part, members in self.parts().items() for name, t in members.items()}
        return write_tensors(Path(folder) / POSTERIOR_FILE, self.FORMAT, tensors, dict(self.metadata))

    @classmethod
    def load(cls, folder: str | os.PathLike):
        """Read ``posterior.safetensors`` from a folder (or the file itself).

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, of another format, or holds values that this posterior cannot have.
        """
        path = posterior_path(folder)
        tensors, facts = read_tensors(path, cls.FORMAT, "posterior")
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in cls.PARTS}
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            if part not in parts:
                raise ValueError(f"{path} holds an unknown tensor {key!r}.")
            parts[part][name] = tensor
        try:
            return cls.from_parts(parts, facts)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_parts(cls, parts: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, object]):
        """The posterior that these parts of a file make."""
        return cls(**parts, metadata=metadata)


def load_posterior(folder: str | os.PathLike) -> Posterior:
    """Read ``posterior.safetensors`` from a folder (or the file itself), whichever kind it is.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or no posterior of this package.
    """
    path = posterior_path(folder)
    kind = format_of(path, "posterior")
    if kind not in KINDS:
        load_extensions()
    if kind not in KINDS:
        raise ValueError(f"{path} holds no posterior of this package (format {kind!r}).")
    return KINDS[kind].load(path)


def load_extensions() -> None:
    """Import what other packages (and the gates of this one) bring: it enters itself where it is looked for."""
    for entry in entry_points(group=EXTENSIONS):
        entry.load()


def posterior_path(folder: str | os.PathLike) -> Path:
    path = Path(folder)
    return path / POSTERIOR_FILE if path.is_dir() or not path.suffix else path


# ---------------------------------------------------------------------------------------------------- shared by kinds


def check_tau(tau: float, above: bool = False) -> None:
    """Refuse a τ that is negative or not finite; ``above``: and 0, which leaves a point."""
    if above and tau == 0:
        raise ValueError("tau=0 leaves a point, not a Gaussian: use `.mean`, or sample(seed, tau=0).")
    if not 0 <= tau < float("inf"):
        raise ValueError(f"tau is {tau}; expected a finite number of at least 0.")


def noise_source(seed: int, tau: float) -> Callable[..., Tensor]:
    """Makes standard normals of a shape, on the CPU, for one draw; refuses a τ that is negative or not finite."""
    check_tau(tau)
    return partial(torch.randn, generator=torch.Generator("cpu").manual_seed(operator.index(seed)), device="cpu")


def check_finite(name: str, what: str, t: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a tensor of another shape, or with values that are not finite."""
    if t.shape != tuple(shape):
        raise ValueError(f"{name}: {what} has shape {tuple(t.shape)}, expected {tuple(shape)}.")
    if not torch.isfinite(t).all():
        raise ValueError(f"{name}: the {what} holds values that are not finite.")


def scaled(metadata: Mapping[str, object], tau: float) -> dict[str, object]:
    """Metadata of a posterior whose covariance is multiplied by τ."""
    return {**metadata, "tau": tau * float(metadata.get("tau", 1.0))}


def positive(v: Tensor) -> Tensor:
    """At least the smallest positive number."""
    return v.clamp(min=torch.finfo(v.dtype).tiny)


def smallest(values: Mapping[str, Tensor], fraction: float) -> dict[str, Tensor]:
    """Masks of the fraction of all coordinates with the smallest values; all tensors share the threshold."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is {fraction}; expected a share between 0 and 1.")
    order = torch.cat([v.flatten() for v in values.values()]).argsort()
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[order[: round(fraction * len(order))]] = True
    parts = chosen.split([v.numel() for v in values.values()])
    return {name: part.view(v.shape) for (name, v), part in zip(values.items(), parts)}
