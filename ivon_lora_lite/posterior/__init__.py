"""What training leaves: Gaussians over named weights, their draws at any τ, and their file.

* `weights.py`: which weights of a model are trainable, their names, how they are read, set, reset and restored;
* `base.py`: what every posterior can do, and how it is found again by the format that its file states;
* `gaussian.py`: a diagonal Gaussian (IVON, Laplace); `low_rank.py`: a few directions plus a diagonal (SWAG);
  `kronecker.py`: a Kronecker product per matrix plus the prior (Laplace with KFAC).
"""

from .base import POSTERIOR_FILE, Posterior, load_extensions, load_posterior
from .gaussian import GaussianPosterior
from .kronecker import KroneckerPosterior
from .low_rank import LowRankPosterior
from .weights import (
    PREFIX,
    LoraPair,
    active_adapter,
    applied_weights,
    changes_base,
    check_fit,
    check_saveable,
    is_plain,
    lora_layers,
    lora_linears,
    lora_parameters,
    put_weights,
    read_weights,
    reset_lora,
    restored,
    trainable,
    unwrapped,
)
