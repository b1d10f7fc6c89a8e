"""The residual quantiser of Bayesian Bits (van Baalen et al. 2020): 2 → 4 → 8 → 16 → 32 bits, one gate per doubling.

Numbers in [−a, a] are rounded to a grid of step s₂ = 2a/3, the rest to s₄ = s₂/5, the rest of that to s₈ = s₄/17 …:

    x_q = x₂ + z₄ (x₄ + z₈ (x₈ + z₁₆ (x₁₆ + z₃₂ x₃₂))),   x_b = s_b round((x − x₂ − … − x_{b/2}) / s_b).

Each step divides the former by an odd number, so the grids are nested and the sum up to b bits is x rounded to s_b: its
error is at most s_b/2. Bayesian Bits has a gate z₂ too, which switches a tensor off; that is what rank gates do here.
"""

import torch
from torch import Tensor, nn

from .hard_concrete import hard_concrete, is_open, probability_open

BITS = (2, 4, 8, 16, 32)
ADDED = (2.0, 4.0, 8.0, 16.0)  # what each gate adds to the first two bits
EDGE = 1 - 1e-7  # x = a would otherwise round up, to a value outside the grid
SMALLEST = 1e-12  # of the half range, so that a matrix of zeros has steps above 0
DECAY = 0.99  # of the largest |weight| seen so far, per training step


def step_sizes(half_range: Tensor | float) -> list[Tensor | float]:
    """The steps s₂, s₄, s₈, s₁₆, s₃₂ of numbers in [−a, a].

    >>> [round(s, 4) for s in step_sizes(1.5)[:3]]
    [1.0, 0.2, 0.0118]
    """
    steps = [2 * half_range / 3]
    for bits in BITS[:-1]:
        steps.append(steps[-1] / (2**bits + 1))
    return steps


def residuals(x: Tensor, half_range: Tensor, bits: int = BITS[-1]) -> list[Tensor]:
    """The parts x₂, x₄ … up to ``bits``, each of x's shape; numbers outside [−a, a] are clipped first.

    Rounding passes gradients straight through (its error counts as a constant), so those of x arrive by x₂ and those of
    a by the clipping and by the steps.
    """
    half_range = half_range.clamp(min=SMALLEST)
    rest = torch.clamp(x, -half_range * EDGE, half_range * EDGE)
    parts = []
    for level, step in zip(BITS, step_sizes(half_range)):
        if level > bits:
            break
        ratio = rest / step
        parts.append(step * (ratio + (ratio.round() - ratio).detach()))
        rest = rest - parts[-1]
    return parts


def quantize(x: Tensor, half_range: Tensor, gates: Tensor | None = None, bits: int = BITS[-1]) -> Tensor:
    """x_q: the parts up to ``bits``, each times its gate.

    Args:
        x: numbers of any shape.
        half_range: a, a tensor without dimensions.
        gates: ``[4]``, z₄ z₈ z₁₆ z₃₂ in [0, 1]; default: all open.
        bits: the last level to compute, one of ``BITS``.

    Raises:
        ValueError: ``bits`` is not a level.

    >>> quantize(torch.tensor([-1.0, 0.3, 0.8]), torch.tensor(1.5), bits=2)
    tensor([-1.,  0.,  1.])
    """
    if bits not in BITS:
        raise ValueError(f"bits is {bits!r}; expected one of {', '.join(map(str, BITS))}.")
    wide = torch.promote_types(x.dtype, torch.float32)  # in 16 bits the edge of the grid would round up
    parts = residuals(x.to(wide), half_range.to(wide), bits)
    total = parts[-1]
    for level in range(len(parts) - 2, -1, -1):
        total = parts[level] + (total if gates is None else gates[level] * total)
    return total.to(x.dtype)


class BayesianBits(nn.Module):
    """The learned bit width and range of one matrix.

    The half range is a = e^ρ · peak: ``peak`` follows the largest |weight| of training (up at once, down slowly), so a
    matrix that starts at zero, as LoRA's B, is not clipped while it grows; ρ is learned.

    Args:
        weight: the matrix; its device and dtype are used, and its present size.
        start: φ of all gates at the start.
    """

    def __init__(self, weight: Tensor, start: float):
        super().__init__()
        self.phi = nn.Parameter(torch.full((len(ADDED),), float(start), device=weight.device))
        self.log_scale = nn.Parameter(torch.zeros((), device=weight.device))  # ρ
        self.register_buffer("peak", weight.detach().abs().max().float())
        self.register_buffer("noise", torch.full((len(ADDED),), 0.5, device=weight.device))
        self.register_buffer("added", torch.tensor(ADDED, device=weight.device))

    @property
    def half_range(self) -> Tensor:
        """a, differentiable in ρ."""
        return self.log_scale.exp() * self.peak.clone()  # another forward pass may change it before the backward pass

    def observe(self, weight: Tensor) -> None:
        """Let the range hold the weights; in every forward pass."""
        self.peak.copy_(torch.maximum(self.peak, weight.detach().abs().max()))

    def decay(self) -> None:
        """Let the range shrink a little; once per training step."""
        self.peak.mul_(DECAY)

    def probabilities(self) -> Tensor:
        """Probability that each level is reached, Π_{j ≤ b} q_j for b = 4, 8, 16, 32: ``[4]``."""
        return probability_open(self.phi).cumprod(0)

    def expected_bits(self) -> Tensor:
        """2 + Σ_b (bits that level b adds) · Π_{j ≤ b} q_j."""
        return BITS[0] + (self.added * self.probabilities()).sum()

    def bits(self) -> int:
        """The decision: the width before the first gate that is closed."""
        return BITS[int(is_open(self.phi).long().cumprod(0).sum())]

    def forward(self, weight: Tensor, soft: bool) -> Tensor:
        """The quantised weight, with gates drawn from the present noise (``soft``) or with the decision."""
        if soft:
            return quantize(weight, self.half_range, hard_concrete(self.phi, self.noise))
        return quantize(weight, self.half_range, bits=self.bits())
