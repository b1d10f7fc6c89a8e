"""The equations of IVON (Shen et al. 2024, arXiv:2402.17641), one function each, on lists of tensors.

Per coordinate, with λ = ``ess``, δ = ``weight_decay``, ξ = ``clip_radius``, α = ``lr`` and t the step's number:

    σ = 1 / √(λ (h + δ)),   θ = m + σ ε,  ε ~ N(0, 1),   ĝ = ∇ℓ(θ)                                  (draw)
    ĥ = ĝ ε / σ   (``price``)   or   ĥ = λ ĝ²   (``gradsq``)                                         (Hessian estimate)
    g ← β₁ g + (1 − β₁) ĝ                                                                            (momentum)
    h ← β₂ h + (1 − β₂) ĥ + ½ (1 − β₂)² (h − ĥ)² / (h + δ)                                           (Hessian)
    m ← m − α clip((g / (1 − β₁ᵗ) + δ m) / (h + δ), ±ξ)                                              (mean)

The optimizer keeps the draw as its *perturbation* ε / √(h + δ), so that θ = m + perturbation / √λ. The updates change
their first argument in place. Rates are numbers, or 0-dimensional tensors when their value is known on the device only.

The KL of the objective E_q[ℓ] + KL[q ‖ p] / λ is never evaluated in training: its gradient is what δ adds to the
Hessian and to the mean. ``GaussianPosterior.kl`` computes it from a finished posterior.
"""

import math

import torch
from torch import Tensor

from .lists import add_scaled, flattened, lerp, plus, shaped


def scale_noise(noise: list[Tensor], h: list[Tensor], delta: float) -> None:
    """ε becomes the perturbation ε / √(h + δ)."""
    torch._foreach_div_(noise, torch._foreach_sqrt(plus(h, delta)))


def hessian_product(grad: list[Tensor], perturbation: list[Tensor], hess_approx: str) -> list[Tensor]:
    """The part of ĥ that depends on the draw: ĝ · perturbation (ĥ = √λ (h + δ) times it), or ĝ² (ĥ = λ times it).

    The perturbation is not needed afterwards: with ``price`` its memory serves for the product.
    """
    if hess_approx == "price":
        torch._foreach_mul_(perturbation, grad)
        return perturbation
    return torch._foreach_mul(grad, grad)


def new_momentum(momentum: list[Tensor], grad: list[Tensor], rate: float | Tensor) -> None:
    """g ← β₁ g + (1 − β₁) ĝ, with the rate 1 − β₁."""
    lerp(momentum, grad, rate)


def new_hessian(
    h: list[Tensor], product: list[Tensor], rate: float | Tensor, *, ess: float, delta: float, hess_approx: str
) -> None:
    """h ← β₂ h + (1 − β₂) ĥ + ½ (1 − β₂)² (h − ĥ)² / (h + δ), with the rate 1 − β₂.

    It is computed as  h ← h − (h + δ) (r − ½ r²)  with  r = (1 − β₂) (h − ĥ) / (h + δ).  Because r − ½ r² ≤ ½, h + δ
    keeps at least half of its former value, whatever ĥ is.

    Args:
        product: from :func:`hessian_product`; overwritten.
    """
    precision, r = plus(h, delta), product
    if hess_approx == "price":  # ĥ / (h + δ) = √λ ĝ · perturbation
        torch._foreach_mul_(r, -rate * math.sqrt(ess))
    else:
        torch._foreach_div_(r, precision)
        torch._foreach_mul_(r, -rate * ess)
    if delta == 0:  # h / (h + δ) = 1
        torch._foreach_add_(r, rate)
    else:
        add_scaled(r, torch._foreach_div(h, precision), rate)
    torch._foreach_addcmul_(r, r, r, value=-0.5)
    torch._foreach_addcmul_(h, precision, r, value=-1)


def new_mean(
    m: list[Tensor],
    momentum: list[Tensor],
    h: list[Tensor],
    rate: float | Tensor,
    *,
    delta: float,
    clip_radius: float,
    debias: float,
) -> None:
    """m ← m − α clip((g / d + δ m) / (h + δ), ±ξ), with the rate α and d = ``debias`` = 1 − β₁ᵗ.

    It is computed as  m ← m − (α/d) clip((g + d δ m) / (h + δ), ±d ξ),  which needs one division less.
    """
    pulled = momentum if delta == 0 else torch._foreach_add(momentum, flattened(m, h), alpha=delta * debias)
    update = torch._foreach_div(pulled, plus(h, delta))
    if math.isfinite(clip_radius):
        for tensor in update:  # usually one flat tensor
            tensor.clamp_(-debias * clip_radius, debias * clip_radius)
    add_scaled(m, shaped(update, m), -rate / debias)
