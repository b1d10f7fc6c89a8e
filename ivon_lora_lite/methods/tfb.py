"""TFB, training-free Bayes: as much noise on a finished adapter as costs next to nothing (Shi et al. 2024).

    B = U diag(d) Vᵀ,   B' = U diag(d),  A' = Vᵀ A,  so that B'A' = BA;   q(A'_ij) = N(A'_ij, (σ_q/d_i)²)

The product keeps its value, and the noise of ΔW has the same size in all directions that B can reach. σ_q is the
largest for which the loss on some anchor questions is worse than at the mean by no more than a tolerance. The anchors
need no labels: by default the model's own answers stand in for them.

The public code keeps the last σ_q that was beyond the tolerance, and divides the relative change by the number of
anchors; here it is the largest within the tolerance, and the change is that of the mean, as the paper has it.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..checks import check_known
from ..evaluation import Predictions, predict
from ..language import Question
from ..posterior import GaussianPosterior, settable
from ..posterior.base import positive
from ..training import Run
from .base import Bench, Method, Result, named_pairs, numbers_per_weight, options_of

RANGE = (1e-5, 1.0)  # of σ_q
LABELS, CRITERIA = ("own", "true"), ("nll", "acc")
SMALLEST = 1e-6  # of d_i relative to the largest: rows of A' that B' ignores


def balanced(model: nn.Module, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A model's LoRA weights as {B', A'}, and 1/d for each row of every A', ``[r, 1]`` by its name.

    It is 0 where B' ignores the row: noise there would do nothing, and be huge.
    """
    weights, inverse = dict(weights), {}
    for a, (b, _) in named_pairs(model, settable(model)).items():
        left, d, right = torch.linalg.svd(weights[b].double(), full_matrices=False)
        more = weights[b].shape[1] - len(d)  # of a rank above the layer's width: columns of B' that are 0
        left, d, right = (
            functional.pad(t, size) for t, size in ((left, (0, more)), (d, (0, more)), (right, (0, 0, 0, more)))
        )
        weights[b] = (left * d).float()
        weights[a] = (right @ weights[a].double()).float()
        inverse[a] = torch.where(d > SMALLEST * d.max(), 1 / d, 0.0).float()[:, None]
    return weights, inverse


def noisy(
    weights: Mapping[str, Tensor], inverse: Mapping[str, Tensor], sigma_q: float, facts: Mapping[str, object]
) -> GaussianPosterior:
    """N(A', (σ_q/d)²) around :func:`balanced` weights, with B' a point."""
    variance = {name: positive((sigma_q * r).square().expand_as(weights[name])) for name, r in inverse.items()}
    points = sorted(weights.keys() - inverse.keys())
    return GaussianPosterior(weights, variance, {**facts, "method": "tfb", "points": points, "sigma_q": sigma_q})


def largest_within(change: Callable[[float], float], tolerance: float, low: float, high: float, halvings: int) -> float:
    """The largest x in [low, high] with change(x) ≤ tolerance, by bisection on log x; ``change`` should be increasing.

    Raises:
        ValueError: ``low`` is beyond the tolerance already.
    """
    if change(high) <= tolerance:
        return high
    start = low
    for _ in range(halvings):
        middle = math.sqrt(low * high)
        if change(middle) <= tolerance:
            low = middle
        else:
            high = middle
    if low == start and not change(low) <= tolerance:
        raise ValueError(f"Noise of {low:g} is beyond the tolerance of {tolerance:g} already: allow more.")
    return low


def tfb(
    run: Run,
    anchors: Sequence[Question],
    *,
    tolerance: float = 0.003,
    criterion: str = "nll",
    labels: str = "own",
    samples: int = 10,
    halvings: int = 8,
    seed: int = 1000,
    batch_size: int = 8,
    progress: bool = False,
) -> Run:
    """Put the most noise on a finished run that costs no more than a tolerance on anchor questions.

    Args:
        run: a finished run; of a run with a posterior the mean counts.
        anchors: questions on which the cost is measured.
        tolerance: by how much the anchors' NLL may rise, relative to that at the mean (the paper's 0.3 %), or by how
            much their accuracy may fall, absolute (its 1 % is 0.01).
        criterion: ``"nll"`` or ``"acc"``.
        labels: ``"own"``, what the mean answers, or ``"true"``, the anchors' answers.
        samples: draws whose average is judged, the same for every σ_q.
        halvings: of the bisection.
        seed: of these draws.
        batch_size: questions per forward pass.
        progress: show progress bars.

    Returns:
        The run with weights {B', A'} and a :class:`GaussianPosterior` in which B' is a point.

    Raises:
        ValueError: an unknown option, or noise of the smallest size is beyond the tolerance.
    """
    for name, value, known in (("criterion", criterion, CRITERIA), ("labels", labels, LABELS)):
        check_known(name, value, known)
    weights, inverse = balanced(run.model, run.weights)
    facts = {"task": run.config["task"], "anchors": len(anchors), "tolerance": tolerance}
    facts |= {"criterion": criterion, "labels": labels}
    options = {"batch_size": batch_size, "progress": progress}
    at_mean = predict(replace(run, posterior=None), anchors, **options)
    answers = at_mean.labels if labels == "true" else at_mean.ensemble().argmax(-1)
    before = _loss(at_mean, answers, criterion)

    def change(sigma_q: float) -> float:
        posterior = noisy(weights, inverse, sigma_q, facts)
        try:
            drawn = predict(run, anchors, posterior=posterior, samples=samples, seed=seed, **options)
        except FloatingPointError:  # in 16 bits much noise overflows
            return math.inf
        rise = _loss(drawn, answers, criterion) - before
        return rise / max(before, 1e-12) if criterion == "nll" else rise

    found = noisy(weights, inverse, largest_within(change, tolerance, *RANGE, halvings), facts)
    return run.derived("tfb", weights=weights, posterior=found, config={"continued": True})  # A is turned


def _loss(predictions: Predictions, answers: Tensor, criterion: str) -> float:
    """NLL of the averaged probabilities, or the share of wrong answers."""
    probs = predictions.ensemble().double()
    if criterion == "acc":
        return float((probs.argmax(-1) != answers).double().mean())
    return -float(probs.gather(1, answers[:, None]).clamp(min=1e-300).log().mean())


def _make(bench: Bench) -> Result:
    started = time.perf_counter()
    run = tfb(bench.run, bench.validation, progress=bench.progress, **bench.chosen)
    seconds = {"fit": time.perf_counter() - started}
    predictions = predict(run, bench.questions, samples=bench.settings.samples, progress=bench.progress)
    facts = {"sigma_q": run.posterior.metadata["sigma_q"]}
    return Result(predictions, run, seconds, numbers_per_weight(run.posterior, run), bench.settings.samples, facts)


OPTIONS = options_of(tfb)
TFB = Method(
    "tfb", "+ TFB", "TFB: noise on AdamW's adapter, as much as validation questions bear", _make, "adamw", OPTIONS
)
TFB_BLOB = Method("tfb@blob", "TFB on BLoB's mean", "TFB: the same noise on BLoB's mean", _make, "blob", OPTIONS)
TFB_IVON = Method("tfb@ivon", "TFB on IVON's mean", "TFB: the same noise on IVON's mean", _make, "ivon", OPTIONS)
