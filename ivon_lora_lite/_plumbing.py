"""What the IVON equations do not mention: random streams, non-finite gradients, ranks, lists of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Thread

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

CACHE_ELEMENTS = 2**18  # on a CPU, so many coordinates pass through all operations before the next ones do


LANES = 2  # streams that a CPU draws side by side; part of what a seed means, so it does not follow the cores


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


def views(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Views of a flat tensor with the shapes of others, in order: no copies."""
    return [view.view(t.shape) for view, t in zip(flat.split([t.numel() for t in like]), like)]


def joined(*lists: list[Tensor]) -> tuple[list[Tensor], ...]:
    """The same lists; or, if the tensors of each list lie side by side in memory, one flat tensor per list.

    An operation on one large tensor uses all cores and costs one call.
    """
    return tuple([_span(tensors)] for tensors in lists) if all(_adjacent(tensors) for tensors in lists) else lists


def _adjacent(tensors: list[Tensor]) -> bool:
    ends = [t.data_ptr() + t.numel() * t.element_size() for t in tensors]
    same = len({t.untyped_storage().data_ptr() for t in tensors}) == 1
    return same and all(t.is_contiguous() for t in tensors) and ends[:-1] == [t.data_ptr() for t in tensors[1:]]


def _span(tensors: list[Tensor]) -> Tensor:
    return tensors[0].as_strided((sum(t.numel() for t in tensors),), (1,))


def lay_side_by_side(states: list[dict], name: str) -> None:
    """Move an entry of several states into one block of memory per device and dtype; each keeps its shape."""
    for members in by(states, lambda s: (s[name].device, s[name].dtype)).values():
        tensors = [s[name] for s in members]
        for state, view in zip(members, views(torch.cat([t.flatten() for t in tensors]), tensors)):
            state[name] = view


class NoiseStreams:
    """Seeded generators, per device, purpose and lane, that a checkpoint carries.

    All ranks draw the same noise unless ``per_rank``: the seed is rank 0's. Evaluation has a stream of its own, so that
    evaluating more or less often does not change training.
    """

    def __init__(self, seed: int | None, per_rank: bool):
        self.seed, self.per_rank = seed, per_rank
        self._generators: dict[str, torch.Generator] = {}
        self._saved: dict[str, Tensor] = {}  # from a checkpoint, until their device is first used

    def fill(self, flat: Tensor, purpose: str) -> None:
        """Fill a flat tensor with standard normals. On a CPU two lanes are drawn side by side: it takes longest."""
        if flat.device.type != "cpu":
            flat.normal_(generator=self._generator(flat.device, purpose, 0))
            return
        lanes = [(part, self._generator(flat.device, purpose, k)) for k, part in enumerate(flat.chunk(LANES))]
        threads = [Thread(target=part.normal_, kwargs={"generator": generator}) for part, generator in lanes[1:]]
        for thread in threads:
            thread.start()
        lanes[0][0].normal_(generator=lanes[0][1])
        for thread in threads:
            thread.join()

    def _generator(self, device: torch.device, purpose: str, lane: int) -> torch.Generator:
        key = f"{device}:{purpose}:{lane}"
        if key not in self._generators:
            if self.seed is None:
                self.seed = _shared(torch.initial_seed() % 2**48)
            rank = dist.get_rank() + 1 if self.per_rank and several_ranks() else 0
            # mixed, because torch's CPU generator heeds the lowest 32 bits of a seed only
            mixed = np.random.SeedSequence([self.seed, rank, purpose == "eval", lane]).generate_state(1, np.uint64)
            self._generators[key] = torch.Generator(device).manual_seed(int(mixed[0] >> 1))
            if key in self._saved:
                self._generators[key].set_state(self._saved.pop(key).cpu())
        return self._generators[key]

    def state_dict(self) -> dict:
        states = {key: generator.get_state() for key, generator in self._generators.items()}
        return {"seed": self.seed, "generators": {**self._saved, **states}}

    def load_state_dict(self, state: dict) -> None:
        self.seed, self._generators, self._saved = state["seed"], {}, dict(state["generators"])


class FiniteGuard:
    """Decides whether a step may happen, and counts those that may not.

    On a CPU the answer is known at once. On an accelerator asking would make the host wait for the device, so the
    answer stays there as ``keep`` (1.0 or 0.0), which the update multiplies by, and is counted when it has arrived.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.keep: Tensor | None = None
        self._total, self._in_a_row = 0, 0
        self._waiting: list[tuple[Tensor, object, list[dict]]] = []

    def check(self, grads: list[Tensor], states: list[dict]) -> bool:
        """False: skip this step. True: do it, multiplied by ``keep`` if that is not None."""
        self._read(wait=False)
        flags = [_not_finite(members) for members in by(grads, lambda g: (g.device, g.dtype)).values()]
        slow = [flag for flag in flags if flag.device.type != "cpu"]
        if not slow:
            self.keep = None
            bad = any(flag.item() for flag in flags)
            self._count(bad)
            return not bad
        bad = torch.stack([flag.to(slow[0].device, non_blocking=True) for flag in flags]).amax()
        self.keep = 1 - bad
        host, event = bad.to("cpu", non_blocking=True), None
        if bad.device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
        self._waiting.append((host, event, states))
        return True

    @property
    def total(self) -> int:
        self._read(wait=True)
        return self._total

    def _read(self, wait: bool) -> None:
        while self._waiting:
            host, event, states = self._waiting[0]
            if event is not None:
                if not (wait or event.query()):
                    return
                event.synchronize()
            self._waiting.pop(0)
            if host.item():
                for state in states:  # the step that did not happen was counted in advance
                    state["step"] -= 1
            self._count(bool(host.item()))

    def _count(self, bad: bool) -> None:
        self._total += bad
        self._in_a_row = self._in_a_row + 1 if bad else 0
        if self._in_a_row >= self.limit:
            raise FloatingPointError(
                f"{self._in_a_row} steps in a row had gradients that are not finite. Lower the learning rate, raise "
                "ess or hess_init (less noise), or look for the loss that overflows."
            )

    def state_dict(self) -> dict:
        return {"skipped": self.total, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict) -> None:
        self._waiting = []
        self._total, self._in_a_row = state["skipped"], state["in_a_row"]


def _not_finite(grads: list[Tensor]) -> Tensor:
    """1.0 if any gradient holds an infinity or NaN, else 0.0; one pass, no wait."""
    flag = torch.zeros((), dtype=torch.float32, device=grads[0].device)
    one = torch.ones_like(flag)
    # GradScaler's kernel: it multiplies by `one`, which leaves the gradients as they are
    torch._amp_foreach_non_finite_check_and_unscale_(grads, flag, one)
    return flag


def average_over_ranks(moments: list[list[Tensor]], check: bool) -> None:
    """All-reduce pairs [ĝ, ĝ·perturbation] that every rank made with noise of its own, in place.

    Args:
        check: also find out whether the gradients were averaged before (DDP): then the Hessian estimates would shrink
            to 1/ranks, because a mean gradient is paired with one rank's noise.
    """
    if not several_ranks():
        return
    for members in by([t for pair in moments for t in pair], lambda t: (t.device, t.dtype)).values():
        flat = torch.cat([t.flatten() for t in members])
        own = views(flat.clone(), members) if check else []
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        mean = views(flat, members)
        if check:
            apart = torch.stack([(a - b).abs().max() for a, b in zip(own[::2], mean[::2])]).max()
            size = torch.stack([b.abs().max() for b in mean[::2]]).max()
            dist.all_reduce(apart, op=dist.ReduceOp.MAX)
            if apart <= 1e-6 * size:
                raise RuntimeError(
                    "sync=True, but the gradients are the same on all ranks, so they were averaged before (DDP): use "
                    "sync=False, which shares one draw between ranks, or run backward under model.no_sync()."
                )
        torch._foreach_copy_(members, mean)


def several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _shared(value: int) -> int:
    """Rank 0's value on every rank."""
    if not several_ranks():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
