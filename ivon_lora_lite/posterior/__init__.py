"""What training leaves: Gaussians over named weights, their draws at any τ, and their file.

* `weights.py`: which weights of a model are trainable, their names, how they are read, set and restored;
  `fresh.py`: where LoRA starts;
* `base.py`: what every posterior can do, and how it is found again by the format that its file states;
* `gaussian.py`: a diagonal Gaussian (IVON, Laplace); `low_rank.py`: a few directions plus a diagonal (SWAG);
  `kronecker.py`: a Kronecker product per matrix plus the prior (Laplace with KFAC).
"""

from .base import POSTERIOR_FILE, Posterior, load_extensions, load_posterior
from .fresh import changes_base, reset_lora
from .gaussian import GaussianPosterior
from .kronecker import KroneckerPosterior
from .low_rank import LowRankPosterior
from .weights import (
    PREFIX,
    LoraPair,
    active_adapter,
    applied_weights,
    check_fit,
    check_saveable,
    is_plain,
    lora_layers,
    lora_linears,
    lora_parameters,
    put_weights,
    read_weights,
    restored,
    settable,
    trainable,
    unwrapped,
)
