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

from .adamw import ADAMW as ADAMW, EARLY as EARLY
from .base import METRICS_FILE as METRICS_FILE, Bench as Bench, Method as Method, Result as Result, Settings as Settings
from .blob import BLOB as BLOB, BLOB_MEAN as BLOB_MEAN, BlobSettings as BlobSettings, blob as blob
from .deep_ensemble import ENSEMBLE as ENSEMBLE, ensemble as ensemble
from .dropout import MC_DROPOUT as MC_DROPOUT, mc_dropout as mc_dropout
from .fitting import fit_posterior as fit_posterior
from .gift_sw import GIFT_SW as GIFT_SW, GiftSettings as GiftSettings, gift_sw as gift_sw
from .ivon import IVON_DRAWS as IVON_DRAWS, IVON_LINEARIZED as IVON_LINEARIZED, IVON_MEAN as IVON_MEAN
from .keep_best import KeepBest as KeepBest
from .laplace_approximation import (
    LAPLACE_DIAG as LAPLACE_DIAG,
    LAPLACE_DIAG_VALIDATION as LAPLACE_DIAG_VALIDATION,
    LAPLACE_KFAC as LAPLACE_KFAC,
    LAPLACE_VALIDATION as LAPLACE_VALIDATION,
    laplace as laplace,
    linearized_laplace as linearized_laplace,
    prior_precision as prior_precision,
)
from .pac_tuning import PAC_TUNING as PAC_TUNING, PacSettings as PacSettings, pac_tuning as pac_tuning
from .scalabl import (
    SCALABL as SCALABL,
    RowPosterior as RowPosterior,
    ScalablSettings as ScalablSettings,
    scalabl as scalabl,
)
from .temperature_scaling import (
    TEMPERATURE as TEMPERATURE,
    TEMPERATURE_IVON as TEMPERATURE_IVON,
    TEMPERATURE_LAPLACE as TEMPERATURE_LAPLACE,
    temperature as temperature,
)
from .tfb import TFB as TFB, TFB_BLOB as TFB_BLOB, TFB_IVON as TFB_IVON, balanced as balanced, tfb as tfb
from .weight_averaging import SWA as SWA, SWAG as SWAG, WeightCollector as WeightCollector, swa as swa, swag as swag

# in the order of the table's rows
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        ADAMW, EARLY, MC_DROPOUT, LAPLACE_KFAC, LAPLACE_DIAG, LAPLACE_VALIDATION, LAPLACE_DIAG_VALIDATION,
        TEMPERATURE_LAPLACE, SWA, SWAG, TEMPERATURE, ENSEMBLE, TFB, BLOB_MEAN, BLOB, TFB_BLOB, SCALABL, PAC_TUNING,
        GIFT_SW, IVON_MEAN, TEMPERATURE_IVON, IVON_DRAWS, IVON_LINEARIZED, TFB_IVON,
    )
}  # fmt: skip
