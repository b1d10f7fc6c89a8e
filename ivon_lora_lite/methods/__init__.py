"""The rows of Table 1 of Cong et al. (2024), and more: each ends as draws of logits for ``predict`` and ``score``.

IVON, BLoB, ScalaBL, PAC-tuning and GIFT-SW train runs of their own; the other rows are made from AdamW runs::

    run = finetune(model, task, optimizer="adamw")
    mc_dropout(run, questions)                                  # Predictions
    predict(swa(run, task), questions)
    predict(swag(run, task), questions, samples=10)             # also: tau_sweep(…)
    linearized_laplace(laplace(run, task), questions).predictions()
    predict(tfb(run, task.validation), questions, samples=10)
    ensemble([run, other_seed, another_seed], questions)
    temperature(predict(run, task.validation), predict(run, task.test))

The paper does not publish its settings of Laplace, SWA and SWAG, so the defaults here are choices of this package. A
new method is one file with a :class:`Method`, and one entry of ``METHODS``: the table, the command line and the
notebooks follow.
"""

from .adamw import ADAMW, EARLY
from .base import METRICS_FILE, Bench, Method, Result, Settings
from .blob import BLOB, BLOB_MEAN, BlobSettings, blob
from .deep_ensemble import ENSEMBLE, ensemble
from .dropout import MC_DROPOUT, mc_dropout
from .fitting import fit_posterior
from .gift_sw import GIFT_SW, GiftSettings, gift_sw
from .ivon import IVON_DRAWS, IVON_LINEARIZED, IVON_MEAN
from .keep_best import KeepBest
from .laplace_approximation import (
    LAPLACE_DIAG,
    LAPLACE_DIAG_VALIDATION,
    LAPLACE_KFAC,
    LAPLACE_VALIDATION,
    laplace,
    linearized_laplace,
    prior_precision,
)
from .pac_tuning import PAC_TUNING, PacSettings, pac_tuning
from .scalabl import SCALABL, RowPosterior, ScalablSettings, scalabl
from .temperature_scaling import TEMPERATURE, TEMPERATURE_IVON, TEMPERATURE_LAPLACE, temperature
from .tfb import TFB, TFB_BLOB, TFB_IVON, balanced, tfb
from .weight_averaging import SWA, SWAG, WeightCollector, swa, swag

# in the order of the table's rows
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        ADAMW, EARLY, MC_DROPOUT, LAPLACE_KFAC, LAPLACE_DIAG, LAPLACE_VALIDATION, LAPLACE_DIAG_VALIDATION,
        TEMPERATURE_LAPLACE, SWA, SWAG, TEMPERATURE, ENSEMBLE, TFB, BLOB_MEAN, BLOB, TFB_BLOB, SCALABL, PAC_TUNING,
        GIFT_SW, IVON_MEAN, TEMPERATURE_IVON, IVON_DRAWS, IVON_LINEARIZED, TFB_IVON,
    )
}  # fmt: skip
