"""Several draws per step: averages of gradients, and of what their Hessian estimates are made of."""

import torch
from torch import Tensor


class GradientAverages:
    """Sums of ĝ and of ĝ · perturbation (or ĝ²) over the draws of a step; every gradient meets its own noise."""

    def __init__(self) -> None:
        self._sums: dict[Tensor, list[Tensor]] = {}
        self._left: dict[Tensor, Tensor] = {}  # p.grad as it was left there
        self._count = 0

    def add(self, p: Tensor, grad: Tensor, estimate: Tensor) -> None:
        """Add one draw's gradient and Hessian estimate of a parameter."""
        if p in self._sums:
            torch._foreach_add_(self._sums[p], [grad, estimate])
        else:
            self._sums[p] = [grad.clone(), estimate]

    def finish(self, count: int) -> None:
        """After the last of ``count`` draws: leave the average gradient in ``p.grad``."""
        self._count = count
        for p, (grad, _) in self._sums.items():
            p.grad = (grad / count).to(p.dtype)
            self._left[p] = p.grad

    def of(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Averages of ĝ and of the Hessian estimate.

        Raises:
            RuntimeError: ``p.grad`` is not what was left there.
        """
        grad, product = self._sums[p]
        left = (grad / self._count).to(p.dtype)
        if p.grad is not self._left.get(p) or not torch.allclose(p.grad, left, rtol=0, atol=0, equal_nan=True):
            raise RuntimeError(
                "With mc_samples > 1 the gradients were changed after their context (clipping, GradScaler, DDP?), so "
                "they no longer fit their Hessian estimates: change them inside the context, or use mc_samples=1."
            )
        return grad / self._count, product / self._count
