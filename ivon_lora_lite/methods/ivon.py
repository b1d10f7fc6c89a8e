"""IVON: predictions at the mean of its posterior, with draws from it, and with its linearised Gaussian."""

import time

from ..evaluation import linearized, nll
from .adamw import trained
from .base import Bench, Method, Result, mean_of_run, training_options

TAUS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # among which validation chooses


def _linearized(bench: Bench) -> Result:
    """N(f(x; m), τ J diag(v) Jᵀ) over logits, at the τ whose NLL on validation questions is lowest."""
    started = time.perf_counter()
    held_out = linearized(bench.run, bench.validation, progress=bench.progress)
    tau = min(TAUS, key=lambda tau: float(nll(held_out.probabilities(tau), held_out.labels)))
    seconds = {"fit": time.perf_counter() - started}
    line = linearized(bench.run, bench.questions, progress=bench.progress)
    facts = {"tau": tau, "integration_error": line.error(tau)}
    return Result(line.predictions(tau), None, seconds, floats=2.0, passes=1 + 2 * line.mean.shape[1], facts=facts)


IVON_MEAN = Method("ivon@mean", "IVON@mean", "IVON at the mean of its posterior", mean_of_run, stands_on="ivon")
IVON_DRAWS = Method(
    "ivon",
    "IVON",
    "IVON: draws from its posterior",
    lambda bench: trained(bench, "ivon", bench.settings.samples),
    settings=training_options("ivon"),
)
IVON_LINEARIZED = Method(
    "ivon@linearized",
    "IVON, linearised, τ on validation",
    "IVON: the Gaussian over logits that its posterior gives the linearised model, τ chosen on validation questions",
    _linearized,
    stands_on="ivon",
)
