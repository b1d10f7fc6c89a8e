"""B-LoRA: learn the rank and the bit width of every LoRA matrix with Bayesian gates.

The method was proposed in "Bayesian-LoRA" (submitted to ICLR 2025, no public code). This is a reconstruction from its
abstract and from Bayesian Bits (van Baalen et al. 2020), on which it builds; what neither says is a choice made here:
symmetric ranges, one quantiser per matrix, gates that start open, activations that stay in 16 bits, the unit of μ.
"""

from ..training import ATTACHED
from .attach import (
    Gates as Gates,
    add_gates as add_gates,
    attached as attached,
    freeze_gates as freeze_gates,
    gate_loss as gate_loss,
    gate_parameters as gate_parameters,
    gates_of as gates_of,
    remove_gates as remove_gates,
)
from .bops import BitOperations as BitOperations, bit_operations as bit_operations, summary as summary
from .decisions import Decisions as Decisions, GatedPosterior as GatedPosterior, LayerDecision as LayerDecision
from .quantizer import BayesianBits as BayesianBits, quantize as quantize
from .rank import RankGate as RankGate
from .training import GateSettings as GateSettings

ATTACHED["gates"] = lambda settings: Decisions.from_facts(settings["decided"])
