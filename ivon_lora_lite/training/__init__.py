"""Finetuning with IVON or AdamW on ``transformers.Trainer``.

* `finetuning.py`: :func:`finetune`; `trainer.py`: IVON in any Trainer; `callbacks.py`, `checkpoints.py`, `beside.py`:
  what happens beside the steps;
* `run.py`: a finished run, written and read; `folders.py`: its folder; `exports.py`: the run for other programs;
  `asking.py`: questions put to it;
* `presets.py`: where settings come from; `prior.py`: λ and the prior as the follow-up paper has them;
  `suggest.py`, `cost_of_noise.py`: λ and β₂ from a measurement.
"""

from .asking import (
    Answer as Answer,
    ask as ask,
    question_for as question_for,
    tau_of as tau_of,
    with_tau as with_tau,
    with_threshold as with_threshold,
)
from .beside import Beside as Beside
from .callbacks import Bar as Bar, Evaluation as Evaluation
from .card import CARD as CARD, write_card as write_card
from .checkpoints import fingerprint as fingerprint, last_checkpoint as last_checkpoint, remember as remember
from .cost_of_noise import choose_sigma as choose_sigma, noise_cost as noise_cost
from .exports import merge as merge, save_draw as save_draw, write_adapter as write_adapter
from .finetuning import (
    OPTIMIZERS as OPTIMIZERS,
    AnswerTrainer as AnswerTrainer,
    Attached as Attached,
    Attachment as Attachment,
    check_choices as check_choices,
    finetune as finetune,
)
from .folders import ADAPTER as ADAPTER, RUN_FILE as RUN_FILE, check_free as check_free
from .presets import (
    PRESETS as PRESETS,
    hyperparameters as hyperparameters,
    preset_sigma as preset_sigma,
    run_options as run_options,
)
from .prior import GAMMA as GAMMA, PerMatrixIVON as PerMatrixIVON, refit_prior as refit_prior, sqrt_ess as sqrt_ess
from .run import (
    ATTACHED as ATTACHED,
    Run as Run,
    first_difference as first_difference,
    load_run as load_run,
    save_run as save_run,
    started_from as started_from,
    write_run as write_run,
)
from .suggest import (
    COSTS as COSTS,
    MOVE as MOVE,
    Suggestion as Suggestion,
    prediction_shift as prediction_shift,
    suggest_hyperparameters as suggest_hyperparameters,
    usual_target as usual_target,
)
from .trainer import IVONMixin as IVONMixin, IVONTrainer as IVONTrainer
