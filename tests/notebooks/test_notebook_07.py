"""What notebook 07 builds is what the library does, and its text says what the recorded files say."""

import torch
from cells import defined_in

from ivon_lora_lite import Linearized


def test_linear_probabilities_are_those_of_the_library():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(30, 4, generator=generator)
    root = torch.randn(30, 4, 4, generator=generator)
    covariance = root @ root.mT
    build = defined_in("07_tau.ipynb", "linear_probabilities", torch=torch)["linear_probabilities"]
    library = Linearized(mean, covariance, torch.zeros(30, dtype=torch.long))
    for tau in (0.0, 0.3, 1.0, 2.5):
        # both integrate by Monte Carlo; the library's 256 antithetic draws have a standard error below 0.03
        gap = (build(mean, covariance, tau, draws=20_000).float() - library.probabilities(tau)).abs()
        assert gap.max() < 0.1 and gap.mean() < 0.02
    assert (build(mean, covariance, 1.0).float() - library.probabilities(0.0)).abs().max() > 0.1  # τ matters
