"""IVON: predictions at the mean of its posterior, and with draws from it."""

from ..evaluation import predict
from .adamw import trained
from .base import Bench, Method, Result


def _mean(bench: Bench) -> Result:
    return Result(predict(bench.run, bench.questions, progress=bench.progress))


IVON_MEAN = Method("ivon@mean", "IVON@mean", "IVON at the mean of its posterior", _mean, stands_on="ivon")
IVON_DRAWS = Method(
    "ivon", "IVON", "IVON: draws from its posterior", lambda bench: trained(bench, "ivon", bench.settings.samples)
)
