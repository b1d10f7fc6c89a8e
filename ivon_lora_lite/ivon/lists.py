"""Lists of tensors that one operation works on, and their memory.

An operation on one large tensor uses all cores and costs one call, so tensors that lie side by side are worked on as
one flat tensor; on a CPU the lists are cut so that each fits the cache.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

CACHE_ELEMENTS = 2**18  # on a CPU, this many coordinates pass through all operations before the next ones do


def by(items: list, key: Callable) -> dict:
    """Items grouped by ``key``, in the order of first appearance."""
    groups: dict = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def parts(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Lists of one device and dtype to run through all operations together.

    On an accelerator that is everything at once (few kernels). On a CPU each list fits the cache, so the coordinates
    are read from memory once and not once per operation.
    """
    for (device, _), members in by(tensors, lambda t: (t.device, t.dtype)).items():
        if device.type != "cpu":
            yield members
            continue
        part, size = [], 0
        for t in members:
            if part and size + t.numel() > CACHE_ELEMENTS:
                yield part
                part, size = [], 0
            part.append(t)
            size += t.numel()
        yield part


# ---------------------------------------------------------------------------------------------------- memory


def views(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Views of a flat tensor with the shapes of others, in order: no copies."""
    return [view.view(t.shape) for view, t in zip(flat.split([t.numel() for t in like]), like)]


def joined(*lists: list[Tensor]) -> tuple[list[Tensor], ...]:
    """The same lists; or, if the tensors of each list lie side by side in memory, one flat tensor per list."""
    return tuple([_span(tensors)] for tensors in lists) if all(_adjacent(tensors) for tensors in lists) else lists


def flattened(tensors: list[Tensor], like: list[Tensor]) -> list[Tensor]:
    """The tensors as they are, or copied into one flat tensor if ``like`` is one."""
    return tensors if tensors[0].shape == like[0].shape else [torch.cat([t.flatten() for t in tensors])]


def shaped(tensors: list[Tensor], like: list[Tensor]) -> list[Tensor]:
    """The tensors unchanged; or, if they were flattened into one, views of it in the shapes of ``like``."""
    return tensors if tensors[0].shape == like[0].shape else views(tensors[0], like)


def lay_side_by_side(states: list[dict], name: str) -> None:
    """Move an entry of several states into one block of memory per device and dtype; each keeps its shape."""
    for members in by(states, lambda s: (s[name].device, s[name].dtype)).values():
        tensors = [s[name] for s in members]
        for state, view in zip(members, views(torch.cat([t.flatten() for t in tensors]), tensors)):
            state[name] = view


def _adjacent(tensors: list[Tensor]) -> bool:
    ends = [t.data_ptr() + t.numel() * t.element_size() for t in tensors]
    same = len({t.untyped_storage().data_ptr() for t in tensors}) == 1
    return same and all(t.is_contiguous() for t in tensors) and ends[:-1] == [t.data_ptr() for t in tensors[1:]]


def _span(tensors: list[Tensor]) -> Tensor:
    return tensors[0].as_strided((sum(t.numel() for t in tensors),), (1,))


# ---------------------------------------------------------------------------------------------------- arithmetic


def plus(tensors: list[Tensor], number: float) -> list[Tensor]:
    """tensors + number; the tensors themselves if that is 0."""
    return torch._foreach_add(tensors, number) if number else tensors


def add_scaled(tensors: list[Tensor], others: list[Tensor], factor: float | Tensor) -> None:
    """tensors ← tensors + factor · others; with a factor that is a tensor, ``others`` are overwritten."""
    if isinstance(factor, Tensor):
        torch._foreach_mul_(others, factor)
        torch._foreach_add_(tensors, others)
    else:
        torch._foreach_add_(tensors, others, alpha=factor)


def lerp(tensors: list[Tensor], others: list[Tensor], rate: float | Tensor) -> None:
    """tensors ← tensors + rate · (others − tensors)."""
    if isinstance(rate, Tensor):
        add_scaled(tensors, torch._foreach_sub(others, tensors), rate)
    else:
        torch._foreach_lerp_(tensors, others, rate)
