"""Finetuning with IVON or AdamW on ``transformers.Trainer``.

* `finetuning.py`: :func:`finetune`; `trainer.py`: IVON in any Trainer; `callbacks.py`, `checkpoints.py`, `beside.py`:
  what happens beside the steps;
* `run.py`: a finished run and its folder; `asking.py`: questions put to it;
* `presets.py`: where settings come from; `prior.py`: λ and the prior as the follow-up paper has them;
  `suggest.py`, `cost_of_noise.py`: λ and β₂ from a measurement.
"""

from .asking import Answer, ask, question_for, tau_of, with_tau, with_threshold
from .beside import Beside
from .callbacks import Bar, Evaluation
from .card import CARD, write_card
from .checkpoints import last_checkpoint, remember
from .cost_of_noise import choose_sigma, noise_cost
from .finetuning import OPTIMIZERS, AnswerTrainer, Attached, Attachment, check_choices, finetune
from .presets import PRESETS, hyperparameters, preset_sigma, run_options
from .prior import GAMMA, per_matrix_ivon, refit_prior, sqrt_ess
from .run import (
    ADAPTER,
    ATTACHED,
    RUN_FILE,
    Run,
    check_free,
    load_run,
    merge,
    save_draw,
    save_run,
    write_adapter,
    write_run,
)
from .suggest import COSTS, MOVE, Suggestion, prediction_shift, suggest_hyperparameters, usual_target
from .trainer import IVONMixin, IVONTrainer
