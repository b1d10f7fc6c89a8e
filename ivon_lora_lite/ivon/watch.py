"""Gradients that did not come from the draw: found out, because the update would be wrong without a sign."""

import weakref
from collections.abc import Callable, Iterable

from torch import Tensor


class GradientWatch:
    """Notices gradients that arrive outside of the draw's context, or that were there before it.

    Args:
        place: where a gradient that arrives now was taken: at the pending draw (None), or at the mean, "after" the
            context of a draw that is pending or "before" there is one.
    """

    def __init__(self, place: Callable[[], str | None]):
        self.place, self.seen = place, set()

    def add(self, params: Iterable[Tensor]) -> None:
        """Watch parameters for as long as this object lives."""
        this = weakref.ref(self)

        def arrives(p: Tensor) -> None:
            if p.grad is not None and p.grad.is_sparse:
                raise ValueError("IVON needs dense gradients: give nn.Embedding sparse=False.")
            watch = this()
            if watch is not None:
                watch.seen.add(watch.place())

        for p in params:
            if p.requires_grad and p.is_leaf:
                weakref.finalize(self, p.register_post_accumulate_grad_hook(arrives).remove)

    def check_before(self, params: Iterable[Tensor]) -> None:
        """Refuse a step's first draw if gradients of a backward pass at the mean are there, to be added to its own."""
        if "before" in self.seen and any(p.grad is not None and p.grad.any() for p in params):
            raise RuntimeError(
                "Gradients were accumulated before the draw, at the mean: run every forward and backward pass of a "
                "step inside `with optimizer.sampled_params(train=True):` (or step's closure), or call zero_grad()."
            )
        self.seen.discard("before")

    def check_after(self) -> None:
        """Refuse a step if a backward pass ran after the context of its draw."""
        if "after" in self.seen:
            self.seen.discard("after")
            raise RuntimeError(
                "A backward pass ran outside sampled_params(train=True): call loss.backward() within the context, "
                "because layers that are computed again (gradient checkpointing) would see the mean there."
            )
