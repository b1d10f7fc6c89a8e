"""The other rows of Table 1 of Cong et al. (2024), and two more: each gives draws to ``predict`` and ``score``.

All rows but IVON's and the ensemble's are made from one AdamW run::

    run = finetune(model, task, optimizer="adamw")
    mc_dropout(run, questions)                                  # Predictions
    predict(swa(run, task), questions)
    predict(swag(run, task), questions, samples=10)             # also: tau_sweep(…)
    linearized_laplace(laplace(run, task), questions).predictions()
    ensemble([run, other_seed, another_seed], questions)
    temperature(predict(run, task.validation), predict(run, task.test))

The paper does not publish its settings of Laplace, SWA and SWAG, so the defaults here are choices of this package.
"""

# ruff: noqa: F401 (names for type checkers, loaded lazily at run time)

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy

if TYPE_CHECKING:
    from .deep_ensemble import ensemble
    from .dropout import mc_dropout
    from .kronecker import KroneckerPosterior
    from .laplace_approximation import laplace, linearized_laplace
    from .loading import load_posterior
    from .low_rank import LowRankPosterior
    from .temperature_scaling import temperature
    from .weight_averaging import WeightCollector, swa, swag

METHODS = {
    "adamw": "AdamW: one point, no uncertainty over weights",
    "mc_dropout": "MC dropout: AdamW's weights, dropout left on at test time",
    "laplace_kfac": "Laplace, KFAC: Gaussian around AdamW's weights from Kronecker-factored curvature, linearised",
    "laplace_diag": "Laplace, diagonal: the same from the diagonal of the curvature",
    "swa": "SWA: mean of the weights along further training",
    "swag": "SWAG: Gaussian with the mean and covariance of the weights along further training",
    "ivon@mean": "IVON at the mean of its posterior",
    "ivon": "IVON: draws from its posterior",
    "ensemble": "ensemble: AdamW from several seeds",
    "temperature": "temperature scaling: AdamW's logits, divided by a number fitted on validation questions",
}

_WHERE = {
    "deep_ensemble": ("ensemble",),
    "dropout": ("mc_dropout",),
    "kronecker": ("KroneckerPosterior",),
    "laplace_approximation": ("laplace", "linearized_laplace"),
    "loading": ("load_posterior",),
    "low_rank": ("LowRankPosterior",),
    "temperature_scaling": ("temperature",),
    "weight_averaging": ("WeightCollector", "swa", "swag"),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = sorted(["METHODS", *_MODULE])
__getattr__, __dir__ = lazy(globals(), _MODULE)
