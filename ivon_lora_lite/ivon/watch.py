"""Gradients that did not come from the draw: found out, because the update would be wrong without a sign."""

import weakref
from collections.abc import Callable, Iterable

from torch import Tensor


class GradientWatch:
    """Notices gradients that arrive outside of the draw's context, or were there before a closure ran.

    Args:
        astray: whether a gradient that arrives now belongs to no draw, although one is pending.
    """

    def __init__(self, astray: Callable[[], bool]):
        self.astray, self.outside = astray, False
        self._used: dict[Tensor, tuple[Tensor, int]] = {}  # gradients of the last step, with their versions

    def add(self, params: Iterable[Tensor]) -> None:
        """Watch parameters for as long as this object lives."""
        this = weakref.ref(self)

        def arrives(_: Tensor) -> None:
            watch = this()
            if watch is not None:
                watch.outside |= watch.astray()

        for p in params:
            if p.requires_grad and p.is_leaf:
                weakref.finalize(self, p.register_post_accumulate_grad_hook(arrives).remove)

    def used(self, params: Iterable[Tensor]) -> None:
        """Remember the gradients of a step: if nobody clears them, they are not new."""
        self._used = {p: (p.grad, p.grad._version) for p in params}

    def check_context(self) -> None:
        """Refuse a step if a backward pass ran outside of its context."""
        if self.outside:
            self.outside = False
            raise RuntimeError(
                "A backward pass ran outside sampled_params(train=True): call loss.backward() within the context, "
                "because layers that are computed again (gradient checkpointing) would see the mean there."
            )

    def check_closure(self, params: Iterable[Tensor]) -> None:
        """Refuse a closure if gradients were accumulated before it, at the mean."""
        for p in params:
            grad, version = self._used.get(p, (None, None))
            if p.grad is not None and (p.grad is not grad or p.grad._version != version):
                raise RuntimeError(
                    "Gradients were accumulated before step(closure), at the mean instead of at a draw: run every "
                    "forward and backward pass inside `with optimizer.sampled_params(train=True):`, and call step() "
                    "without a closure."
                )
