"""The Gaussian in a torch optimizer's ``state``: ``hess``, ``momentum`` and, for 16-bit parameters, an fp32 ``mean``.

And what IVON refuses: arguments outside their range, and checkpoints that do not fit.
"""

import math

import torch
from torch import Tensor

from .lists import lay_side_by_side

STRUCTURE = ("mc_samples", "hess_approx", "debias", "rescale_lr", "sync")  # a checkpoint must agree on these
RANGES = {
    "lr": (lambda x: 0 <= x < math.inf, "at least 0"),
    "ess": (lambda x: 0 < x < math.inf, "above 0"),
    "hess_init": (lambda x: 0 < x < math.inf, "above 0"),
    "beta1": (lambda x: 0 <= x < 1, "in [0, 1)"),
    "beta2": (lambda x: 0 <= x < 1, "in [0, 1)"),
    "weight_decay": (lambda x: 0 <= x < math.inf, "at least 0"),
    "clip_radius": (lambda x: x > 0, "above 0"),
}


@torch.inference_mode(False)  # it outlives the mode of whoever asks first
@torch.no_grad()
def start(state: dict, params: list[Tensor], group: dict) -> None:
    """Start parameters at h₀."""
    for p in params:
        dtype = torch.promote_types(p.dtype, torch.float32)
        state[p] = {
            "step": 0,
            "momentum": torch.zeros_like(p, dtype=dtype, memory_format=torch.contiguous_format),
            "hess": torch.full_like(p, group["hess_init"], dtype=dtype, memory_format=torch.contiguous_format),
        }
        if p.dtype != dtype:
            state[p]["mean"] = p.detach().to(dtype)
    lay_out(state, params)


def follow(state: dict, params: list[Tensor]) -> None:
    """Move the state of parameters to where they are now: ``model.to(device)`` takes the parameters alone.

    Raises:
        RuntimeError: a parameter has another dtype than when its state was made.
    """
    moved = [p for p in params if state[p]["hess"].device != p.device]
    for p in params:
        if not same_precision(p, state[p]):
            raise RuntimeError(f"A parameter became {p.dtype} after its first draw: convert the model before training.")
    for p in moved:
        state[p].update({name: t.to(p.device) for name, t in state[p].items() if name != "step"})
    if moved:
        lay_out(state, params)


def same_precision(p: Tensor, own: dict) -> bool:
    """Whether a state was made for a parameter of this precision: 16-bit ones, and no others, have a ``mean``."""
    return ("mean" in own) == (p.dtype != own["hess"].dtype)


def lay_out(state: dict, params: list[Tensor]) -> None:
    """Put ``momentum`` and ``hess`` of several parameters side by side in memory."""
    for name in ("momentum", "hess"):
        lay_side_by_side([state[p] for p in params], name)


def mean_of(state: dict, p: Tensor) -> Tensor:
    """m of a parameter that holds its mean now; the fp32 copy if it is 16-bit, with what was changed in it since."""
    mean, now = state[p].get("mean") if p in state else None, p.detach()
    if mean is None:
        return now
    kept = mean.to(now.device)
    return mean.copy_(torch.where(now == kept.to(now.dtype), kept, now.to(mean.dtype)))


def variance_of(state: dict, p: Tensor, group: dict) -> Tensor:
    """v = 1 / (λ (h + δ)) of a parameter."""
    return 1 / (group["ess"] * (state[p]["hess"] + group["weight_decay"]))


def check_options(hess_approx: str, **counts: int) -> None:
    for name, value in counts.items():
        if not (isinstance(value, int) and value >= 1):
            raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1.")
    if hess_approx not in ("price", "gradsq"):
        raise ValueError(f"hess_approx is {hess_approx!r}; expected 'price' or 'gradsq'.")


def check_group(group: dict) -> None:
    for name, (fits, words) in RANGES.items():
        if not hasattr(group[name], "__float__") or not fits(group[name]):
            raise ValueError(f"{name} is {group[name]!r}; expected a number {words}.")
    for p in group["params"]:
        if p.is_meta:
            raise ValueError("A parameter is offloaded (device_map, cpu_offload): IVON needs it on a device.")
        if not p.is_floating_point():
            raise ValueError(f"A parameter has dtype {p.dtype}; a Gaussian posterior needs floating point.")
        if hasattr(p, "device_mesh") or type(p).__name__ == "FlatParameter" or getattr(p, "_fsdp_flattened", False):
            raise ValueError("A parameter is sharded (FSDP, tensor parallelism): IVON needs whole ones, so use DDP.")


def matching_state(groups: list[dict], options: dict, state_dict: dict) -> list[tuple[Tensor, dict]]:
    """An optimizer's parameters with their saved states; refuses a checkpoint that is not of the same shape.

    Args:
        groups: the optimizer's parameter groups.
        options: its options of :data:`STRUCTURE`.
        state_dict: the checkpoint.
    """
    if "ivon" not in state_dict:
        raise ValueError("This is not a checkpoint of this IVON: it has no 'ivon' entry.")
    own = state_dict["ivon"]
    for name in STRUCTURE:
        if own["options"][name] != options[name]:
            raise ValueError(
                f"The checkpoint was made with {name}={own['options'][name]!r}, this optimizer has "
                f"{name}={options[name]!r}: construct it with the checkpoint's value."
            )
    ours, theirs = groups, state_dict["param_groups"]
    if [len(g["params"]) for g in ours] != [len(g["params"]) for g in theirs]:
        raise ValueError("The checkpoint has other parameter groups than this optimizer.")
    indices = [i for g in theirs for i in g["params"]]
    params = [p for g in ours for p in g["params"]]
    pairs = [(p, state_dict["state"].get(index, {})) for p, index in zip(params, indices)]
    for index, (p, saved) in zip(indices, pairs):
        if saved and not same_precision(p, saved):
            raise ValueError(f"Parameter {index} is {p.dtype}, and the checkpoint is of another precision.")
        for name in ("hess", "momentum", "mean"):
            if name in saved and saved[name].shape != p.shape:
                raise ValueError(
                    f"Parameter {index}: the checkpoint's {name} has shape {tuple(saved[name].shape)}, the "
                    f"parameter {tuple(p.shape)}: was the checkpoint made with another rank or model?"
                )
    return pairs
