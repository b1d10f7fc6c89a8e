"""B-LoRA: learn the rank and the bit width of every LoRA matrix with Bayesian gates.

The method was proposed in "Bayesian-LoRA" (submitted to ICLR 2025, no public code). This is a reconstruction from its
abstract and from Bayesian Bits (van Baalen et al. 2020), on which it builds; what neither says is a choice made here:
symmetric ranges, one quantiser per matrix, gates that start open, activations that stay in 16 bits, the unit of μ.
"""

# ruff: noqa: F401 (names for type checkers, loaded lazily at run time)

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy

if TYPE_CHECKING:
    from .attach import (
        Gates,
        add_gates,
        freeze_gates,
        gate_loss,
        gate_parameters,
        merge_gates,
        remove_gates,
        save_gated,
    )
    from .bops import BitOperations, bit_operations
    from .decisions import Decisions, GatedPosterior, LayerDecision
    from .quantizer import BayesianBits, quantize
    from .rank import RankGate
    from .training import GateSettings

_WHERE = {
    "attach": (
        "Gates", "add_gates", "freeze_gates", "gate_loss", "gate_parameters", "merge_gates", "remove_gates",
        "save_gated",
    ),
    "bops": ("BitOperations", "bit_operations"),
    "decisions": ("Decisions", "GatedPosterior", "LayerDecision"),
    "quantizer": ("BayesianBits", "quantize"),
    "rank": ("RankGate",),
    "training": ("GateSettings",),
}  # fmt: skip
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = sorted(_MODULE)
__getattr__, __dir__ = lazy(globals(), _MODULE)
