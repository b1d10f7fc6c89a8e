"""The hard-concrete gate (Louizos et al. 2018): a random number in [0, 1] that is often exactly 0 or exactly 1.

With u ~ U(0, 1) and a learned φ,

    s = sigmoid((logit u + φ) / β),   z = min(1, max(0, s (ζ − γ) + γ)).

The stretch from (0, 1) to (γ, ζ) puts mass on the ends, and between them z is differentiable in φ. The constants are
those of Bayesian Bits (van Baalen et al. 2020).
"""

import math

import torch
from torch import Tensor

BETA, ZETA, GAMMA = 2 / 3, 1.1, -0.1
THRESHOLD = 0.34  # a gate that is 0 with at least this probability is closed at test time
SHIFT = BETA * math.log(-GAMMA / ZETA)


def hard_concrete(phi: Tensor, uniform: Tensor) -> Tensor:
    """A draw of the gate from uniform noise in [0, 1) of the same shape; differentiable in φ.

    >>> hard_concrete(torch.tensor([-9.0, 9.0]), torch.tensor([0.5, 0.5]))
    tensor([0., 1.])
    """
    s = torch.sigmoid((torch.logit(uniform) + phi) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def probability_open(phi: Tensor) -> Tensor:
    """q(z > 0) = sigmoid(φ − β log(−γ/ζ))."""
    return torch.sigmoid(phi - SHIFT)


def is_open(phi: Tensor) -> Tensor:
    """The decision at test time: open iff q(z = 0) < 0.34."""
    return torch.sigmoid(SHIFT - phi) < THRESHOLD
