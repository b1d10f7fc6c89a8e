"""IVON-LoRA for learning, teaching and use: variational finetuning of language models with LoRA.

The names below are loaded when first used, so ``import ivon_lora_lite`` is quick and pulls in neither transformers nor
anything of Jupyter, plotly or bitsandbytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._lazy import lazy

if TYPE_CHECKING:
    from .experiment import load_run, save_run
    from .explore import TauExplorer
    from .gates import GateSettings, add_gates, bit_operations, freeze_gates, gate_loss, gate_parameters, save_gated
    from .ivon import IVON
    from .linearization import Linearized, linearized
    from .metrics import accuracy, brier, ece, nll, reliability
    from .models import LoraSettings, load_model, lora_parameters
    from .posterior import GaussianPosterior
    from .prediction import Predictions, predict, score
    from .suggest import Suggestion, suggest_hyperparameters
    from .sweep import TauSweep, choose_tau, tau_sweep
    from .tasks import TASKS, Question, Task, load_task
    from .train import Run, finetune
    from .trainer import IVONMixin, IVONTrainer

_WHERE = {
    "experiment": ("load_run", "save_run"),
    "explore": ("TauExplorer",),
    "gates": (
        "GateSettings",
        "add_gates",
        "bit_operations",
        "freeze_gates",
        "gate_loss",
        "gate_parameters",
        "save_gated",
    ),
    "ivon": ("IVON",),
    "linearization": ("Linearized", "linearized"),
    "metrics": ("accuracy", "brier", "ece", "nll", "reliability"),
    "models": ("LoraSettings", "load_model", "lora_parameters"),
    "posterior": ("GaussianPosterior",),
    "prediction": ("Predictions", "predict", "score"),
    "suggest": ("Suggestion", "suggest_hyperparameters"),
    "sweep": ("TauSweep", "choose_tau", "tau_sweep"),
    "tasks": ("TASKS", "Question", "Task", "load_task"),
    "train": ("Run", "finetune"),
    "trainer": ("IVONMixin", "IVONTrainer"),
}
_MODULE = {name: module for module, names in _WHERE.items() for name in names}
__all__ = sorted(_MODULE)
__version__ = "0.1.0"
__getattr__, __dir__ = lazy(globals(), _MODULE)
