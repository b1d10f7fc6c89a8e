from . import gates as gates, plots as plots
from .applications import (
    Sensitivity as Sensitivity,
    correct_mean as correct_mean,
    influence as influence,
    leave_one_out as leave_one_out,
    merge_runs as merge_runs,
    rank_by_signal as rank_by_signal,
    sensitivity as sensitivity,
)
from .evaluation import (
    Abstention as Abstention,
    Linearized as Linearized,
    Predictions as Predictions,
    Scores as Scores,
    TauSweep as TauSweep,
    abstain as abstain,
    accuracy as accuracy,
    adaptive_ece as adaptive_ece,
    bootstrap_intervals as bootstrap_intervals,
    brier as brier,
    choose_tau as choose_tau,
    ece as ece,
    ece_floor as ece_floor,
    entropy as entropy,
    error_detection as error_detection,
    linearized as linearized,
    mean_and_error as mean_and_error,
    mutual_information as mutual_information,
    nll as nll,
    paired_differences as paired_differences,
    predict as predict,
    reliability as reliability,
    risk_coverage as risk_coverage,
    score as score,
    shift_detection as shift_detection,
    tau_sweep as tau_sweep,
)
from .generation import generate as generate, token_uncertainty as token_uncertainty
from .ivon import IVON as IVON, advice as advice
from .language import (
    FORMATS as FORMATS,
    TASKS as TASKS,
    LoraSettings as LoraSettings,
    Question as Question,
    Task as Task,
    answer_logits as answer_logits,
    answer_loss as answer_loss,
    check_model as check_model,
    collate as collate,
    load_model as load_model,
    load_task as load_task,
    memory_of as memory_of,
    reset_lora as reset_lora,
)
from .methods import (
    METHODS as METHODS,
    blob as blob,
    ensemble as ensemble,
    fit_posterior as fit_posterior,
    gift_sw as gift_sw,
    laplace as laplace,
    linearized_laplace as linearized_laplace,
    mc_dropout as mc_dropout,
    pac_tuning as pac_tuning,
    scalabl as scalabl,
    swa as swa,
    swag as swag,
    temperature as temperature,
    tfb as tfb,
)
from .plots import TauExplorer as TauExplorer, sweep_html as sweep_html
from .posterior import (
    GaussianPosterior as GaussianPosterior,
    KroneckerPosterior as KroneckerPosterior,
    LowRankPosterior as LowRankPosterior,
    Posterior as Posterior,
    load_posterior as load_posterior,
    lora_parameters as lora_parameters,
    trainable as trainable,
)
from .studies import Table as Table, paper_table as paper_table, run_demo as run_demo, run_table as run_table
from .training import (
    IVONMixin as IVONMixin,
    IVONTrainer as IVONTrainer,
    Run as Run,
    Suggestion as Suggestion,
    choose_sigma as choose_sigma,
    finetune as finetune,
    hyperparameters as hyperparameters,
    load_run as load_run,
    noise_cost as noise_cost,
    save_run as save_run,
    suggest_hyperparameters as suggest_hyperparameters,
)

__version__: str
