"""What a learned variance is good for besides prediction.

* `sensitivity.py`: which training examples moved the model, and what that says about unseen ones;
* `merging.py`: adapters of several tasks in one, weighted by how sure each is of each weight;
* `importance.py`: AdaLoRA that takes away the directions which are small beside their own σ;
* `correction.py`: a better mean for Laplace's Gaussian.
"""

from .correction import correct_mean as correct_mean
from .importance import rank_by_signal as rank_by_signal
from .merging import merge_runs as merge_runs, merged_mean as merged_mean
from .sensitivity import (
    Sensitivity as Sensitivity,
    influence as influence,
    leave_one_out as leave_one_out,
    memory_perturbation as memory_perturbation,
    sensitivity as sensitivity,
)
