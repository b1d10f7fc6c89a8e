"""Choose λ from the noise that a model can bear, instead of borrowing it from another model.

IVON's first σ is 1/√(λ(h₀ + δ)). Which σ is right depends on model, task, answer format and LoRA's shape, so a λ that
was tuned elsewhere need not fit. What noise costs can be measured. For a loss ℓ and ε ~ N(0, I),

    cost(σ) = E[ℓ(m + σε)] − ℓ(m)   ≈   ½ σ² Σᵢ Hᵢᵢ    for small σ, with H the Hessian of ℓ at m.

Under a flat prior the best variances satisfy λ Hᵢᵢ vᵢ = 1, so P weights cost ½ Σ Hᵢᵢ vᵢ ≈ P/(2λ) together: λ is a
statement about this cost. So fix the cost, find the σ that has it, and set λ = 1/(σ²(h₀ + δ)).

Which loss? Before training the cross-entropy has no minimum at m: its curvature may be negative, and noise may even
lower it. So :func:`suggest_hyperparameters` takes ℓ(θ) = KL[p_m ‖ p_θ], how far noise moves the predictions. It is the
cost that the cross-entropy would have if answers were drawn from the model's own beliefs: 0 at σ = 0, never negative,
with the Fisher matrix as its Hessian. It can be measured at LoRA's start, where half of the weights are still 0.

That such a cost carries over better than λ was a hypothesis, and the recorded experiment (`benchmarks/suggest.py`,
`data/runs/suggest`) does not support it: for LoRA of another rank the suggested λ does as well as a borrowed one, on
another task worse. So borrow λ where a similar model has one. Where none has, this is a start, to be checked on
validation questions. What did help with a borrowed λ is an h that may move: β₂ = 0.999 for runs of a hundred steps.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .tasks import Question, Task

__all__ = ["TARGET", "Suggestion", "choose_sigma", "noise_cost", "suggest_hyperparameters"]

# nats: what noise of the preset's σ = 0.035 costs SmolLM2-135M on `everyday`, mean of three seeds; data/runs/suggest
TARGET = 0.0157
START = 0.03  # where the search for σ begins
RANGE = (1e-5, 10.0)  # … and where it ends
CLOSE = 0.05  # a cost within 5 % of the target is on target: its Monte-Carlo error is larger


@dataclass(frozen=True)
class Suggestion:
    """What :func:`suggest_hyperparameters` found.

    Attributes:
        ess: λ = 1/(σ²(h₀ + δ)).
        hess_init, weight_decay: h₀ and δ, as given.
        sigma: the σ whose noise costs the target.
        cost: what it costs, in nats, and …
        error: … the standard error of that over draws.
        target: the cost that was asked for.
        curve: (σ, cost) of every σ that was tried, in order of σ.
        seconds: wall time.
    """

    ess: float
    hess_init: float
    weight_decay: float
    sigma: float
    cost: float
    error: float
    target: float
    curve: tuple[tuple[float, float], ...]
    seconds: float

    def settings(self) -> dict[str, float]:
        """Arguments for ``finetune(model, task, **suggestion.settings())`` or :class:`IVON`.

        There is no learning rate among them: while the clip radius ξ bounds nearly all updates, a step is about lr · ξ
        whatever λ is.
        """
        return {"ess": self.ess, "hess_init": self.hess_init, "weight_decay": self.weight_decay}

    def __str__(self) -> str:
        return (
            f"σ {self.sigma:.3g}, λ {self.ess:.3g} at h₀ {self.hess_init:g}: the noise costs {self.cost:.4f} "
            f"± {self.error:.4f} nats (target {self.target:g})"
        )


def suggest_hyperparameters(
    model: nn.Module,
    task: Task | Sequence[Question],
    *,
    target: float = TARGET,
    format: str = "text",
    batch_size: int = 4,
    hess_init: float = 1e-3,
    weight_decay: float = 0.0,
    train_size: int | None = None,
    questions: int = 16,
    draws: int = 6,
    pilot_steps: int = 0,
    seed: int = 21,
) -> Suggestion:
    """Find the λ whose noise moves the predictions of this model on this task by ``target`` nats.

    The cost of noise is E[KL(p_m ‖ p_{m + σε})] per question, at the LoRA weights that ``finetune(seed=seed)`` starts
    from, without dropout. σ is searched with the same ε for every σ. The model (weights, training mode, gradients) and
    all random number generators are left as they were.

    Args:
        model: from :func:`load_model`, or any model that :func:`answer_logits` takes.
        task: a task, or training questions; no answers are looked at (unless there is a pilot).
        target: the cost in nats, above 0. The default is a convention, see :data:`TARGET`.
        format: ``"letter"`` or ``"text"``.
        batch_size: questions per forward pass.
        hess_init: h₀; only the product λ(h₀ + δ) decides σ.
        weight_decay: δ.
        train_size: use the first so many training questions.
        questions: the cost is measured on so many of them, drawn at random.
        draws: antithetic pairs ±ε; each σ takes 2·draws passes over these questions.
        pilot_steps: so many steps of AdamW before measuring; by default none.
        seed: of LoRA's start, the choice of questions, the noise, and the pilot.

    Returns:
        A :class:`Suggestion`.

    Raises:
        ValueError: an argument is outside its range, nothing is trainable, the predictions are not finite, or no σ
            within the range searched costs the target.
    """
    from .models import lora_parameters, reset_lora
    from .train import finetune

    started = time.perf_counter()
    for name, value, least in (("pilot_steps", pilot_steps, 0), ("questions", questions, 1), ("draws", draws, 1)):
        if value < least:
            raise ValueError(f"{name} is {value}; expected at least {least}.")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
    if not 0 < hess_init < math.inf:
        raise ValueError(f"hess_init is {hess_init}; expected a number above 0.")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay is {weight_decay}; expected a number of at least 0.")
    pool = list(task.train if isinstance(task, Task) else task)[:train_size]
    if not pool:
        raise ValueError("There are no training questions.")
    params = lora_parameters(model)
    chosen = random.Random(seed).sample(pool, min(questions, len(pool)))
    with _left_alone(model):
        if pilot_steps:
            finetune(model, pool, optimizer="adamw", steps=pilot_steps, seed=seed, batch_size=batch_size,
                     format=format, progress=False)  # fmt: skip
        else:
            reset_lora(model, seed)
        model.eval()
        moved = prediction_shift(model, chosen, format, batch_size)
        sigma, cost, error, curve = choose_sigma(moved, params, target, draws=draws, seed=seed)
    ess = 1 / (sigma**2 * (hess_init + weight_decay))
    took = time.perf_counter() - started
    return Suggestion(ess, hess_init, weight_decay, sigma, cost, error, target, tuple(curve), took)


def prediction_shift(
    model: nn.Module, questions: Sequence[Question], format: str = "text", batch_size: int = 4
) -> Callable[[], Tensor]:
    """A loss for :func:`noise_cost`: KL[p_m ‖ p_θ] in nats per question, m being the model's weights at this call.

    Args:
        model: in evaluation mode; else dropout moves the predictions too.
        questions: whose predictions are compared.
        format: ``"letter"`` or ``"text"``.
        batch_size: questions per forward pass.
    """
    from .scoring import answer_logits, collate

    parts = [questions[i : i + batch_size] for i in range(0, len(questions), batch_size)]
    batches = [collate(part, model.tokenizer, format) for part in parts]
    with torch.no_grad():
        at_mean = [answer_logits(model, batch).log_softmax(-1) for batch in batches]

    def shift() -> Tensor:
        total = torch.zeros(())
        for batch, log_p in zip(batches, at_mean):
            gap = log_p - answer_logits(model, batch).log_softmax(-1)  # [B, C], NaN where there is no such choice
            total += (log_p.exp() * gap).masked_fill(log_p == -torch.inf, 0.0).sum().cpu()
        return total / len(questions)

    return shift


def choose_sigma(
    loss: Callable[[], Tensor | float],
    params: Iterable[Tensor],
    target: float,
    *,
    start: float = START,
    within: tuple[float, float] = RANGE,
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

    Returns:
        σ, its cost, the standard error of that, and the list of all (σ, cost) that were tried, in order of σ.

    Raises:
        ValueError: the target is not reached within the range, or the loss is not finite or changes between calls.
    """
    params = list(params)
    if not 0 < target < math.inf:
        raise ValueError(f"target is {target}; expected a number above 0.")
    low, high = within
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
        following = sigma * 2 if up else sigma / 2
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
    return sigma, *tried[sigma], [(s, tried[s][0]) for s in sorted(tried)]


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
    if draws < 1:
        raise ValueError(f"draws is {draws}; expected at least 1.")

    def value(of: float) -> float:
        out = float(loss())
        if not math.isfinite(out):
            where = f"with noise of σ = {of:g}" if of else "at the weights as they are, without noise"
            raise ValueError(f"The loss is {out} {where}.")
        return out

    generator, costs = torch.Generator().manual_seed(seed), []
    with _restored(params) as means:
        at_mean = value(0.0)
        for _ in range(draws):
            noise = [torch.randn(m.shape, generator=generator).to(m.device) for m in means]
            pair = 0.0
            for side in (sigma, -sigma):
                for p, m, e in zip(params, means, noise):
                    p.copy_(m + side * e)
                pair += value(sigma) / 2
            costs.append(pair - at_mean)
    mean = sum(costs) / draws
    spread = sum((c - mean) ** 2 for c in costs)
    return mean, math.sqrt(spread / (draws - 1) / draws) if draws > 1 else math.nan


def _between(below: float, above: float, cost_below: float, cost_above: float, target: float) -> float:
    """A σ between two, where a power law through both costs hits the target; the middle if one is not positive."""
    share = 0.5
    if cost_below > 0:
        share = math.log(target / cost_below) / math.log(cost_above / cost_below)
    share = min(max(share, 0.2), 0.8)  # so that the interval shrinks whatever the costs do
    return below * (above / below) ** share


@contextmanager
def _restored(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """Copies of the weights; afterwards weights and torch's random numbers are as before. No gradients inside."""
    devices = sorted({p.device.index or 0 for p in params if p.device.type == "cuda"})
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):
        means = [p.detach().clone() for p in params]
        try:
            yield means
        finally:
            for p, m in zip(params, means):
                p.copy_(m)


@contextmanager
def _left_alone(model: nn.Module) -> Iterator[None]:
    """Weights, gradients, training modes and every random number generator are afterwards as before."""
    params = [p for p in model.parameters() if p.requires_grad]
    modes = [(module, module.training) for module in model.modules()]
    ours, numpys = random.getstate(), np.random.get_state()
    grads = [p.grad for p in params]
    try:
        with _restored(params), torch.enable_grad():
            for p in params:
                p.grad = None
            yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)
        for module, mode in modes:
            module.training = mode
        for p, grad in zip(params, grads):
            p.grad = grad
