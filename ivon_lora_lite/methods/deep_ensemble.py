"""Deep ensemble: the same training from several seeds, and the average of what the results say."""

from collections.abc import Sequence

import torch

from ..evaluation import Predictions, predict
from ..language import Question
from ..training import Run
from .base import Bench, Method, Result


def ensemble(
    runs: Sequence[Run],
    questions: Sequence[Question],
    *,
    format: str | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> Predictions:
    """Stack M runs:  p(y|x) = 1/M Σ_m softmax f(x; θ_m)  (Lakshminarayanan et al. 2017).

    It costs M trainings and M passes; the others start from one. LoRA starts afresh from every seed, so its members
    differ in their start, the order of questions and dropout, not in the base model. Runs may share one model.

    Args:
        runs: M ≥ 2 finished runs; of an IVON run the mean counts.
        questions: N questions.
        format, batch_size, progress: as in :func:`predict`.

    Returns:
        :class:`Predictions` with logits ``[M, N, C]``.

    Raises:
        ValueError: there are fewer than two runs, or two of them are the same.
    """
    if len(runs) < 2:
        raise ValueError(f"An ensemble needs at least two runs, not {len(runs)}.")
    for i, one in enumerate(runs):
        for j in range(i):
            if one.weights.keys() == runs[j].weights.keys() and all(
                torch.equal(w, runs[j].weights[name]) for name, w in one.weights.items()
            ):
                raise ValueError(f"Runs {j} and {i} have the same weights: train each with a seed of its own.")
    options = {"format": format, "batch_size": batch_size, "progress": progress}
    members = [predict(run, questions, **options) for run in runs]
    facts = {"method": "ensemble", "samples": len(runs), "seeds": [run.config.get("seed") for run in runs]}
    formats = {member.metadata["format"] for member in members}
    if len(formats) > 1:
        raise ValueError("The runs were trained with different answer formats: choose one with format=.")
    logits = torch.cat([member.logits for member in members])  # [M, N, C]
    return Predictions(logits, members[0].labels, {**facts, "format": formats.pop()})


def _make(bench: Bench) -> Result:
    predictions = ensemble(bench.runs, bench.questions, progress=bench.progress)
    seconds = {"train": sum(run.seconds for run in bench.runs)}
    return Result(predictions, None, seconds, len(bench.runs), len(bench.runs))


ENSEMBLE = Method("ensemble", "ensemble of AdamW", "ensemble: AdamW from several seeds", _make, stands_on="adamw")
