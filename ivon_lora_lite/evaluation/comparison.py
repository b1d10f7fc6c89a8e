"""Comparing results: two methods on the same questions, and one method over several seeds."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .metrics import BINS, binned_gap, by_question, ece, ece_floor, resampling_weights
from .scores import Predictions


def paired_differences(
    a: Predictions | Sequence[Predictions],
    b: Predictions | Sequence[Predictions],
    resamples: int = 2000,
    seed: int = 0,
    bins: int = BINS,
) -> dict:
    """b − a on the same questions: differences of the four metrics with 95 % bootstrap intervals over questions.

    Pairing removes what is common to both: how hard the questions are. Of ECE the excess over its floor is compared
    (:func:`ece_floor`), because the two floors differ; resampling raises ECE, so its interval is moved onto the
    difference.

    Args:
        a, b: predictions on the same N questions; or one for each of several training seeds, whose differences are
            averaged before questions are resampled. The intervals do not contain how seeds vary.
        resamples: number of bootstrap resamples.
        seed: of the resampling.
        bins: of ECE.

    Returns:
        ``{"acc": {"difference": …, "interval": [low, high]}, "ece": …, "nll": …, "brier": …}``.

    Raises:
        ValueError: the predictions are on different questions, or there are none, or not equally many.
    """
    a, b = ([x] if isinstance(x, Predictions) else list(x) for x in (a, b))
    if len(a) != len(b) or not a:
        raise ValueError(f"Expected predictions of equally many seeds, one at least; got {len(a)} and {len(b)}.")
    pairs, labels = list(zip(a, b)), a[0].labels
    if any(not torch.equal(p.labels, labels) for pair in pairs for p in pair):
        raise ValueError("Predictions can be paired only if they are on the same questions.")
    weight = resampling_weights(len(labels), resamples, seed)  # [R, N]
    per_question, calibration, resampled = 0.0, 0.0, 0.0
    for sign, p in ((sign, p) for pair in pairs for sign, p in zip((-1, 1), pair)):
        probs, share = p.ensemble().double().cpu(), sign / len(pairs)
        values = by_question(probs, labels)  # [3, N]
        per_question = per_question + share * values
        confidence = probs.max(-1).values
        resampled = resampled + share * binned_gap(confidence, weight * (values[0] - confidence), bins)
        calibration += share * (float(ece(probs, labels, bins)) - ece_floor(probs, bins)[0])
    acc, nll, brier = per_question @ weight.T  # [R] each
    found = {"acc": (float(per_question[0].mean()), acc)}
    found["ece"] = (calibration, resampled + calibration - resampled.median())
    found |= {"nll": (float(per_question[1].mean()), nll), "brier": (float(per_question[2].mean()), brier)}
    tails = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return {
        name: {"difference": value, "interval": torch.quantile(means, tails).tolist()}
        for name, (value, means) in found.items()
    }


def mean_and_error(values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard error over seeds of tensors of one shape.

    Raises:
        ValueError: there are fewer than two seeds, so no standard error.
    """
    if len(values) < 2:
        raise ValueError(f"A standard error needs at least two seeds; there are {len(values)}.")
    stack = torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in values])
    return stack.mean(0), stack.std(0) / len(values) ** 0.5
