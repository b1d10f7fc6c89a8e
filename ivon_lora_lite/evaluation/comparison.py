"""Comparing results: two methods on the same questions, and one method over several seeds."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .scores import Predictions


def paired_differences(a: Predictions, b: Predictions, resamples: int = 2000, seed: int = 0) -> dict:
    """b − a on the same questions: differences of accuracy and NLL with 95 % bootstrap intervals.

    Pairing removes what is common to both: how hard the questions are.

    Args:
        a, b: predictions on the same N questions.
        resamples: number of bootstrap resamples.
        seed: of the resampling.

    Returns:
        ``{"acc": {"difference": …, "interval": [low, high]}, "nll": …}``.
    """
    pa, pb, y = a.ensemble().double(), b.ensemble().double(), a.labels
    rows = torch.arange(len(y))
    difference = torch.stack(
        [
            (pb.argmax(-1) == y).double() - (pa.argmax(-1) == y).double(),
            pa[rows, y].clamp(min=1e-300).log() - pb[rows, y].clamp(min=1e-300).log(),
        ]
    )  # [2, N]
    index = torch.randint(len(y), (resamples, len(y)), generator=torch.Generator().manual_seed(seed))
    means = difference[:, index].mean(-1)  # [2, R]
    spans = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=1).T
    return {
        name: {"difference": float(difference[k].mean()), "interval": spans[k].tolist()}
        for k, name in enumerate(("acc", "nll"))
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
