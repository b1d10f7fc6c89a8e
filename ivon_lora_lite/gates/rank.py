"""Gates on LoRA's directions: direction i is on only if 1 … i − 1 are, so an open prefix is a rank."""

import torch
from torch import Tensor, nn

from .hard_concrete import hard_concrete, is_open, probability_open


class RankGate(nn.Module):
    """The learned rank of one pair A, B: direction i is multiplied by Π_{j ≤ i} z_j.

    Rank 0 is possible: the layer then keeps its base weight alone.

    Args:
        r: directions, rows of A and columns of B.
        start: φ of all gates at the start.
        device: where the weights are.
    """

    def __init__(self, r: int, start: float, device: torch.device | None = None):
        super().__init__()
        self.phi = nn.Parameter(torch.full((r,), float(start), device=device))
        self.register_buffer("noise", torch.full((r,), 0.5, device=device))

    def probabilities(self) -> Tensor:
        """Probability that each direction is on, ``[r]``."""
        return probability_open(self.phi).cumprod(0)

    def expected_rank(self) -> Tensor:
        """Σ_i Π_{j ≤ i} q_j."""
        return self.probabilities().sum()

    def rank(self) -> int:
        """The decision: how many gates are open before the first closed one."""
        return int(is_open(self.phi).long().cumprod(0).sum())

    def forward(self, weight: Tensor, soft: bool) -> Tensor:
        """A's rows ``[r, d_in]``, each times the product of its gates."""
        gates = hard_concrete(self.phi, self.noise) if soft else is_open(self.phi).to(weight.dtype)
        return gates.cumprod(0).to(weight.dtype)[:, None] * weight
