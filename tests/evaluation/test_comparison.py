"""Differences between two methods on the same questions, and their intervals."""

import numpy as np
import pytest
import torch

from ivon_lora_lite import Predictions, ece, ece_floor, paired_differences


def of(*probabilities, labels) -> Predictions:
    """Predictions of one draw with these probabilities."""
    return Predictions(torch.tensor(probabilities, dtype=torch.float64).log()[None], torch.tensor(labels))


def test_paired_differences_by_hand():
    labels = [0, 1, 0]
    adamw = of([0.8, 0.2], [0.6, 0.4], [0.3, 0.7], labels=labels)  # right, wrong, wrong
    ivon = of([0.5, 0.5], [0.2, 0.8], [0.6, 0.4], labels=labels)  # right (the first of a tie), right, right
    found = paired_differences(adamw, ivon)
    assert found["acc"]["difference"] == pytest.approx(2 / 3)
    by_question = [np.log(0.8 / 0.5), np.log(0.4 / 0.8), np.log(0.3 / 0.6)]  # −log p(IVON) + log p(AdamW)
    assert found["nll"]["difference"] == pytest.approx(np.mean(by_question))
    # 3 of 27 resamples hold one question alone, so the extremes are within the 95 % interval
    assert found["nll"]["interval"] == pytest.approx([min(by_question), max(by_question)])
    assert found["acc"]["interval"] == pytest.approx([0, 1])


def test_paired_differences_average_the_draws_before_they_compare():
    labels = torch.tensor([0])
    two = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]], dtype=torch.float64).log()
    found = paired_differences(of([0.7, 0.3], labels=[0]), Predictions(two, labels))
    assert found["nll"]["difference"] == pytest.approx(0, abs=1e-12)


def test_what_is_the_same_for_every_question_has_no_spread():
    labels = [0, 1, 0, 1]
    a = of(*[[0.6, 0.4], [0.4, 0.6]] * 2, labels=labels)
    b = of(*[[0.9, 0.1], [0.1, 0.9]] * 2, labels=labels)
    found = paired_differences(a, b)
    assert found["nll"]["interval"] == pytest.approx([np.log(0.6 / 0.9)] * 2)
    assert found["acc"] == {"difference": 0.0, "interval": [0.0, 0.0]}


def test_paired_intervals_are_those_of_a_plain_bootstrap():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=60)
    right = rng.uniform(0.2, 0.9, size=(2, 60))

    def predictions(p):
        return of(*[[q, 1 - q] if y == 0 else [1 - q, q] for q, y in zip(p, labels)], labels=labels.tolist())

    found = paired_differences(predictions(right[0]), predictions(right[1]))
    gaps = {"acc": (right[1] > 0.5) * 1.0 - (right[0] > 0.5), "nll": np.log(right[0]) - np.log(right[1])}
    for name, gap in gaps.items():
        low, high = np.quantile(gap[rng.integers(60, size=(4000, 60))].mean(1), [0.025, 0.975])
        assert found[name]["interval"] == pytest.approx([low, high], abs=0.15 * (high - low))


# --- several seeds, calibration, coverage -----------------------------------------------------------------------------


def drawn(right: np.ndarray, rng: np.random.Generator) -> Predictions:
    """Answers to two-choice questions whose first choice is right with these probabilities; predictions say so."""
    labels = (rng.uniform(size=len(right)) > right).astype(int)
    return of(*np.stack([right, 1 - right], -1).tolist(), labels=labels.tolist())


def test_seeds_are_averaged_question_by_question_before_questions_are_resampled():
    labels = [0, 0]
    a = [of([0.5, 0.5], [0.5, 0.5], labels=labels)] * 2
    b = [of([0.8, 0.2], [0.4, 0.6], labels=labels), of([0.4, 0.6], [0.8, 0.2], labels=labels)]
    found = paired_differences(a, b)
    want = np.log(0.5) - (np.log(0.8) + np.log(0.4)) / 2  # the same for both questions, so resampling changes nothing
    assert found["nll"]["difference"] == pytest.approx(want)
    assert found["nll"]["interval"] == pytest.approx([want, want])
    assert paired_differences(a[:1], b[:1]) == paired_differences(a[0], b[0])


def test_of_ece_the_excess_over_the_floor_is_compared():
    rng = np.random.default_rng(0)
    a = drawn(rng.uniform(0.5, 1, 200), rng)
    b = Predictions(2 * a.logits, a.labels)
    excess = [float(ece(p.ensemble(), p.labels)) - ece_floor(p.ensemble())[0] for p in (a, b)]
    found = paired_differences(a, b)["ece"]
    assert found["difference"] == pytest.approx(excess[1] - excess[0])
    assert found["interval"][0] < found["difference"] < found["interval"][1]
    back = paired_differences(b, a)["ece"]
    assert back["difference"] == pytest.approx(-found["difference"])
    assert back["interval"] == pytest.approx([-x for x in reversed(found["interval"])], abs=1e-3)  # a lower median


def test_intervals_hold_the_true_difference_about_as_often_as_they_say():
    """Answers of known probability; b is more confident than the truth, so the expected difference is known."""
    rng, held, trials = np.random.default_rng(1), 0, 200
    right = rng.uniform(0.5, 0.95, 1_000_000)
    bold = 1 / (1 + ((1 - right) / right) ** 1.5)
    truth = (right * np.log(right / bold) + (1 - right) * np.log((1 - right) / (1 - bold))).mean()
    for _ in range(trials):
        a = drawn(rng.uniform(0.5, 0.95, 200), rng)
        b = Predictions(1.5 * a.logits, a.labels)
        low, high = paired_differences(a, b, resamples=400)["nll"]["interval"]
        held += low <= truth <= high
    assert 0.88 <= held / trials <= 0.99  # 0.95, less a little for 200 questions, with a standard error of 0.016


def test_what_cannot_be_paired_is_refused():
    one, other = of([0.5, 0.5], labels=[0]), of([0.5, 0.5], labels=[1])
    with pytest.raises(ValueError, match="same questions"):
        paired_differences(one, other)
    for a, b, counts in (([], [], "0 and 0"), ([one], [], "1 and 0"), ([one, one], one, "2 and 1")):
        with pytest.raises(ValueError, match=counts):
            paired_differences(a, b)
