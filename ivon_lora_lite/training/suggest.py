"""Choose λ from the noise that a model can bear and β₂ from the length of a run, instead of borrowing them.

IVON's first σ is 1/√(λ(h₀ + δ)). Which σ is right depends on model, task, answer format and LoRA's shape, so a λ that
was tuned elsewhere need not fit. What noise costs can be measured. For a loss ℓ and ε ~ N(0, I),

    cost(σ) = E[ℓ(m + σε)] − ℓ(m)   ≈   ½ σ² Σᵢ Hᵢᵢ    for small σ, with H the Hessian of ℓ at m.

Under a flat prior the best variances satisfy λ Hᵢᵢ vᵢ = 1, so P weights cost ½ Σ Hᵢᵢ vᵢ ≈ P/(2λ) together: λ is a
statement about this cost. So fix the cost, find the σ that has it, and set λ = 1/(σ²(h₀ + δ)).

Which loss? Before training the cross-entropy has no minimum at m: its curvature may be negative, and noise may even
lower it. So :func:`suggest_hyperparameters` takes ℓ(θ) = KL[p_m ‖ p_θ], how far noise moves the predictions. It is the
cost that the cross-entropy would have if answers were drawn from the model's own beliefs: 0 at σ = 0, never negative,
with the Fisher matrix as its Hessian. It can be measured at LoRA's start, where half of the weights are still 0.

The right noise grows with the length of the run: the search on `everyday` found σ = 0.035 at 5 passes over the data
and 0.071 at 20. So the target does too; it is what the small preset's noise at that length costs where it was tuned.

A cost below the target does not mean that more noise would do good: on a task whose predictions noise moves little,
raising σ until the target was met made the runs worse. So σ stays at or below ``sigma_max``, the tuned preset's.

How far h may move matters too. With IVON's β₂ = 1 − 10⁻⁵ and a few hundred steps it stays at h₀, and v is the same
for all weights. So β₂ = 1 − 0.32/steps, with which h goes a quarter of the way to the curvature that the run sees.

`benchmarks/suggest.py` compared the rule, then with 0.1 in place of 0.32, with borrowing the preset of short runs as it
then was, whose h did not move (`data/runs/suggest`, notebook 11). On two other tasks the suggestion was better, by β₂
alone, since σ stayed at its bound there. For two other shapes of LoRA, where it asks for less noise, no difference was
found. Today's preset has such a β₂ itself: for a model and a shape like those that it was tuned on, borrow it; else
start here.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..language import Question, Task, answer_logits, collate, reset_lora, tokenizer_of
from ..posterior import lora_parameters
from .cost_of_noise import choose_sigma, undisturbed
from .finetuning import finetune
from .presets import preset_sigma, run_options

MOVE = 0.32  # β₂ = 1 − MOVE/steps: the best of three in the search (data/runs/search)
# σ → nats: what noise of the preset's σ costs SmolLM2-135M on `everyday`, means of three seeds; data/runs/suggest
COSTS = {0.035: 0.016, 0.071: 0.23}


@dataclass(frozen=True)
class Suggestion:
    """What :func:`suggest_hyperparameters` found.

    Attributes:
        ess: λ = 1/(σ²(h₀ + δ)).
        hess_init, weight_decay: h₀ and δ, as given.
        beta2: β₂ = 1 − 0.32/steps.
        sigma: the σ whose noise costs the target, or ``sigma_max`` if that costs less.
        cost: what it costs, in nats, and …
        error: … the standard error of that over draws.
        target: the cost that was asked for.
        curve: (σ, cost) of every σ that was tried, in order of σ.
        seconds: wall time.
    """

    ess: float
    hess_init: float
    weight_decay: float
    beta2: float
    sigma: float
    cost: float
    error: float
    target: float
    curve: tuple[tuple[float, float], ...]
    seconds: float

    def settings(self) -> dict[str, Any]:
        """Arguments for ``finetune(model, task, **suggestion.settings())`` or :class:`IVON`.

        There is no learning rate among them: a step is lr · g/(h + δ), in which λ does not occur.
        """
        return {
            "ess": self.ess,
            "hess_init": self.hess_init,
            "weight_decay": self.weight_decay,
            "beta2": self.beta2,
        }

    def __str__(self) -> str:
        return (
            f"σ {self.sigma:.3g}, λ {self.ess:.3g} at h₀ {self.hess_init:g}, β₂ {self.beta2:g}: the noise costs "
            f"{self.cost:.4f} ± {self.error:.4f} nats (target {self.target:g})"
        )


def suggest_hyperparameters(
    model: nn.Module,
    task: Task | Sequence[Question],
    *,
    steps: int | None = None,
    target: float | None = None,
    sigma_max: float | None = None,
    format: str = "text",
    batch_size: int = 4,
    hess_init: float = 1e-3,
    weight_decay: float = 0.0,
    train_size: int | None = None,
    questions: int = 16,
    draws: int = 6,
    pilot_steps: int = 0,
    seed: int = 21,
    progress: bool = False,
) -> Suggestion:
    """Find a λ whose noise this model on this task can bear, and the β₂ that fits the length of the run.

    The cost of noise is E[KL(p_m ‖ p_{m + σε})] per question, at the LoRA weights that ``finetune(seed=seed)`` starts
    from, without dropout. λ is the one at which it is ``target``, or a larger one if that would take more noise than
    ``sigma_max``. σ is searched with the same ε for every σ. The model (weights, training mode, gradients) and all
    random number generators are left as they were.

    Args:
        model: from :func:`load_model`, or any model that :func:`answer_logits` takes.
        task: a task, or training questions; no answers are looked at (unless there is a pilot).
        steps: how many steps you are going to train; by default those of the preset `small`.
        target: the cost in nats, above 0. The default is a convention, see :func:`usual_target`.
        sigma_max: σ is never larger; ``math.inf`` for no bound. The default is the small preset's σ at this length.
        format: ``"letter"``, ``"text"`` or ``"class"``.
        batch_size: questions per forward pass.
        hess_init: h₀; only the product λ(h₀ + δ) decides σ.
        weight_decay: δ.
        train_size: use only this many training questions, from the start.
        questions: number of questions, drawn at random, on which the cost is measured.
        draws: antithetic pairs ±ε; each σ takes 2·draws passes over these questions.
        pilot_steps: steps of AdamW before measuring; by default none.
        seed: of LoRA's start, the choice of questions, the noise, and the pilot.
        progress: show a bar that counts passes over the questions; how many it takes is not known before.

    Returns:
        A :class:`Suggestion`.

    Raises:
        ValueError: an argument is outside its range, nothing is trainable, the predictions are not finite, or every σ
            within the range searched costs more than the target.
    """
    started = time.perf_counter()
    steps = run_options("small")["steps"] if steps is None else steps
    at_least = {"steps": (steps, 1), "pilot_steps": (pilot_steps, 0), "questions": (questions, 1)}
    for name, (value, least) in (at_least | {"draws": (draws, 1), "batch_size": (batch_size, 1)}).items():
        if value < least:
            raise ValueError(f"{name} is {value}; expected at least {least}.")
    sigma_max = preset_sigma(steps) if sigma_max is None else sigma_max
    target = usual_target(steps) if target is None else target
    if not sigma_max > 0:
        raise ValueError(f"sigma_max is {sigma_max}; expected a number above 0.")
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
        with tqdm(desc="cost of noise", unit=" passes", leave=False, disable=not progress) as bar:

            def counted() -> Tensor:
                bar.update()
                return moved()

            bound = None if sigma_max == math.inf else sigma_max
            found = choose_sigma(counted, params, target, at_most=bound, draws=draws, seed=seed)
    sigma, cost, error, curve = found
    ess = 1 / (sigma**2 * (hess_init + weight_decay))
    beta2 = 1 - MOVE / steps
    took = time.perf_counter() - started
    return Suggestion(ess, hess_init, weight_decay, beta2, sigma, cost, error, target, tuple(curve), took)


def usual_target(steps: int) -> float:
    """Cost in nats of the small preset's noise at this length where it was tuned, on a line in log σ and log cost."""
    (s0, c0), (s1, c1) = COSTS.items()
    share = math.log(preset_sigma(steps) / s0) / math.log(s1 / s0)
    return float(f"{c0 ** (1 - share) * c1**share:.3g}")


def prediction_shift(
    model: nn.Module, questions: Sequence[Question], format: str = "text", batch_size: int = 4
) -> Callable[[], Tensor]:
    """A loss for :func:`noise_cost`: KL[p_m ‖ p_θ] in nats per question, m being the model's weights at this call.

    Args:
        model: in evaluation mode; else dropout moves the predictions too.
        questions: whose predictions are compared.
        format: ``"letter"``, ``"text"`` or ``"class"``.
        batch_size: questions per forward pass.
    """
    parts = [questions[i : i + batch_size] for i in range(0, len(questions), batch_size)]
    batches = [collate(part, tokenizer_of(model), format) for part in parts]
    with torch.no_grad():
        at_mean = [answer_logits(model, batch, format).log_softmax(-1) for batch in batches]

    def shift() -> Tensor:
        total = torch.zeros(())
        for batch, log_p in zip(batches, at_mean):
            gap = log_p - answer_logits(model, batch, format).log_softmax(
                -1
            )  # [B, C], NaN where there is no such choice
            total += (log_p.exp() * gap).masked_fill(log_p == -torch.inf, 0.0).sum().cpu()
        return total / len(questions)

    return shift


@contextmanager
def _left_alone(model: nn.Module) -> Iterator[None]:
    """Weights, gradients, training modes and every random number generator are afterwards as before."""
    params = [p for p in model.parameters() if p.requires_grad]
    modes = [(module, module.training) for module in model.modules()]
    ours, numpys = random.getstate(), np.random.get_state()
    grads = [p.grad for p in params]
    try:
        with undisturbed(params), torch.enable_grad():
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
