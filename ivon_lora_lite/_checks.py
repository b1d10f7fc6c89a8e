"""What IVON refuses: arguments outside their range, and checkpoints that do not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from .ivon import IVON

STRUCTURE = ("mc_samples", "hess_approx", "debias", "rescale_lr", "sync")  # a checkpoint must agree on these
RANGES = {
    "lr": (lambda x: x >= 0, "at least 0"),
    "ess": (lambda x: x > 0, "above 0"),
    "hess_init": (lambda x: x > 0, "above 0"),
    "beta1": (lambda x: 0 <= x < 1, "in [0, 1)"),
    "beta2": (lambda x: 0 <= x < 1, "in [0, 1)"),
    "weight_decay": (lambda x: x >= 0, "at least 0"),
    "clip_radius": (lambda x: x > 0, "above 0"),
}


def check_options(mc_samples: int, hess_approx: str) -> None:
    if not (isinstance(mc_samples, int) and mc_samples >= 1):
        raise ValueError(f"mc_samples is {mc_samples!r}; expected a whole number of at least 1.")
    if hess_approx not in ("price", "gradsq"):
        raise ValueError(f"hess_approx is {hess_approx!r}; expected 'price' or 'gradsq'.")


def check_group(group: dict) -> None:
    for name, (fits, words) in RANGES.items():
        if not fits(group[name]):
            raise ValueError(f"{name} is {group[name]!r}; expected a number {words}.")
    for p in group["params"]:
        if not p.is_floating_point():
            raise ValueError(f"A parameter has dtype {p.dtype}; a Gaussian posterior needs floating point.")


def matching_state(optimizer: IVON, state_dict: dict) -> list[tuple[Tensor, dict]]:
    """The optimizer's parameters with their saved states; refuses a checkpoint that is not of the same shape."""
    if "ivon" not in state_dict:
        raise ValueError("This is not a checkpoint of this IVON: it has no 'ivon' entry.")
    own = state_dict["ivon"]
    for name in STRUCTURE:
        if own["options"][name] != getattr(optimizer, name):
            raise ValueError(
                f"The checkpoint was made with {name}={own['options'][name]!r}, this optimizer has "
                f"{name}={getattr(optimizer, name)!r}: construct it with the checkpoint's value."
            )
    ours, theirs = optimizer.param_groups, state_dict["param_groups"]
    if [len(g["params"]) for g in ours] != [len(g["params"]) for g in theirs]:
        raise ValueError("The checkpoint has other parameter groups than this optimizer.")
    indices = [i for g in theirs for i in g["params"]]
    params = [p for g in ours for p in g["params"]]
    pairs = [(p, state_dict["state"].get(index, {})) for p, index in zip(params, indices)]
    for index, (p, saved) in zip(indices, pairs):
        for name in ("hess", "momentum", "mean"):
            if name in saved and saved[name].shape != p.shape:
                raise ValueError(
                    f"Parameter {index}: the checkpoint's {name} has shape {tuple(saved[name].shape)}, the "
                    f"parameter {tuple(p.shape)}: was the checkpoint made with another rank or model?"
                )
    return pairs
