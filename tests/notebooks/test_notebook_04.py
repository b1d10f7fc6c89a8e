"""The metrics that notebook 04 builds from their definitions equal the library's, on inputs that the notebook lacks."""

import math

import pytest
import torch
from cells import defined_in
from hypothesis import given, settings
from hypothesis import strategies as st

from ivon_lora_lite import accuracy, brier, ece, nll, reliability
from ivon_lora_lite import bootstrap_intervals

NOTEBOOK = "04_metrics.ipynb"
HAND = defined_in(
    NOTEBOOK,
    "accuracy_by_hand",
    "nll_by_hand",
    "brier_by_hand",
    "bins_by_hand",
    "ece_by_hand",
    "chance_ece",
    "simulate",
    "expected_log_loss",
    "expected_brier",
    "expected_error",
    "with_temperature",
    "fit_temperature",
    "bootstrap",
    "interval",
    "sign_test",
    torch=torch,
    math=math,
    ece=ece,
    nll=nll,
)


def random_predictions(seed: int, n: int, c: int, sharpness: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(n, c, generator=generator, dtype=torch.float64)
    return logits.softmax(-1), torch.randint(c, (n,), generator=generator)


predictions = st.builds(
    random_predictions, st.integers(0, 10_000), st.integers(1, 60), st.integers(2, 6), st.sampled_from([0.1, 1.0, 30.0])
)


@settings(max_examples=60, deadline=None)
@given(predictions, st.integers(1, 40))
def test_metrics_by_hand_equal_the_librarys(prediction, bins):
    probs, labels = prediction
    assert HAND["accuracy_by_hand"](probs, labels) == pytest.approx(float(accuracy(probs, labels)), abs=1e-12)
    assert HAND["nll_by_hand"](probs, labels) == pytest.approx(float(nll(probs, labels)), rel=1e-9)
    assert HAND["brier_by_hand"](probs, labels) == pytest.approx(float(brier(probs, labels)), abs=1e-9)
    assert HAND["ece_by_hand"](probs, labels, bins) == pytest.approx(float(ece(probs, labels, bins)), abs=1e-9)


@pytest.mark.parametrize("bins", [1, 5, 10])
def test_bins_by_hand_put_edges_where_the_library_does(bins):
    # confidences exactly on edges belong to the bin below: (lo, hi]
    edges = torch.linspace(0, 1, 11, dtype=torch.float64)[5:]
    probs, labels = torch.stack([edges, 1 - edges], -1), torch.tensor([0, 1, 0, 0, 1, 0])
    table = reliability(probs, labels, bins)
    for b, (n, right, total) in enumerate(HAND["bins_by_hand"](probs, labels, bins)):
        assert n == round(float(table.weight[b]) * len(labels))
        if n:
            assert right / n == pytest.approx(float(table.accuracy[b]))
            assert total / n == pytest.approx(float(table.confidence[b]))
    if bins == 10:  # (0.4, 0.5] holds the 0.5
        assert HAND["bins_by_hand"](probs[:1], labels[:1])[4][0] == 1


def test_nll_by_hand_stays_finite_where_the_library_does():
    probs, labels = torch.tensor([[1.0, 0.0], [0.25, 0.75]]), torch.tensor([1, 1])
    by_hand = HAND["nll_by_hand"](probs, labels)
    assert math.isfinite(by_hand) and by_hand == pytest.approx(float(nll(probs, labels)), rel=1e-6)


def test_chance_level_is_the_ece_of_calibrated_models_and_falls_with_the_root_of_n():
    probs, _ = random_predictions(0, 800, 4, 1.5)
    simulated = HAND["simulate"](probs, 800, bins=8, repeats=300)
    assert HAND["chance_ece"](probs, 8) == pytest.approx(float(simulated.mean()), rel=0.1)
    assert HAND["chance_ece"](probs.repeat(4, 1), 8) == pytest.approx(HAND["chance_ece"](probs, 8) / 2)
    assert HAND["chance_ece"](probs, 8) < HAND["chance_ece"](probs, 32)


@pytest.mark.parametrize("p", [0.02, 0.31, 0.5, 0.77])
def test_expected_scores_are_those_of_the_library_over_many_events(p):
    # an event of probability p, said to have probability q: 1000 predictions, of which p · 1000 are right
    right = round(1000 * p)
    labels = torch.tensor([0] * right + [1] * (1000 - right))
    for q in (0.1, 0.45, 0.9):
        probs = torch.tensor([[q, 1 - q]], dtype=torch.float64).expand(1000, 2)
        said = torch.tensor(q, dtype=torch.float64)
        assert float(HAND["expected_log_loss"](said, p)) == pytest.approx(float(nll(probs, labels)))
        assert float(HAND["expected_brier"](said, p)) == pytest.approx(float(brier(probs, labels)))
        assert float(HAND["expected_error"](said, p)) == pytest.approx(1 - float(accuracy(probs, labels)))


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_fitted_temperature_recovers_the_one_that_was_applied(temperature):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(20_000, 4, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    distorted = (temperature * logits).softmax(-1)  # calibrated again at exactly this temperature
    fitted = HAND["fit_temperature"](distorted, labels)
    assert fitted == pytest.approx(temperature, rel=0.05)
    best = float(nll(HAND["with_temperature"](distorted, fitted), labels))
    for factor in (0.98, 1.02):
        assert best < float(nll(HAND["with_temperature"](distorted, factor * fitted), labels))


def test_with_temperature_is_softmax_of_scaled_logits_and_keeps_the_answers():
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    scaled = HAND["with_temperature"](logits.softmax(-1), 2.5)
    assert torch.allclose(scaled, (logits / 2.5).softmax(-1))
    assert torch.equal(scaled.argmax(-1), logits.argmax(-1))


def test_bootstrap_by_hand_gives_the_librarys_intervals():
    probs, labels = random_predictions(3, 150, 4, 1.0)
    library = bootstrap_intervals(probs, labels)
    of_label = probs[torch.arange(150), labels]
    per_question = {
        "acc": (probs.argmax(-1) == labels).double(),
        "nll": -of_label.log(),
        "brier": probs.square().sum(-1) - 2 * of_label + 1,
    }
    for name, values in per_question.items():
        assert HAND["interval"](HAND["bootstrap"](values)) == pytest.approx(library[name], abs=1e-9)


@pytest.mark.parametrize("a, b, expected", [(0, 0, 1.0), (3, 3, 1.0), (1, 0, 1.0), (6, 0, 2 / 64), (8, 2, 112 / 1024)])
def test_sign_test_counts_coin_flips(a, b, expected):
    assert HAND["sign_test"](a, b) == HAND["sign_test"](b, a) == pytest.approx(expected)
