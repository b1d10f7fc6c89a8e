"""λ and the prior as the follow-up of IVON-LoRA has them (Cong et al. 2025, arXiv:2506.14280), instead of tuned ones.

    λ = γ √N,  γ = 5000        v₀ᵢ = mean(m² + v) of each matrix i,  δᵢ = 1/(λ v₀ᵢ)   (after Graves 2011)

The prior for each matrix is a reconstruction; that it follows the matrix after every step is a choice made here.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ..ivon import IVON

GAMMA = 5000.0


def sqrt_ess(examples: int, gamma: float = GAMMA) -> float:
    """λ = γ √N for N training examples."""
    if examples < 1 or not 0 < gamma < math.inf:
        raise ValueError(f"There are {examples} examples and γ is {gamma}; expected at least 1 and a number above 0.")
    return gamma * math.sqrt(examples)


class PerMatrixIVON(IVON):
    """IVON with a prior N(0, v₀ᵢ) of its own for every tensor, refitted after every step.

    Args:
        params: parameters; each becomes a group of its own, whose ``weight_decay`` is δᵢ.
        options: of :class:`IVON`; ``weight_decay`` is the δ of the first step.
    """

    def __init__(self, params: Iterable[Tensor], **options):
        super().__init__([{"params": [p]} for p in params], **options)
        self._fitted_at: list[int] = []
        self.register_step_post_hook(PerMatrixIVON._refit)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        if PerMatrixIVON._refit not in self._optimizer_step_post_hooks.values():  # a copy has no hooks
            self.register_step_post_hook(PerMatrixIVON._refit)

    def _refit(self, *_) -> None:
        steps = [self.state[p].get("step", 0) for group in self.param_groups for p in group["params"]]
        if steps != self._fitted_at:  # a step that was skipped changes nothing
            refit_prior(self)
        self._fitted_at = steps


@torch.no_grad()
def refit_prior(optimizer: IVON) -> None:
    """δ ← 1/(λ mean(m² + v)) for every parameter group of an optimizer that has taken a step."""
    for group in optimizer.param_groups:
        members = [p for p in group["params"] if optimizer.state.get(p)]
        if members:
            power = [(optimizer.mean(p).square() + optimizer.variance(p)).flatten() for p in members]
            group["weight_decay"] = 1 / (group["ess"] * float(torch.cat(power).mean()))
