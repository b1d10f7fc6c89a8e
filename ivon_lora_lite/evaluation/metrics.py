"""Accuracy and calibration of predicted probabilities.

Every function takes probabilities ``[..., N, C]`` and labels ``[N]`` and returns a tensor ``[...]``: any leading
dimensions (draws, temperatures τ, bootstrap resamples, seeds) are computed at once. A choice that a question does not
have carries probability 0. The metrics are those of Cong et al. (2024), Table 1: ACC, NLL, ECE, Brier.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

METRICS = ("acc", "ece", "nll", "brier")
BINS = 10  # equal-width bins of the reported ECE


def all_metrics(probs: Tensor, labels: Tensor, bins: int = BINS) -> dict[str, Tensor]:
    """Accuracy, ECE, NLL and Brier score in double precision: name → ``[...]``.

    Args:
        probs: ``[..., N, C]`` probabilities.
        labels: ``[N]`` indices of the right choices.
        bins: of ECE.
    """
    probs = probs.double()
    values = accuracy(probs, labels), ece(probs, labels, bins), nll(probs, labels), brier(probs, labels)
    return dict(zip(METRICS, values))


def accuracy(probs: Tensor, labels: Tensor) -> Tensor:
    """Share of questions whose most probable choice is the right one.

    Args:
        probs: ``[..., N, C]`` probabilities.
        labels: ``[N]`` indices of the right choices.

    Returns:
        ``[...]`` in [0, 1].

    >>> accuracy(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([0, 1]))
    tensor(0.5000)
    """
    _check(probs, labels)
    return (probs.argmax(-1) == labels).to(probs.dtype).mean(-1)


def nll(probs: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood, the mean of −log p(y), in nats.

    A probability of 0 counts as the smallest normal number of the dtype, so the result is large but finite.

    Args:
        probs: ``[..., N, C]`` probabilities.
        labels: ``[N]`` indices of the right choices.

    Returns:
        ``[...]`` in nats.
    """
    return -_log(_of_label(probs, labels)).mean(-1)


def brier(probs: Tensor, labels: Tensor) -> Tensor:
    """Brier score: mean over questions of Σ_c (p_c − y_c)², in [0, 2] (not divided by the number of choices C).

    Args:
        probs: ``[..., N, C]`` probabilities.
        labels: ``[N]`` indices of the right choices.

    Returns:
        ``[...]``
    """
    of_label = _of_label(probs, labels)
    # Σ_c (p_c − y_c)² = Σ_c p_c² − 2 p_y + 1
    return (probs.square().sum(-1) - 2 * of_label + 1).mean(-1)


def ece(probs: Tensor, labels: Tensor, bins: int = BINS) -> Tensor:
    """Expected calibration error over equal-width bins (lo, hi] of the top probability.

    ECE = Σ_b (n_b / N) · |accuracy_b − confidence_b|  (Naeini et al. 2015; Guo et al. 2017).

    Args:
        probs: ``[..., N, C]`` probabilities.
        labels: ``[N]`` indices of the right choices.
        bins: number of bins; the value depends on it, so state it beside every ECE.

    Returns:
        ``[...]`` in [0, 1]; multiply by 100 to compare with the paper's table.
    """
    table = reliability(probs, labels, bins)
    gap = (table.accuracy - table.confidence).abs()
    return torch.where(table.weight > 0, table.weight * gap, 0.0).sum(-1)  # an empty bin weighs nothing


def adaptive_ece(probs: Tensor, labels: Tensor, bins: int = BINS) -> Tensor:
    """The same over bins that hold equally many questions each (Nguyen & O'Connor 2015): no bin is nearly empty.

    Args and return as of :func:`ece`; the questions are put in order of their top probability.
    """
    _check(probs, labels)
    if not 1 <= bins <= labels.numel():
        raise ValueError(f"bins is {bins}; expected 1 to the number of questions, {labels.numel()}.")
    confidence, guess = probs.max(-1)  # [..., N]
    order = confidence.argsort(dim=-1, stable=True)
    gap = ((guess == labels).to(probs.dtype) - confidence).gather(-1, order)
    return torch.stack([part.sum(-1).abs() for part in gap.tensor_split(bins, -1)]).sum(0) / labels.numel()


def ece_floor(probs: Tensor, bins: int = BINS, *, resamples: int = 400, seed: int = 0) -> tuple[float, float]:
    """The ECE that a perfectly calibrated model with these confidences would show on this many questions.

    It is above 0 because shares of few questions scatter: differences below it say nothing. Answers are drawn from the
    predictions themselves.

    Args:
        probs: ``[N, C]`` probabilities.
        bins: number of bins.
        resamples: number of times that all answers are drawn.
        seed: of the draws.

    Returns:
        Its mean and its 95 % quantile.
    """
    confidence = probs.max(-1).values.double().cpu()  # [N]
    uniform = torch.rand(resamples, len(confidence), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = binned_gap(confidence, ((uniform < confidence).double() - confidence) / len(confidence), bins)
    return float(found.mean()), float(found.quantile(0.95))


@dataclass(frozen=True)
class Reliability:
    """What a reliability diagram draws. All tensors are ``[..., bins]``; empty bins hold NaN and weight 0.

    Attributes:
        accuracy: share of right answers in each bin.
        confidence: mean top probability in each bin.
        weight: share of the questions in each bin.
    """

    accuracy: Tensor
    confidence: Tensor
    weight: Tensor


def reliability(probs: Tensor, labels: Tensor, bins: int = BINS) -> Reliability:
    """Accuracy and confidence per equal-width bin (lo, hi] of the top probability.

    Args:
        probs: ``[..., N, C]`` probabilities.
        labels: ``[N]`` indices of the right choices.
        bins: number of bins.

    Returns:
        A :class:`Reliability` of tensors ``[..., bins]``.

    Raises:
        ValueError: ``bins`` is less than 1, or shapes do not fit.
    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; a reliability diagram needs at least 1 bin.")
    _check(probs, labels)
    confidence, guess = probs.max(-1)  # [..., N]
    right = (guess == labels).to(probs.dtype)
    edges = torch.linspace(0, 1, bins + 1, dtype=probs.dtype, device=probs.device)
    # right=False gives (lo, hi]; a confidence of exactly 0 belongs to the first bin
    index = (torch.bucketize(confidence.contiguous(), edges) - 1).clamp(0, bins - 1)

    def total(values: Tensor) -> Tensor:
        zeros = torch.zeros(*values.shape[:-1], bins, dtype=probs.dtype, device=probs.device)
        return zeros.scatter_add(-1, index, values)

    count = total(torch.ones_like(confidence))
    return Reliability(total(right) / count, total(confidence) / count, count / labels.numel())


def entropy(probs: Tensor) -> Tensor:
    """Entropy −Σ_c p_c log p_c of each prediction: ``[..., C]`` → ``[...]``, in nats."""
    return -(probs * _log(probs)).sum(-1)


def mutual_information(probs: Tensor) -> Tensor:
    """How much the draws disagree: H[mean_s p_s] − mean_s H[p_s], the epistemic part of the uncertainty, in nats.

    Args:
        probs: ``[S, ..., C]`` probabilities of S draws.

    Returns:
        ``[...]``, at least 0 up to rounding (Houlsby et al. 2011).
    """
    return entropy(probs.mean(0)) - entropy(probs).mean(0)


def bootstrap_intervals(
    probs: Tensor, labels: Tensor, *, level: float = 0.95, resamples: int = 1000, seed: int = 0, bins: int = BINS
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of the four metrics over questions.

    They state how the metrics would vary with another test set of the same size; the variation with the training seed
    comes on top. Resampling raises ECE by a bias b, as sampling did before, so its interval is corrected: the upper end
    is lowered by b, the lower end by 2b, and it is 0 where the ECE is within the floor's 95 % (:func:`ece_floor`). A
    test simulates how often that interval holds the true value.

    Args:
        probs: ``[N, C]`` probabilities.
        labels: ``[N]`` indices of the right choices.
        level: coverage of the interval.
        resamples: number of bootstrap resamples.
        seed: of the resampling.
        bins: of ECE.

    Returns:
        ``{"acc": (low, high), "ece": …, "nll": …, "brier": …}``.
    """
    _check(probs, labels)
    if probs.dim() != 2:
        raise ValueError(f"probs has shape {tuple(probs.shape)}; bootstrap intervals need one prediction, [N, C].")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; expected a coverage between 0 and 1, such as 0.95.")
    weight = resampling_weights(labels.numel(), resamples, seed)  # [R, N]
    probs = probs.to(device="cpu", dtype=torch.float64)
    labels = labels.cpu()
    confidence, per_question = probs.max(-1).values, by_question(probs, labels)
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    acc, loss, brier_score = (tuple(torch.quantile(weight @ row, tails).tolist()) for row in per_question)
    found = binned_gap(confidence, weight * (per_question[0] - confidence), bins)  # [R]
    estimate = float(ece(probs, labels, bins))
    bias = float(found.median()) - estimate
    low, high = torch.quantile(found, tails).tolist()
    low = 0.0 if estimate <= ece_floor(probs, bins)[1] else max(0.0, low - 2 * bias)
    return {"acc": acc, "ece": (low, max(low, high - bias)), "nll": loss, "brier": brier_score}


def by_question(probs: Tensor, labels: Tensor) -> Tensor:
    """Whether the answer is right (1 or 0), NLL and Brier score of every question: ``[N, C]`` → ``[3, N]``."""
    of_label = _of_label(probs, labels)
    right = (probs.argmax(-1) == labels).to(probs.dtype)
    return torch.stack([right, -_log(of_label), probs.square().sum(-1) - 2 * of_label + 1])


def binned_gap(confidence: Tensor, gap: Tensor, bins: int) -> Tensor:
    """Σ_b |Σ_{i in b} gap_i| with the bins of :func:`ece`: ``[N]`` and ``[R, N]`` → ``[R]``."""
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    index = (torch.bucketize(confidence, edges) - 1).clamp(0, bins - 1)
    return torch.zeros(len(gap), bins, dtype=torch.float64).index_add(1, index, gap).abs().sum(-1)


@lru_cache(maxsize=4)  # a slider asks for the same ones at every move
def resampling_weights(n: int, resamples: int, seed: int) -> Tensor:
    """How often each of n questions is in each resample, divided by n: ``[resamples, n]``."""
    index = torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(seed))
    count = torch.zeros(resamples, n, dtype=torch.float64)
    return count.scatter_add_(1, index, torch.ones_like(count)) / n


def _of_label(probs: Tensor, labels: Tensor) -> Tensor:
    """Probability of the right choice: ``[..., N, C]`` → ``[..., N]``."""
    _check(probs, labels)
    index = labels.to(probs.device).expand(probs.shape[:-1]).unsqueeze(-1)
    return probs.gather(-1, index).squeeze(-1)


def _log(probs: Tensor) -> Tensor:
    return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()


def check_probabilities(probs: Tensor) -> None:
    """Refuse what are no probabilities ``[..., C]``.

    Raises:
        ValueError: a value is not finite or negative, or a row does not sum to 1.
    """
    if not torch.isfinite(probs).all():
        raise ValueError("The probabilities are not all finite: did training diverge?")
    if (probs < 0).any() or ((probs.sum(-1) - 1).abs() > 1e-3).any():
        raise ValueError("These are no probabilities, at least 0 and with sums of 1: of logits take softmax(-1).")


def _check(probs: Tensor, labels: Tensor) -> None:
    if probs.dim() < 2 or labels.dim() != 1 or probs.shape[-2] != labels.shape[0]:
        raise ValueError(
            f"probs has shape {tuple(probs.shape)} and labels {tuple(labels.shape)}; expected [..., N, C] and [N]."
        )
    if not labels.numel():
        raise ValueError("There are no questions to score: N is 0.")
    if labels.min() < 0 or labels.max() >= probs.shape[-1]:
        raise ValueError(f"Labels run from {labels.min()} to {labels.max()}; there are {probs.shape[-1]} choices.")
