"""Temperature scaling: one number, fitted on held-out questions, makes predictions more or less sure."""

import math
import time

from torch import Tensor

from ..evaluation import Predictions, linearized, predict
from .base import Bench, Method, Result, numbers_per_weight

RANGE = (0.02, 50.0)  # of T: beyond it predictions are all but one-hot, or all but uniform
HALVINGS = 60


def temperature(validation: Predictions, test: Predictions) -> tuple[Predictions, float]:
    """Scale logits by the T that minimises the NLL of validation questions (Guo et al. 2017).

        p_T(y|x) ∝ exp(log p̄(y|x) / T),   T = argmin  −Σ_n log p_T(y_n|x_n)

    p̄ is the average of the probabilities over draws, so ensembles are pooled first and scaled after (Rahaman & Thiery
    2021); with one draw this is the usual softmax(f/T). The ranking of choices, and so the accuracy, stays. The NLL is
    convex in β = 1/T, so its one minimum is where the derivative  Σ_n (E_{p_T}[log p̄] − log p̄(y_n))  changes its sign,
    and bisection finds it.

    Not in the paper. It needs labelled questions that neither training nor reporting uses.

    Args:
        validation: predictions on validation questions.
        test: predictions of the same method on the questions to report.

    Returns:
        :class:`Predictions` with logits ``[1, N, C]``, and T, between 0.02 and 50.
    """
    log_p, labels = _log_average(validation), validation.labels
    if not log_p.gather(1, labels[:, None]).isfinite().all():
        raise ValueError("A validation question's label is a choice that it does not have.")
    low, high = (math.log(1 / t) for t in reversed(RANGE))  # bounds of log β
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _slope(log_p, labels, math.exp(middle)) < 0:  # the NLL still falls: the minimum is further up
            low = middle
        else:
            high = middle
    chosen = math.exp(-(low + high) / 2)
    logits = (_log_average(test) / chosen).to(test.logits.dtype).unsqueeze(0)  # [1, N, C]
    facts = {**test.metadata, "temperature": chosen, "fitted_on": len(labels)}
    return Predictions(logits, test.labels, facts), chosen


def _log_average(predictions: Predictions) -> Tensor:
    """log p̄ ``[N, C]`` in double precision, without leaving log space: small probabilities do not become 0."""
    log_p = predictions.logits.double().log_softmax(-1)
    return log_p.logsumexp(0) - math.log(predictions.samples)


def _slope(log_p: Tensor, labels: Tensor, beta: float) -> float:
    """d NLL / dβ of softmax(β log p̄)."""
    present = log_p.nan_to_num(neginf=0.0)  # a choice that is not there has probability 0 at every β
    expected = ((beta * log_p).softmax(-1) * present).sum(-1)
    return float((expected - log_p.gather(1, labels[:, None]).squeeze(1)).sum())


def _make(bench: Bench) -> Result:
    answers = predict(bench.run, bench.questions, progress=bench.progress)
    started = time.perf_counter()
    scaled, chosen = temperature(predict(bench.run, bench.validation, progress=bench.progress), answers)
    return Result(scaled, None, {"fit": time.perf_counter() - started}, facts={"temperature": chosen})


def _make_linearized(bench: Bench) -> Result:
    line = linearized(bench.run, bench.questions, progress=bench.progress)
    started = time.perf_counter()
    held_out = linearized(bench.run, bench.validation, progress=bench.progress)
    scaled, chosen = temperature(held_out.predictions(), line.predictions())
    seconds = {"fit": time.perf_counter() - started}
    floats = numbers_per_weight(bench.run.posterior, bench.run)
    return Result(scaled, None, seconds, floats, 1 + 2 * line.mean.shape[1], {"temperature": chosen})


TEMPERATURE = Method(
    "temperature",
    "+ temperature",
    "temperature scaling: AdamW's logits, divided by a number fitted on validation questions",
    _make,
    stands_on="adamw",
)
TEMPERATURE_IVON = Method(
    "temperature@ivon",
    "IVON@mean + temperature",
    "temperature scaling of IVON's logits at the mean",
    _make,
    stands_on="ivon",
)
TEMPERATURE_LAPLACE = Method(
    "temperature@laplace_kfac",
    "+ Laplace (KFAC) + temperature",
    "temperature scaling of Laplace's predictions, the prior precision chosen by the evidence",
    _make_linearized,
    stands_on="laplace_kfac",
)
