"""Hyperparameters by task: the paper's, and values measured for small models on the validation split."""

import inspect
import math
from collections.abc import Mapping

from ..checks import check_known
from ..ivon import IVON
from .prior import sqrt_ess

_PAPER = {"lr": 0.03, "beta1": 0.9, "beta2": 1 - 1e-5, "clip_radius": 1e-3, "weight_decay": 0.0, "rescale_lr": False}
# number of steps → settings with the lowest validation NLL with SmolLM2-135M on `everyday` (data/runs/search): 5, 20
# and 40 passes over 160 questions, and for 500 steps the demo's 20 passes over 100. A clip radius of 0.41 clips a tenth
# of the coordinates. The right noise grows with the length: σ is 0.035, then 0.071; β₂ is 1 − 0.32/steps
_SMALL = {
    "adamw": {200: {"lr": 2.8e-4}, 500: {"lr": 1e-4}, 800: {"lr": 5e-5}, 1600: {"lr": 2.5e-5}},
    "ivon": {
        200: {"lr": 5.5e-4, "ess": 8.16e5, "beta2": 1 - 0.32 / 200, "clip_radius": 0.41},
        500: {"lr": 1.1e-3, "ess": 1.98e5, "beta2": 1 - 0.32 / 500, "clip_radius": 0.41},
        800: {"lr": 5.5e-4, "ess": 1.98e5, "beta2": 1 - 0.32 / 800, "clip_radius": 0.41},
        1600: {"lr": 5.5e-4, "ess": 1.98e5, "beta2": 1 - 0.32 / 1600, "clip_radius": 0.41},
    },
}
# λ and h₀ per task (Cong et al. 2024, Table 2 and their public configuration)
_PAPER_TASKS = {
    "winogrande_s": {"ess": 1e7, "hess_init": 3e-4},
    "winogrande_m": {"ess": 1e8, "hess_init": 3e-4},
    "boolq": {"ess": 1e7, "hess_init": 3e-4},
    "arc_challenge": {"ess": 1e6, "hess_init": 1e-3},
    "arc_easy": {"ess": 1e6, "hess_init": 1e-3},
    "openbookqa": {"ess": 1e6, "hess_init": 1e-3},
}
# how long, in batches of 4, in which answer format, and how often on validation questions
_RUNS = {
    "small": {"steps": 200, "format": "text", "eval_every": 0},
    "paper": {"steps": 10_000, "format": "letter", "eval_every": 1_000},
}
PRESETS = ("small", "paper")


def hyperparameters(optimizer: str, preset: str, task: str, steps: int | None = None) -> dict:
    """The preset's settings for an optimizer and a task.

    Args:
        optimizer: ``"ivon"`` or ``"adamw"``.
        preset: ``"small"`` or ``"paper"``.
        task: the paper's preset depends on it.
        steps: the small preset depends on the length of the run: between the lengths that were searched, settings are
            interpolated on a logarithmic scale; beyond them they stay. Default: the preset's own length.

    Raises:
        ValueError: unknown optimizer or preset, or the paper's preset for a task that the paper does not have.
    """
    check_known("optimizer", optimizer, _SMALL)
    check_known("preset", preset, PRESETS)
    if preset == "small":
        found = _interpolated(_SMALL[optimizer], _RUNS["small"]["steps"] if steps is None else steps)
        return {**_PAPER, "hess_init": 1e-3, **found} if optimizer == "ivon" else {**found, "weight_decay": 0.0}
    if optimizer == "adamw":
        return {"lr": 5e-5, "weight_decay": 0.0}
    if task not in _PAPER_TASKS:
        raise ValueError(f"The paper has no settings for {task!r}; it has them for {', '.join(_PAPER_TASKS)}.")
    return _PAPER | _PAPER_TASKS[task]


def preset_sigma(steps: int) -> float:
    """The small preset's noise σ = 1/√(λ h₀) for a run of this length."""
    settings = hyperparameters("ivon", "small", "", steps)
    return float(f"{(settings['ess'] * settings['hess_init']) ** -0.5:.3g}")


def known_settings(optimizer: str) -> set[str]:
    """The names of an optimizer's settings."""
    if optimizer == "ivon":
        return {"prior", *inspect.signature(IVON).parameters} - {"params", "seed"}
    return {"lr", "weight_decay"}


def check_settings(optimizer: str, settings: Mapping) -> None:
    """Refuse settings that the optimizer does not have.

    Raises:
        ValueError: naming the first of them, and what there is.
    """
    known = known_settings(optimizer)
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(f"{optimizer} has no setting {unknown[0]!r}. It has {', '.join(sorted(known))}.")


def completed(settings: dict, questions: int) -> dict:
    """Settings as plain numbers, NumPy's too, and λ as one: ``ess="sqrt"`` is 5000 √N for N training questions.

    Raises:
        ValueError: λ is another word.
    """
    settings = {name: value.item() if hasattr(value, "item") else value for name, value in settings.items()}
    ess = settings.get("ess")
    if not isinstance(ess, str):
        return settings
    if ess != "sqrt":
        raise ValueError(f"ess is {ess!r}; expected a number, or 'sqrt' for 5000 √N.")
    return {**settings, "ess": sqrt_ess(questions)}


def _interpolated(table: dict[int, dict[str, float]], steps: int) -> dict[str, float]:
    """The table's row for a number of steps; between two rows weighted geometric means (for β₂ of 1 − β₂)."""
    below = max((n for n in table if n <= steps), default=min(table))
    above = min((n for n in table if n >= steps), default=max(table))
    share = 0.0 if below == above else math.log(steps / below) / math.log(above / below)

    def between(low: float, high: float) -> float:
        return low if share == 0 else float(f"{low ** (1 - share) * high**share:.3g}")

    rows = [(name, low, table[above][name]) for name, low in table[below].items()]
    return {
        name: 1 - between(1 - low, 1 - high) if name == "beta2" and share else between(low, high)
        for name, low, high in rows
    }


def run_options(
    preset: str, *, steps: int | None = None, format: str | None = None, eval_every: int | None = None
) -> dict:
    """Steps, answer format and steps between evaluations: what is given, else the preset's.

    Raises:
        ValueError: unknown preset.
    """
    check_known("preset", preset, PRESETS)
    given = {"steps": steps, "format": format, "eval_every": eval_every}
    return _RUNS[preset] | {name: value for name, value in given.items() if value is not None}
