"""Predictions with draws, and what they are worth.

* `metrics.py`: accuracy, ECE, NLL, Brier score … of probabilities ``[..., N, C]``;
* `scores.py`: logits ``[S, N, C]`` as a file, and their scores; `comparison.py`: two methods, or several seeds;
* `decisions.py`: abstaining, and telling errors and shifted questions by doubt;
* `prediction.py`: the mean or draws → logits; `stacking.py`: several draws in one forward pass;
* `sweep.py`: the same draws at several τ; `jacobians.py`, `linearization.py`: every τ from one pass.
"""

from .comparison import mean_and_error as mean_and_error, paired_differences as paired_differences
from .decisions import (
    COVERAGE as COVERAGE,
    DOUBTS as DOUBTS,
    Abstention as Abstention,
    abstain as abstain,
    accuracy_at as accuracy_at,
    aurc as aurc,
    auroc as auroc,
    doubts as doubts,
    error_detection as error_detection,
    fpr_at_tpr as fpr_at_tpr,
    right_answers as right_answers,
    risk_coverage as risk_coverage,
    shift_detection as shift_detection,
)
from .jacobians import (
    Factors as Factors,
    jacobian as jacobian,
    pulled_back as pulled_back,
    visit_gradients as visit_gradients,
)
from .linearization import (
    Linearized as Linearized,
    linearized as linearized,
    linearized_together as linearized_together,
    normal_points as normal_points,
)
from .metrics import (
    BINS as BINS,
    METRICS as METRICS,
    accuracy as accuracy,
    adaptive_ece as adaptive_ece,
    all_metrics as all_metrics,
    bootstrap_intervals as bootstrap_intervals,
    brier as brier,
    ece as ece,
    ece_floor as ece_floor,
    entropy as entropy,
    mutual_information as mutual_information,
    nll as nll,
    reliability as reliability,
)
from .prediction import Asked as Asked, Batches as Batches, Trained as Trained, asked_of as asked_of, predict as predict
from .scores import Predictions as Predictions, Scores as Scores, score as score
from .stacking import can_stack as can_stack, stacked as stacked
from .sweep import TauSweep as TauSweep, choose_tau as choose_tau, tau_sweep as tau_sweep
