"""Predictions with draws, and what they are worth.

* `metrics.py`: accuracy, ECE, NLL, Brier score … of probabilities ``[..., N, C]``;
* `scores.py`: logits ``[S, N, C]`` as a file, and their scores; `comparison.py`: two methods, or several seeds;
* `decisions.py`: abstaining, and telling errors and shifted questions by doubt;
* `prediction.py`: the mean or draws → logits; `stacking.py`: several draws in one forward pass;
* `sweep.py`: the same draws at several τ; `jacobians.py`, `linearization.py`: every τ from one pass.
"""

from .comparison import mean_and_error, paired_differences
from .decisions import (
    COVERAGE,
    DOUBTS,
    Abstention,
    abstain,
    accuracy_at,
    aurc,
    auroc,
    doubts,
    error_detection,
    fpr_at_tpr,
    right_answers,
    risk_coverage,
    shift_detection,
)
from .jacobians import Factors, jacobian, pulled_back, visit_gradients
from .linearization import Linearized, linearized, linearized_together, normal_points
from .metrics import (
    BINS,
    METRICS,
    accuracy,
    adaptive_ece,
    all_metrics,
    bootstrap_intervals,
    brier,
    ece,
    ece_floor,
    entropy,
    mutual_information,
    nll,
    reliability,
)
from .prediction import Asked, Batches, Trained, asked_of, predict
from .scores import Predictions, Scores, score
from .stacking import can_stack, stacked
from .sweep import TauSweep, choose_tau, tau_sweep
