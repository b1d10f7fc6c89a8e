"""Any posterior of this package from its file."""

from __future__ import annotations

import os

from .. import posterior
from ..gates import decisions
from ..gates.decisions import GatedPosterior
from ..posterior import GaussianPosterior, Posterior, posterior_format
from . import kronecker, low_rank
from .kronecker import KroneckerPosterior
from .low_rank import LowRankPosterior

__all__ = ["load_posterior"]

KINDS = {
    posterior.FORMAT: GaussianPosterior,
    low_rank.FORMAT: LowRankPosterior,
    kronecker.FORMAT: KroneckerPosterior,
    decisions.FORMAT: GatedPosterior,
}


def load_posterior(folder: str | os.PathLike) -> Posterior:
    """Read ``posterior.safetensors`` from a folder (or the file itself), whichever kind it is.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or no posterior of this package.
    """
    return KINDS.get(posterior_format(folder), GaussianPosterior).load(folder)  # which says what is wrong
