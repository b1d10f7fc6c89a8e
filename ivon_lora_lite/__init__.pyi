from . import gates, plots
from .evaluation import (
    Linearized,
    Predictions,
    Scores,
    TauSweep,
    accuracy,
    adaptive_ece,
    bootstrap_intervals,
    brier,
    choose_tau,
    ece,
    ece_floor,
    entropy,
    linearized,
    mean_and_error,
    mutual_information,
    nll,
    paired_differences,
    predict,
    reliability,
    score,
    tau_sweep,
)
from .ivon import IVON, advice
from .language import (
    FORMATS,
    TASKS,
    LoraSettings,
    Question,
    Task,
    answer_logits,
    answer_loss,
    check_model,
    collate,
    load_model,
    load_task,
    memory_of,
)
from .methods import METHODS, ensemble, laplace, linearized_laplace, mc_dropout, swa, swag, temperature
from .plots import TauExplorer, sweep_html
from .posterior import (
    GaussianPosterior,
    KroneckerPosterior,
    LowRankPosterior,
    Posterior,
    load_posterior,
    lora_parameters,
    reset_lora,
    trainable,
)
from .studies import Table, paper_table, run_demo, run_table
from .training import (
    IVONMixin,
    IVONTrainer,
    Run,
    Suggestion,
    choose_sigma,
    finetune,
    hyperparameters,
    load_run,
    noise_cost,
    save_run,
    suggest_hyperparameters,
)
