"""Uncertainty that decides: which answers to trust, which to hand to a person, which questions are unlike one's own.

A question's *doubt* is any number that is larger where the model should be trusted less: 1 − confidence, the entropy of
the averaged prediction, or the mutual information between answer and weights (how much the draws disagree).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .metrics import entropy
from .scores import Predictions

DOUBTS = ("confidence", "entropy", "mutual_information")
COVERAGE = 0.8  # at which accuracy is reported


def doubts(predictions: Predictions) -> dict[str, Tensor]:
    """name → ``[N]``: 1 − confidence and entropy of the average over draws, and the draws' mutual information."""
    probs = predictions.ensemble().double()
    others = probs.scatter(-1, probs.argmax(-1, keepdim=True), 0.0).sum(-1)  # 1 − confidence, exact where it is small
    values = others, entropy(probs), predictions.mutual_information().double()
    return dict(zip(DOUBTS, values))


def right_answers(predictions: Predictions) -> Tensor:
    """Whether the average over draws answers each question rightly, ``[N]``."""
    return predictions.ensemble().argmax(-1) == predictions.labels


def risk_coverage(doubt: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Share of wrong answers among the least doubtful, against how many are answered (El-Yaniv & Wiener 2010).

    Where doubts are equal, the expectation over their order is taken.

    Args:
        doubt: ``[N]``.
        right: ``[N]``, whether the answer is right.

    Returns:
        Coverage 1/N, 2/N … 1 and risk, ``[N]`` each.

    >>> coverage, risk = risk_coverage(torch.tensor([0.1, 0.5, 0.3]), torch.tensor([True, False, True]))
    >>> [round(r, 3) for r in risk.tolist()]
    [0.0, 0.0, 0.333]
    """
    _check(doubt, right)
    _, group, counts = torch.unique(doubt, return_inverse=True, return_counts=True)  # in ascending order
    wrong = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, group, (~right).double())
    expected = (wrong / counts).repeat_interleave(counts)  # of the k-th answer in order of doubt
    number = torch.arange(1, len(doubt) + 1, dtype=torch.float64)
    return number / len(doubt), expected.cumsum(0) / number


def aurc(doubt: Tensor, right: Tensor) -> float:
    """Area under the risk–coverage curve: the average of the risk over all coverages; lower is better."""
    return float(risk_coverage(doubt, right)[1].mean())


def accuracy_at(doubt: Tensor, right: Tensor, coverage: float = COVERAGE) -> float:
    """Accuracy of the share of answers that are least doubtful."""
    return 1 - float(risk_coverage(doubt, right)[1][_count(len(doubt), coverage) - 1])


def auroc(score: Tensor, positive: Tensor) -> float:
    """Probability that a positive has a higher score than a negative, ties counting half; NaN if one kind is missing.

    Args:
        score: ``[N]``.
        positive: ``[N]`` booleans.
    """
    _check(score, positive)
    yes, no = score[positive], score[~positive].sort().values
    below, up_to = torch.searchsorted(no, yes), torch.searchsorted(no, yes, right=True)
    return float((below + up_to).double().mean() / (2 * len(no))) if len(no) and len(yes) else float("nan")


def fpr_at_tpr(score: Tensor, positive: Tensor, tpr: float = 0.95) -> float:
    """Share of negatives at or above the highest threshold that finds at least ``tpr`` of the positives (FPR95)."""
    _check(score, positive)
    yes, no = score[positive], score[~positive]
    if not len(yes) or not len(no):
        return float("nan")
    threshold = yes.sort(descending=True).values[_count(len(yes), tpr) - 1]
    return float((no >= threshold).double().mean())


def error_detection(predictions: Predictions) -> dict[str, float]:
    """How well each doubt tells wrong answers from right ones: AUROC by name; a point has no mutual information."""
    doubt, wrong = doubts(predictions), ~right_answers(predictions)
    return {name: auroc(doubt[name], wrong) for name in _known(predictions)}


def shift_detection(own: Predictions, shifted: Predictions) -> dict[str, dict[str, float]]:
    """How well each doubt (of points not the last) tells shifted questions from own ones: name → auroc and fpr95."""
    positive = torch.cat([torch.zeros(len(own.labels)), torch.ones(len(shifted.labels))]).bool()
    of_own, of_shifted = doubts(own), doubts(shifted)
    scores = {name: torch.cat([of_own[name], of_shifted[name]]) for name in _known(own, shifted)}
    return {name: {"auroc": auroc(s, positive), "fpr95": fpr_at_tpr(s, positive)} for name, s in scores.items()}


@dataclass(frozen=True)
class Abstention:
    """Which questions are handed to a person.

    Attributes:
        handed_over: ``[N]`` booleans.
        doubt: ``[N]``, 1 − confidence.
        threshold: the largest doubt that is answered.
        accuracy: of the answered questions.
        accuracy_of_all: without handing over any.
    """

    handed_over: Tensor
    doubt: Tensor
    threshold: float
    accuracy: float
    accuracy_of_all: float

    def __str__(self) -> str:
        return (
            f"{int(self.handed_over.sum())} of {len(self.doubt)} questions go to a person (confidence below "
            f"{1 - self.threshold:.3f}); of the rest {self.accuracy:.3f} are right, of all {self.accuracy_of_all:.3f}"
        )


def abstain(predictions: Predictions, coverage: float = COVERAGE) -> Abstention:
    """Answer the most confident share of the questions and hand the others to a person.

    Equally confident questions are treated alike, so a few more than the share may be answered.

    Raises:
        ValueError: ``coverage`` is not above 0 and at most 1.
    """
    doubt, right = doubts(predictions)["confidence"], right_answers(predictions)
    threshold = float(doubt.sort().values[_count(len(doubt), coverage) - 1])
    kept = doubt <= threshold
    return Abstention(~kept, doubt, threshold, float(right[kept].double().mean()), float(right.double().mean()))


def _known(*predictions: Predictions) -> tuple[str, ...]:
    return DOUBTS if all(p.samples > 1 for p in predictions) else DOUBTS[:2]  # a point does not disagree with itself


def _count(total: int, share: float) -> int:
    if not 0 < share <= 1:
        raise ValueError(f"The share is {share}; expected a number above 0 and at most 1.")
    return max(1, round(share * total + 0.5 - 1e-9))


def _check(score: Tensor, flag: Tensor) -> None:
    if score.dim() != 1 or score.shape != flag.shape or flag.dtype != torch.bool or not len(score):
        got = f"{tuple(score.shape)} and {tuple(flag.shape)} of {flag.dtype}"
        raise ValueError(f"Expected one number and one truth value a question; got {got}.")
    if not score.isfinite().all():
        raise ValueError("A doubt is not finite.")
