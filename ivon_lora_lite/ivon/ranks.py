"""Several processes (ranks) that train one model."""

import torch
import torch.distributed as dist
from torch import Tensor

from .lists import by, views


def several_ranks() -> bool:
    """Whether torch.distributed runs with more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def shared(value: int) -> int:
    """Rank 0's value on every rank."""
    if not several_ranks():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def average_over_ranks(tensors: list[Tensor]) -> None:
    """Replace tensors by their means over all ranks, in place."""
    if not several_ranks():
        return
    for members in by(tensors, lambda t: (t.device, t.dtype)).values():
        flat = torch.cat([t.flatten() for t in members])
        dist.all_reduce(flat)
        torch._foreach_copy_(members, views(flat / dist.get_world_size(), members))


def check_not_averaged(grads: list[Tensor]) -> None:
    """Refuse gradients that are the same on all ranks: DDP averaged them before.

    Hessian estimates would then shrink to 1/ranks, because a mean gradient is paired with one rank's noise.
    """
    if not several_ranks():
        return
    means = [g.clone() for g in grads]
    average_over_ranks(means)
    apart = torch.stack([(own - mean).abs().max() for own, mean in zip(grads, means)]).max()
    size = torch.stack([mean.abs().max() for mean in means]).max()
    dist.all_reduce(apart, op=dist.ReduceOp.MAX)
    if apart <= 1e-6 * size:
        raise RuntimeError(
            "sync=True, but the gradients are the same on all ranks, so they were averaged before (DDP): use "
            "sync=False, which shares one draw between ranks, or run backward under model.no_sync()."
        )
