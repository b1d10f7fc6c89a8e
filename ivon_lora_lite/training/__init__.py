"""Finetuning with IVON or AdamW on ``transformers.Trainer``.

* `finetuning.py`: :func:`finetune`; `trainer.py`: IVON in any Trainer; `callbacks.py`, `checkpoints.py`, `beside.py`:
  what happens beside the steps;
* `run.py`: a finished run, written and read; `folders.py`: its folder; `exports.py`: the run for other programs;
  `asking.py`: questions put to it;
* `presets.py`: where settings come from; `prior.py`: λ and the prior as the follow-up paper has them;
  `suggest.py`, `cost_of_noise.py`: λ and β₂ from a measurement.
"""

from .asking import Answer, ask, question_for, tau_of, with_tau, with_threshold
from .beside import Beside
from .callbacks import Bar, Evaluation
from .card import CARD, write_card
from .checkpoints import fingerprint, last_checkpoint, remember
from .cost_of_noise import choose_sigma, noise_cost
from .exports import merge, save_draw, write_adapter
from .finetuning import OPTIMIZERS, AnswerTrainer, Attached, Attachment, check_choices, finetune
from .folders import ADAPTER, RUN_FILE, check_free
from .presets import PRESETS, hyperparameters, preset_sigma, run_options
from .prior import GAMMA, PerMatrixIVON, refit_prior, sqrt_ess
from .run import ATTACHED, Run, first_difference, load_run, save_run, started_from, write_run
from .suggest import COSTS, MOVE, Suggestion, prediction_shift, suggest_hyperparameters, usual_target
from .trainer import IVONMixin, IVONTrainer
