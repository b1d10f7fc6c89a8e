"""What training leaves: Gaussians over named weights, their draws at any τ, and their file.

* `weights.py`: which weights of a model are trainable, their names, how they are read, set and restored;
* `base.py`: what every posterior can do, and how it is found again by the format that its file states;
* `gaussian.py`: a diagonal Gaussian (IVON, Laplace); `low_rank.py`: a few directions plus a diagonal (SWAG);
  `kronecker.py`: a Kronecker product per matrix plus the prior (Laplace with KFAC).
"""

from .base import (
    POSTERIOR_FILE as POSTERIOR_FILE,
    Posterior as Posterior,
    load_extensions as load_extensions,
    load_posterior as load_posterior,
)
from .gaussian import GaussianPosterior as GaussianPosterior
from .kronecker import KroneckerPosterior as KroneckerPosterior
from .low_rank import LowRankPosterior as LowRankPosterior
from .weights import (
    PREFIX as PREFIX,
    LoraPair as LoraPair,
    active_adapter as active_adapter,
    applied_weights as applied_weights,
    check_fit as check_fit,
    check_saveable as check_saveable,
    is_plain as is_plain,
    lora_layers as lora_layers,
    lora_linears as lora_linears,
    lora_modules as lora_modules,
    lora_parameters as lora_parameters,
    put_weights as put_weights,
    read_weights as read_weights,
    restored as restored,
    settable as settable,
    trainable as trainable,
    unwrapped as unwrapped,
)
