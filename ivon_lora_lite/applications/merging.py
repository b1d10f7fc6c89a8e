"""Several adapters in one, each weight taken from those that are sure of it (Daheim et al. 2024).

Task k was trained from m₀ to m_k, where L_k + ½ H₀ (m − m₀)² has its minimum and L_k = N_k ℓ_k the curvature
H_k = N_k h_k. So L_k has the slope −H₀ (m_k − m₀) there, and with these quadratic L_k the sum of all L_k and of one
prior has its minimum at

    m = m₀ + Σ_k H̄⁻¹ (H₀ + H_k) (m_k − m₀),     H̄ = H₀ + Σ_k H_k

With equal curvatures and H₀ = 0 this is the plain average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..posterior import GaussianPosterior, active_adapter, check_fit, unwrapped
from ..training import Run, first_difference, started_from


def merged_mean(
    start: Tensor, means: Sequence[Tensor], curvatures: Sequence[Tensor], prior: float | Tensor = 0.0
) -> tuple[Tensor, Tensor]:
    """m = m₀ + Σ_k H̄⁻¹ (H₀ + H_k)(m_k − m₀), and H̄, elementwise.

    Args:
        start: m₀.
        means: m_k.
        curvatures: H_k ≥ 0, of the same shape.
        prior: H₀ ≥ 0.
    """
    total = prior + sum(curvatures)
    moved = sum((prior + h) * (m - start) for m, h in zip(means, curvatures, strict=True))
    return start + moved / total, total


def merge_runs(runs: Sequence[Run], *, prior: float = 0.0) -> Run:
    """One run out of several that were trained from the same start on different tasks, weighted by their precisions.

    Args:
        runs: at least two IVON runs on one model, with the same seed: LoRA's start m₀ is shared.
        prior: H₀, the precision with which weights are held at m₀.

    Returns:
        A :class:`Run` with the merged mean; save it like any other. Its variance is 1/(κ H̄): posteriors of λ and τ have
        κ = λ/(τ N) times the curvature of N questions, and with one κ for all the merged one is as wide as they are.

    Raises:
        ValueError: fewer than two runs, other seeds, shapes, formats, classes or models, one that has gates or no
            learned Gaussian, or a prior and a start that is not known any more
            (:func:`ivon_lora_lite.training.started_from`).
    """
    if len(runs) < 2:
        raise ValueError(f"Merging needs at least two runs, not {len(runs)}.")
    if not 0 <= prior < math.inf:
        raise ValueError(f"prior is {prior}; expected a finite precision of at least 0.")
    first = runs[0]
    for run in runs:
        run.check_adapter()
        for (what, value), other in zip(_meaning(first).items(), _meaning(run).values()):
            if value != other:
                raise ValueError(f"The runs have another {what}: {value} and {other}.")
        if run.gates is not None:
            raise ValueError("A run with gates cannot be merged: its adapter is not LoRA's own.")
        if run.config["seed"] != first.config["seed"]:
            raise ValueError("The runs began from different LoRA weights: train them with the same seed.")
        check_fit(first.weights, run.weights)
        name = first_difference(*(_adapter(r) for r in (first, run)))
        if name is not None:
            raise ValueError(f"The runs' adapters have another {name}, so their weights act differently.")
    curvatures = [curvature(run) for run in runs]
    start = [started_from(run) for run in runs][0] if prior else first.weights  # without a prior m₀ drops out
    facts = [run.posterior.metadata for run in runs]
    ess = sum(own["ess"] / own.get("tau", 1.0) for own in facts)
    kappa = ess / sum(run.config["train_size"] for run in runs)
    mean, variance = {}, {}
    for name, m0 in start.items():
        mean[name], total = merged_mean(
            m0, [run.posterior.mean[name] for run in runs], [h[name] for h in curvatures], prior
        )
        variance[name] = 1 / (kappa * total)
    tasks = [run.config["task"] for run in runs]
    facts = {"method": "merged", "tasks": tasks, "prior": prior, "ess": ess, "weight_decay": 0.0}
    config = {"task": " + ".join(tasks), "tasks": tasks, "train_size": sum(run.config["train_size"] for run in runs)}
    posterior = GaussianPosterior(mean, variance, facts)
    merged = first.derived("merged", weights=mean, posterior=posterior, config=config, history=[])
    merged.config.pop("data", None)  # of the first run's questions
    return merged


def _meaning(run: Run) -> dict:
    """What the answers of a run are, and of which model."""
    config = run.config
    return {"format": config["format"], "classes": config.get("classes"), "base model": config["model"].get("name")}


def _adapter(run: Run) -> dict:
    """The settings of a run's adapter."""
    name = active_adapter(run.model)
    return {} if name is None else unwrapped(run.model).peft_config[name].to_dict()


def curvature(run: Run) -> Mapping[str, Tensor]:
    """H = N h of a run's N training questions: with v = τ/(λ(h + δ)), h = τ/(λ v) − δ, at least 0."""
    variance, facts = getattr(run.posterior, "variance", None), getattr(run.posterior, "metadata", {})
    ess, delta, tau = facts.get("ess"), facts.get("weight_decay"), facts.get("tau", 1.0)
    if variance is None or not isinstance(ess, int | float) or not isinstance(delta, int | float):
        raise ValueError("Merging by uncertainty needs IVON runs: a diagonal Gaussian with one λ and one δ.")
    count = run.config["train_size"]
    return {n: (count * (tau / (ess * v) - delta)).clamp(min=torch.finfo(v.dtype).tiny) for n, v in variance.items()}
