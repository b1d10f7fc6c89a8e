"""Selective prediction and detection, against torchmetrics, brute force and numbers by hand."""

from itertools import permutations

import pytest
import torch
from torchmetrics.functional.classification import binary_auroc, binary_roc

from ivon_lora_lite import Predictions
from ivon_lora_lite.evaluation import DOUBTS, abstain, doubts, error_detection, risk_coverage, shift_detection
from ivon_lora_lite.evaluation.decisions import accuracy_at, aurc, auroc, fpr_at_tpr


def some(n=200, seed=0, ties=False):
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(n, generator=generator, dtype=torch.float64)
    positive = torch.rand(n, generator=generator) < 0.3 + 0.4 * score
    return (score * 10).round() / 10 if ties else score, positive


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_and_fpr_are_those_of_torchmetrics(ties):
    score, positive = some(ties=ties)
    assert auroc(score, positive) == pytest.approx(float(binary_auroc(score, positive.long())), abs=1e-6)
    fpr, tpr, _ = binary_roc(score, positive.long())
    assert fpr_at_tpr(score, positive) == pytest.approx(float(fpr[tpr >= 0.95][0]), abs=1e-6)


def test_auroc_by_hand():
    score = torch.tensor([0.1, 0.4, 0.4, 0.9])
    assert auroc(score, torch.tensor([False, False, True, True])) == (1 + 0.5 + 1 + 1) / 4
    assert auroc(score, torch.tensor([True] * 4)) != auroc(score, torch.tensor([True] * 4))  # NaN


def test_risk_coverage_with_ties_is_the_average_over_orders():
    doubt, right = torch.tensor([0.2, 0.5, 0.5, 0.5, 0.9]), torch.tensor([True, False, True, False, True])
    curves = []
    for order in permutations((1, 2, 3)):
        wrong = (~right)[[0, *order, 4]].double()
        curves.append(wrong.cumsum(0) / torch.arange(1, 6))
    coverage, risk = risk_coverage(doubt, right)
    torch.testing.assert_close(risk, torch.stack(curves).mean(0))
    assert coverage.tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert aurc(doubt, right) == pytest.approx(float(risk.mean()))
    assert accuracy_at(doubt, right, 0.2) == 1.0 and accuracy_at(doubt, right, 1.0) == pytest.approx(0.6)


def test_perfect_doubt_has_no_risk_until_the_errors_come():
    right = torch.arange(10) < 7
    _, risk = risk_coverage(torch.arange(10.0), right)
    assert risk[:7].max() == 0 and risk[-1] == pytest.approx(0.3)


def predictions(seed=0, n=50, draws=3, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(draws, n, 4, generator=generator)
    return Predictions(logits, torch.randint(4, (n,), generator=generator))


def test_doubts_of_one_point_have_no_mutual_information():
    one = predictions(draws=1)
    assert set(doubts(one)) == set(DOUBTS)
    assert doubts(one)["mutual_information"].abs().max() < 1e-6
    torch.testing.assert_close(doubts(one)["confidence"], 1 - one.ensemble().double().max(-1).values)
    assert set(error_detection(predictions())) == set(DOUBTS) == set(shift_detection(predictions(), predictions(1)))
    points = list(DOUBTS[:2])
    assert list(error_detection(one)) == list(shift_detection(one, predictions())) == points
    assert list(shift_detection(predictions(), one)) == points


def test_confident_answers_are_in_order_too():
    generator = torch.Generator().manual_seed(0)
    gap = torch.rand(500, generator=generator) * 60
    labels = (torch.rand(500, generator=generator) > torch.sigmoid(gap / 8)).long()
    logits = torch.stack([gap, torch.zeros(500)], -1)[None]
    made = [Predictions(logits / temperature, labels) for temperature in (1, 4)]
    areas = [aurc(doubts(p)["confidence"], p.ensemble().argmax(-1) == labels) for p in made]
    assert areas[0] == areas[1]
    assert len(doubts(made[0])["confidence"].unique()) == len(gap.unique())
    assert made[0].probabilities.dtype == torch.float64


def test_shifted_questions_are_told_apart_by_what_they_are():
    sure, unsure = predictions(scale=20.0), predictions(scale=0.1, seed=1)
    found = shift_detection(sure, unsure)["confidence"]
    assert found["auroc"] > 0.95 and found["fpr95"] < 0.3
    same = shift_detection(sure, sure)["entropy"]
    assert same["auroc"] == pytest.approx(0.5)


def test_those_handed_over_are_the_least_confident():
    p = predictions()
    decision = abstain(p, 0.8)
    assert int(decision.handed_over.sum()) == 10
    assert decision.doubt[decision.handed_over].min() > decision.doubt[~decision.handed_over].max()
    right = p.ensemble().argmax(-1) == p.labels
    assert decision.accuracy == pytest.approx(float(right[~decision.handed_over].double().mean()))
    assert "10 of 50 questions go to a person" in str(decision)
    assert not abstain(p, 1.0).handed_over.any()
    for wrong in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="The share is"):
            abstain(p, wrong)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="one truth value a question"):
        auroc(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="not finite"):
        auroc(torch.tensor([0.0, float("nan")]), torch.tensor([True, False]))
