"""What noise on weights costs, and which σ costs a given amount: for any loss and any weights.

    cost(σ) = E[ℓ(m + σε)] − ℓ(m),   ε ~ N(0, I)

`suggest.py` applies it to the models and tasks of this package; its head says why one would ask.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..checks import check_counts
from ..posterior import restored

START = 0.03  # where the search for σ begins
RANGE = (1e-5, 10.0)  # … and where it ends
CLOSE = 0.05  # a cost within 5 % of the target is on target: its Monte-Carlo error is larger


def choose_sigma(
    loss: Callable[[], Tensor | float],
    params: Iterable[Tensor],
    target: float,
    *,
    start: float = START,
    within: tuple[float, float] = RANGE,
    at_most: float | None = None,
    draws: int = 4,
    seed: int = 0,
) -> tuple[float, float, float, list[tuple[float, float]]]:
    """The σ at which noise on ``params`` costs ``target``; for your own training loop.

    From ``start`` σ is doubled or halved until the target lies between two costs, then the interval is narrowed by
    interpolation of log cost over log σ (a bisection that knows that costs grow like a power of σ).

    Args:
        loss, params, draws, seed: as in :func:`noise_cost`. The loss must be the same at every call: fixed batches, no
            dropout.
        target: above 0, in the loss's unit.
        start: the first σ.
        within: σ is searched in this range.
        at_most: a σ that is never exceeded: where even this one costs less than the target, it is the answer.

    Returns:
        σ, its cost, the standard error of that, and the list of all (σ, cost) that were tried, in order of σ.

    Raises:
        ValueError: the target is not reached within the range, or the loss is not finite or changes between calls.
    """
    params = list(params)
    if not 0 < target < math.inf:
        raise ValueError(f"target is {target}; expected a number above 0.")
    low, high = within
    if at_most is not None:
        if not low <= at_most <= high:
            raise ValueError(f"at_most is {at_most}; expected a σ within {within}.")
        start = min(start, at_most)
    if not 0 < low <= start <= high:
        raise ValueError(f"start is {start} and within is {within}; expected 0 < low ≤ start ≤ high.")
    with torch.no_grad():
        first, second = float(loss()), float(loss())
    if abs(first - second) > CLOSE * target:
        raise ValueError(
            f"The loss is {first} and then {second} at the same weights: switch dropout off (model.eval()) and use the "
            "same batches at each call."
        )
    tried: dict[float, tuple[float, float]] = {}

    def excess(sigma: float) -> float:
        tried[sigma] = noise_cost(loss, params, sigma, draws, seed)
        return tried[sigma][0] - target

    sigma = start
    up = excess(sigma) < 0
    while (tried[sigma][0] < target) == up:
        if up and sigma == at_most:
            return sigma, *tried[sigma], _curve(tried)
        following = sigma * 2 if up else sigma / 2
        if up and at_most is not None:
            following = min(following, at_most)
        if not low <= following <= high:
            costs = [cost for cost, _ in tried.values()]
            raise ValueError(
                f"No σ from {min(tried):.3g} to {max(tried):.3g} costs the target of {target:g}: the costs there are "
                f"{min(costs):.3g} to {max(costs):.3g}. Ask for a target in that range, or search more of σ."
            )
        previous, sigma = sigma, following
        excess(sigma)
    below, above = (previous, sigma) if up else (sigma, previous)
    while abs(tried[sigma][0] / target - 1) > CLOSE and above / below > 1.001:
        sigma = _between(below, above, tried[below][0], tried[above][0], target)
        below, above = (sigma, above) if excess(sigma) < 0 else (below, sigma)
    return sigma, *tried[sigma], _curve(tried)


def noise_cost(
    loss: Callable[[], Tensor | float], params: Iterable[Tensor], sigma: float, draws: int = 4, seed: int = 0
) -> tuple[float, float]:
    """What noise σε on the weights costs: E[ℓ(m + σε)] − ℓ(m), by antithetic pairs.

    Each pair ½(ℓ(m + σε) + ℓ(m − σε)) − ℓ(m) is free of the gradient's contribution, which averages to zero and would
    drown the rest. The same seed gives the same ε for every σ (on every device), so the cost is a smooth function of σ.

    Args:
        loss: computes the loss with the weights as they are; called without gradients.
        params: the weights m that get noise; they hold m again afterwards, whatever happens.
        sigma: σ ≥ 0.
        draws: number of pairs ±ε, at least 1.
        seed: of ε.

    Returns:
        The cost in the loss's unit (nats), and its standard error over pairs (NaN for one pair).

    Raises:
        ValueError: there are no weights, σ or draws is outside its range, or a loss is not finite.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> cost, _ = noise_cost(lambda: (w**2).sum(), [w], sigma=0.1, draws=5000)
    >>> round(cost, 2)  # ½ σ² Σ Hᵢᵢ with H = 2I
    0.02
    """
    params = list(params)
    if not params:
        raise ValueError("There are no trainable parameters to put noise on.")
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma is {sigma}; expected a finite number of at least 0.")
    check_counts(draws=draws)

    def value(of: float) -> float:
        out = float(loss())
        if not math.isfinite(out):
            where = f"with noise of σ = {of:g}" if of else "at the weights as they are, without noise"
            raise ValueError(f"The loss is {out} {where}.")
        return out

    generator, costs = torch.Generator().manual_seed(seed), []
    with undisturbed(params) as means:
        at_mean = value(0.0)
        for _ in range(draws):
            noise = [torch.randn(m.shape, generator=generator).to(m.device) for m in means]
            pair = 0.0
            for side in (sigma, -sigma):
                for p, m, e in zip(params, means, noise):
                    p.copy_(m + side * e)
                torch.clear_autocast_cache()  # of the caller's autocast, which would go on with the weights before
                pair += value(sigma) / 2
            costs.append(pair - at_mean)
    mean = sum(costs) / draws
    spread = sum((c - mean) ** 2 for c in costs)
    return mean, math.sqrt(spread / (draws - 1) / draws) if draws > 1 else math.nan


def _curve(tried: dict[float, tuple[float, float]]) -> list[tuple[float, float]]:
    return [(sigma, tried[sigma][0]) for sigma in sorted(tried)]


def _between(below: float, above: float, cost_below: float, cost_above: float, target: float) -> float:
    """A σ between two, where a power law through both costs hits the target; the middle if one is not positive."""
    share = 0.5
    if cost_below > 0:
        share = math.log(target / cost_below) / math.log(cost_above / cost_below)
    share = min(max(share, 0.2), 0.8)  # so that the interval shrinks whatever the costs do
    return below * (above / below) ** share


@contextmanager
def undisturbed(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """Copies of the weights; afterwards weights and torch's random numbers are as before. No gradients inside."""
    devices = sorted({p.device.index or 0 for p in params if p.device.type == "cuda"})
    with restored(params) as means, torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):
        yield means
