"""B-LoRA: learn the rank and the bit width of every LoRA matrix with Bayesian gates.

The method was proposed in "Bayesian-LoRA" (submitted to ICLR 2025, no public code). This is a reconstruction from its
abstract and from Bayesian Bits (van Baalen et al. 2020), on which it builds; what neither says is a choice made here:
symmetric ranges, one quantiser per matrix, gates that start open, activations that stay in 16 bits, the unit of μ.
"""

from ..training import ATTACHED
from .attach import Gates, add_gates, attached, freeze_gates, gate_loss, gate_parameters, gates_of, remove_gates
from .bops import BitOperations, bit_operations, summary
from .decisions import Decisions, GatedPosterior, LayerDecision
from .quantizer import BayesianBits, quantize
from .rank import RankGate
from .training import GateSettings

ATTACHED["gates"] = lambda settings: Decisions.from_facts(settings["decided"])
