"""The metrics against hand-computed cases, independent numpy code, torchmetrics and each other."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from ivon_lora_lite import (
    accuracy,
    adaptive_ece,
    bootstrap_intervals,
    brier,
    ece,
    ece_floor,
    entropy,
    mutual_information,
    nll,
    reliability,
    score,
)

METRICS = {"acc": accuracy, "nll": nll, "ece": ece, "brier": brier}
each_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)

# Four questions worked out by hand: top probabilities 0.9, 0.75, 0.7, 0.4; right, wrong, right, right.
HAND = torch.tensor(
    [[0.9, 0.1, 0.0], [0.05, 0.75, 0.2], [0.2, 0.1, 0.7], [0.3, 0.4, 0.3]],
    dtype=torch.float64,
)
HAND_LABELS = torch.tensor([0, 2, 2, 1])


def random_case(*shape: int, choices: int = 4, seed: int = 0, sharp: float = 1.5, dtype=torch.float64):
    """Probabilities ``[*shape, choices]`` and labels ``[N]``, with N the last of ``shape``."""
    generator = torch.Generator().manual_seed(seed)
    probs = (sharp * torch.randn(*shape, choices, generator=generator, dtype=dtype)).softmax(-1)
    return probs, torch.randint(choices, (shape[-1],), generator=generator)


def sure(confidence: float, choices: int = 10, dtype=torch.float64) -> torch.Tensor:
    """One prediction ``[choices]`` whose top probability is exactly ``confidence``; the rest is spread evenly."""
    probs = torch.full((choices,), (1 - confidence) / (choices - 1), dtype=dtype)
    probs[0] = confidence
    return probs


def numpy_metrics(probs: torch.Tensor, labels: torch.Tensor, bins: int = 10) -> dict[str, float]:
    """The definitions, question by question and bin by bin, sharing no code with the library."""
    p, y = probs.double().numpy(), labels.numpy()
    truth = np.eye(p.shape[1])[y]
    top, right = p.max(1), p.argmax(1) == y
    error = 0.0
    for b in range(bins):
        inside = (top > b / bins) & (top <= (b + 1) / bins)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - top[inside].mean())
    of_label = (p * truth).sum(1)
    return {
        "acc": right.mean(),
        "nll": -np.log(of_label).mean(),
        "ece": error,
        "brier": ((p - truth) ** 2).sum(1).mean(),
    }


# --- hand-computed cases ---------------------------------------------------------------------------------------------


def test_accuracy_of_hand_computed_case():
    assert accuracy(HAND, HAND_LABELS).item() == pytest.approx(3 / 4)


def test_nll_of_hand_computed_case():
    # 0.9 · 0.2 · 0.7 · 0.4 are the probabilities of the right choices
    assert nll(HAND, HAND_LABELS).item() == pytest.approx(-math.log(0.9 * 0.2 * 0.7 * 0.4) / 4)


def test_brier_of_hand_computed_case():
    # 0.01+0.01+0,  0.0025+0.5625+0.64,  0.04+0.01+0.09,  0.09+0.36+0.09
    assert brier(HAND, HAND_LABELS).item() == pytest.approx((0.02 + 1.205 + 0.14 + 0.54) / 4)


def test_ece_of_hand_computed_case():
    # bins (0.3, 0.4]: right at 0.4; (0.6, 0.7]: right at 0.7; (0.7, 0.8]: wrong at 0.75; (0.8, 0.9]: right at 0.9
    assert ece(HAND, HAND_LABELS).item() == pytest.approx((0.6 + 0.3 + 0.75 + 0.1) / 4)


def test_ece_averages_within_a_bin_before_taking_the_gap():
    # 0.72 right and 0.78 wrong share a bin: |0.5 - 0.75| over both, not (0.28 + 0.78) / 2
    probs = torch.tensor([[0.72, 0.28], [0.78, 0.22]], dtype=torch.float64)
    assert ece(probs, torch.tensor([0, 1])).item() == pytest.approx(0.25)


def test_ece_with_one_bin_is_the_gap_of_the_means():
    probs, labels = random_case(50)
    gap = abs(accuracy(probs, labels) - probs.amax(-1).mean())
    assert ece(probs, labels, bins=1).item() == pytest.approx(gap.item())


def test_certain_and_right_is_perfect_and_certain_and_wrong_is_the_worst_there_is():
    probs, right, wrong = torch.eye(3, dtype=torch.float64), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    assert {name: f(probs, right).item() for name, f in METRICS.items()} == {"acc": 1, "nll": 0, "ece": 0, "brier": 0}
    assert (accuracy(probs, wrong), ece(probs, wrong), brier(probs, wrong)) == (0, 1, 2)


def test_brier_is_not_divided_by_the_number_of_choices():
    uniform = torch.full((1, 4), 0.25, dtype=torch.float64)
    assert brier(uniform, torch.tensor([3])).item() == pytest.approx(0.75**2 + 3 * 0.25**2)


def test_nll_is_in_nats():
    assert nll(torch.full((5, 4), 0.25), torch.zeros(5, dtype=torch.long)).item() == pytest.approx(math.log(4))


def test_entropy_of_uniform_is_log_of_the_choices_and_of_certainty_zero():
    probs = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]], dtype=torch.float64)
    assert entropy(probs).tolist() == pytest.approx([math.log(4), 0, math.log(2)])


# --- other implementations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bins", [1, 7, 10, 15])
def test_all_metrics_agree_with_plain_numpy(seed, bins):
    probs, labels = random_case(200, choices=5, seed=seed)
    expected = numpy_metrics(probs, labels, bins)
    found = {name: f(probs, labels).item() for name, f in METRICS.items()} | {"ece": ece(probs, labels, bins).item()}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("choices", [2, 4, 5])
@pytest.mark.parametrize("seed", range(3))
def test_accuracy_and_ece_agree_with_torchmetrics(choices, seed):
    probs, labels = random_case(300, choices=choices, seed=seed, dtype=torch.float32)
    theirs_acc = MulticlassAccuracy(num_classes=choices, average="micro")(probs, labels)
    theirs_ece = MulticlassCalibrationError(num_classes=choices, n_bins=10, norm="l1")(probs, labels)
    assert accuracy(probs, labels).item() == pytest.approx(theirs_acc.item())
    assert ece(probs, labels).item() == pytest.approx(theirs_ece.item(), abs=1e-6)


# --- leading dimensions, dtypes, layouts -----------------------------------------------------------------------------


@each_metric
def test_leading_dimensions_equal_a_loop(metric):
    probs, labels = random_case(3, 2, 20)  # [S, T, N, C]
    found = metric(probs, labels)
    assert found.shape == (3, 2)
    for s in range(3):
        for t in range(2):
            assert found[s, t].item() == pytest.approx(metric(probs[s, t], labels).item())


def test_reliability_of_leading_dimensions_equals_a_loop():
    probs, labels = random_case(3, 2, 20)
    found = reliability(probs, labels, bins=5)
    for s in range(3):
        for t in range(2):
            one = reliability(probs[s, t], labels, bins=5)
            for name in ("accuracy", "confidence", "weight"):
                torch.testing.assert_close(getattr(found, name)[s, t], getattr(one, name), equal_nan=True)


def test_entropy_and_mutual_information_of_leading_dimensions_equal_a_loop():
    probs, _ = random_case(3, 2, 7)
    assert entropy(probs).shape == (3, 2, 7)
    assert entropy(probs)[2, 1, 4].item() == pytest.approx(entropy(probs[2, 1, 4]).item())
    assert mutual_information(probs).shape == (2, 7)
    assert mutual_information(probs)[1, 4].item() == pytest.approx(mutual_information(probs[:, 1, 4]).item())


@each_metric
def test_metrics_accept_a_transposed_view_and_leave_the_input_alone(metric):
    probs, labels = random_case(6, 20)
    view = probs.transpose(0, 1).contiguous().transpose(0, 1)  # same values, other strides
    before = view.clone()
    torch.testing.assert_close(metric(view, labels), metric(probs, labels))
    assert torch.equal(view, before)


@each_metric
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_metrics_keep_the_dtype_of_the_probabilities(metric, dtype):
    probs, labels = random_case(40, dtype=dtype)
    assert metric(probs, labels).dtype == dtype


@each_metric
def test_choices_padded_with_minus_infinity_change_nothing(metric):
    # questions with fewer choices than the widest one carry logits of -inf, so probability 0
    logits = torch.randn(2, 30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    padded = torch.cat([logits, torch.full((2, 30, 2), -math.inf, dtype=torch.float64)], -1)
    labels = torch.arange(30) % 3
    torch.testing.assert_close(metric(padded.softmax(-1), labels), metric(logits.softmax(-1), labels))


def test_padded_choices_change_neither_entropy_nor_mutual_information():
    probs, _ = random_case(4, 10)
    padded = torch.cat([probs, torch.zeros(4, 10, 2, dtype=probs.dtype)], -1)
    torch.testing.assert_close(entropy(padded), entropy(probs))
    torch.testing.assert_close(mutual_information(padded), mutual_information(probs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_probability_of_the_right_label_is_large_but_finite(dtype):
    value = nll(torch.tensor([[1.0, 0.0]], dtype=dtype), torch.tensor([1])).item()
    assert value == pytest.approx(-math.log(torch.finfo(dtype).tiny), rel=1e-6)
    assert math.isfinite(value)


@pytest.mark.parametrize("metric", [nll, brier, ece], ids=["nll", "brier", "ece"])
def test_nan_probabilities_are_not_hidden(metric):
    # a model that diverged must not look well calibrated
    probs = torch.tensor([[math.nan, math.nan], [0.9, 0.1]])
    assert not math.isfinite(metric(probs, torch.tensor([0, 0])).item())


# --- reliability -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tenths", range(2, 11))
def test_a_confidence_exactly_on_an_edge_lands_in_the_lower_bin(tenths, dtype):
    # bins are (lo, hi], so that 0.2 is in (0.1, 0.2] and 1.0 in (0.9, 1.0]
    weight = reliability(sure(tenths / 10, dtype=dtype)[None], torch.tensor([0])).weight
    assert weight.nonzero().flatten().tolist() == [tenths - 1]


def test_a_confidence_just_above_an_edge_lands_in_the_upper_bin():
    above = math.nextafter(0.2, 1)
    assert reliability(sure(above)[None], torch.tensor([0])).weight[2] == 1


@pytest.mark.parametrize("confidence", [0.0, 0.05, 0.1])
def test_confidences_on_and_below_the_first_edge_land_in_the_first_bin(confidence):
    # 20 choices can have a top probability of 0.05; 0 happens only for a row without any choice
    table = reliability(torch.full((1, 20), confidence, dtype=torch.float64), torch.tensor([0]))
    assert table.weight[0] == 1
    assert table.confidence[0].item() == confidence


def test_reliability_of_hand_computed_case():
    table = reliability(HAND, HAND_LABELS, bins=5)  # 0.4 | 0.75, 0.7 | 0.9
    assert table.weight.tolist() == [0, 0.25, 0, 0.5, 0.25]
    assert table.accuracy[[1, 3, 4]].tolist() == [1, 0.5, 1]
    assert table.confidence[[1, 3, 4]].tolist() == pytest.approx([0.4, 0.725, 0.9])


def test_empty_bins_are_nan_with_weight_zero_and_weights_sum_to_one():
    probs, labels = random_case(3, 40)
    table = reliability(probs, labels)
    empty = table.weight == 0
    assert empty[:, :2].all()  # the top one of four choices is at least 0.25
    assert torch.equal(table.accuracy.isnan(), empty)
    assert torch.equal(table.confidence.isnan(), empty)
    torch.testing.assert_close(table.weight.sum(-1), torch.ones(3, dtype=torch.float64))


def test_reliability_adds_up_to_the_overall_accuracy_and_confidence():
    probs, labels = random_case(80)
    table = reliability(probs, labels, bins=7)
    assert (table.weight * table.accuracy).nansum().item() == pytest.approx(accuracy(probs, labels).item())
    assert (table.weight * table.confidence).nansum().item() == pytest.approx(probs.amax(-1).mean().item())


# --- mutual information ----------------------------------------------------------------------------------------------


def test_mutual_information_of_equal_draws_is_zero():
    one, _ = random_case(6)
    torch.testing.assert_close(
        mutual_information(one.expand(5, -1, -1)), torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_mutual_information_of_two_opposite_certain_draws_is_log_two():
    draws = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # [S, N, C]
    assert mutual_information(draws).item() == pytest.approx(math.log(2))


def test_mutual_information_is_at_most_the_entropy_of_the_mean():
    probs, _ = random_case(5, 30)
    information = mutual_information(probs)
    assert (information > 0).all()
    assert (information < entropy(probs.mean(0))).all()


# --- bootstrap -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_intervals_contain_the_estimates(seed):
    probs, labels = random_case(60, seed=seed)
    for name, (low, high) in bootstrap_intervals(probs, labels, resamples=300).items():
        assert low <= METRICS[name](probs, labels).item() <= high, name
        assert low < high, name


def test_intervals_agree_with_resampling_by_index():
    # the library resamples by weights and never copies a question; plain resampling must give the same quantiles
    probs, labels = random_case(60)
    found = bootstrap_intervals(probs, labels, resamples=3000)
    rng = np.random.default_rng(1)
    rows = [torch.from_numpy(rng.integers(60, size=60)) for _ in range(3000)]
    samples = [numpy_metrics(probs[i], labels[i]) for i in rows]
    for name, (low, high) in found.items():
        expected_low, expected_high = np.quantile([s[name] for s in samples], [0.025, 0.975])
        if name == "ece":  # recentred on the estimate, so only the width can be compared
            assert high - low == pytest.approx(expected_high - expected_low, rel=0.15)
        else:
            assert (low, high) == pytest.approx((expected_low, expected_high), abs=0.1 * (high - low)), name


def test_intervals_shrink_with_the_square_root_of_the_number_of_questions():
    probs, labels = random_case(50)
    few = bootstrap_intervals(probs, labels, resamples=500)
    many = bootstrap_intervals(probs.repeat(9, 1), labels.repeat(9), resamples=500)
    for name in ("acc", "nll", "brier"):
        assert (many[name][1] - many[name][0]) / (few[name][1] - few[name][0]) == pytest.approx(1 / 3, abs=0.07)
    assert many["ece"][1] - many["ece"][0] < few["ece"][1] - few["ece"][0]


def test_a_lower_level_gives_a_nested_interval():
    probs, labels = random_case(50)
    narrow, wide = (bootstrap_intervals(probs, labels, level=level, resamples=200) for level in (0.5, 0.99))
    for name in METRICS:
        assert wide[name][0] < narrow[name][0] < narrow[name][1] < wide[name][1]


def test_intervals_are_reproducible_by_seed_and_ignore_the_global_generator():
    probs, labels = random_case(50)
    torch.manual_seed(1)
    first = bootstrap_intervals(probs, labels, resamples=50, seed=7)
    state = torch.get_rng_state()
    assert bootstrap_intervals(probs, labels, resamples=50, seed=7) == first
    assert bootstrap_intervals(probs, labels, resamples=50, seed=8) != first
    assert torch.equal(torch.get_rng_state(), state)


def test_intervals_cover_the_true_values_as_often_as_they_say():
    # Two choices; the top probability p is uniform on (1/2, 1) and right with probability p. Then the true accuracy is
    # 3/4, the true NLL E[H(p)] = 1/2 nat and the true Brier score E[2p(1 - p)] = 1/3.
    truth = {"acc": 3 / 4, "nll": 1 / 2, "brier": 1 / 3}
    generator = torch.Generator().manual_seed(0)
    repetitions, covered = 300, dict.fromkeys(truth, 0)
    for seed in range(repetitions):
        top = 0.5 + torch.rand(100, generator=generator, dtype=torch.float64) / 2
        labels = (torch.rand(100, generator=generator, dtype=torch.float64) > top).long()
        found = bootstrap_intervals(torch.stack([top, 1 - top], -1), labels, level=0.9, resamples=200, seed=seed)
        for name, value in truth.items():
            covered[name] += found[name][0] <= value <= found[name][1]
    for name, count in covered.items():  # 0.9 ± four standard errors
        assert 0.83 <= count / repetitions <= 0.97, (name, count / repetitions)


@pytest.mark.parametrize(
    ("right_at", "wrong_at"),
    [(0.6, 0.9), (0.8, 0.75)],
    ids=["two bins with opposite gaps", "one bin and its upper edge"],
)
def test_the_interval_of_the_ece_is_as_wide_as_plain_resampling_says(right_at, wrong_at):
    probs = torch.stack([sure(right_at)] * 40 + [sure(wrong_at)] * 40)
    labels = torch.tensor([0] * 40 + [1] * 40)
    low, high = bootstrap_intervals(probs, labels, resamples=1000)["ece"]
    rng = np.random.default_rng(1)
    rows = [torch.from_numpy(rng.integers(80, size=80)) for _ in range(1000)]
    expected = np.quantile([numpy_metrics(probs[i], labels[i])["ece"] for i in rows], [0.025, 0.975])
    assert high - low == pytest.approx(expected[1] - expected[0], rel=0.2)


def confident(n, gap, generator):
    """Binary predictions with confidences from 0.6 to 0.95, whose true accuracy is ``gap`` below them: ECE = gap."""
    top = 0.6 + 0.35 * torch.rand(n, generator=generator, dtype=torch.float64)
    right = torch.rand(n, generator=generator, dtype=torch.float64) < top - gap
    return torch.stack([top, 1 - top], 1), (~right).long()


@pytest.mark.slow
@pytest.mark.parametrize("gap", [0.0, 0.03, 0.06, 0.12])
def test_the_interval_of_the_ece_holds_the_true_value_as_often_as_it_says(gap):
    """Without the correction it holds 0 for a calibrated model in 0 to 5 of 100 cases."""
    generator, held, cases = torch.Generator().manual_seed(3), 0, 150
    for case in range(cases):
        low, high = bootstrap_intervals(*confident(200, gap, generator), resamples=200, seed=case)["ece"]
        held += low <= gap + 1e-9 and gap <= high + 1e-9
    assert held / cases > 0.88


def test_the_floor_of_the_ece_is_what_a_calibrated_model_shows():
    generator = torch.Generator().manual_seed(0)
    found = [float(ece(*confident(150, 0.0, generator))) for _ in range(400)]
    floors = np.array([ece_floor(confident(150, 0.0, generator)[0]) for _ in range(20)])
    mean, high = floors.mean(0)
    assert mean == pytest.approx(np.mean(found), rel=0.05)
    assert high == pytest.approx(np.quantile(found, 0.95), rel=0.1)
    assert ece_floor(confident(2400, 0.0, generator)[0])[0] < mean / 3  # it falls like 1/√N
    assert ece_floor(confident(150, 0.0, generator)[0], bins=15)[0] > mean


def test_the_adaptive_ece_has_bins_of_equally_many_questions():
    probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1])
    by_hand = (abs((1 - 0.7) + (0 - 0.6)) + abs((1 - 0.9) + (0 - 0.8))) / 4  # two bins of two
    assert float(adaptive_ece(probs, labels, 2)) == pytest.approx(by_hand)
    many = torch.stack([probs, probs.flip(1)])
    assert adaptive_ece(many, labels, 2).tolist() == [
        pytest.approx(float(adaptive_ece(each, labels, 2))) for each in many
    ]
    with pytest.raises(ValueError, match="bins is 5"):
        adaptive_ece(probs, labels, 5)


def test_what_is_no_probability_is_refused():
    labels = torch.tensor([0, 1])
    for wrong in ([[2.0, -1.0], [0.5, 0.5]], [[0.5, 0.4], [0.5, 0.5]], [[math.nan, 1.0], [0.5, 0.5]]):
        with pytest.raises(ValueError, match="probabilities"):
            score(torch.tensor(wrong), labels)


def test_another_number_of_bins_goes_through():
    probs, labels = random_case(60)
    fifteen = score(probs, labels, bins=15)
    assert fifteen["ece"] == pytest.approx(float(ece(probs.double(), labels, 15))) and fifteen.bins == 15
    assert f"(floor {fifteen.floor:.3f})" in str(fifteen) and "ECE" in str(fifteen)


def test_the_interval_of_the_ece_never_goes_below_zero():
    probs = torch.full((100, 2), 0.5)
    labels = torch.arange(100) % 2  # half right at confidence one half: the ECE is 0
    low, high = bootstrap_intervals(probs, labels, resamples=200)["ece"]
    assert low == 0 < high


def test_intervals_of_float32_equal_those_of_float64():
    probs, labels = random_case(50, dtype=torch.float32)
    single, double = (bootstrap_intervals(p, labels, resamples=50) for p in (probs, probs.double()))
    assert single == double


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [*METRICS.values(), reliability, bootstrap_intervals])
@pytest.mark.parametrize(
    ("probs", "labels"),
    [
        (torch.rand(4), torch.zeros(4, dtype=torch.long)),
        (torch.rand(3, 4), torch.zeros(4, dtype=torch.long)),
        (torch.rand(3, 4), torch.zeros(3, 1, dtype=torch.long)),
        (torch.rand(3, 4), torch.tensor(0)),
        (torch.rand(3, 2, 4), torch.zeros(3, dtype=torch.long)),
    ],
    ids=["no questions dimension", "too many labels", "labels 2-D", "one label", "questions in the wrong place"],
)
def test_wrong_shapes_are_refused_with_both_shapes(function, probs, labels):
    with pytest.raises(ValueError, match=r"probs has shape \(.*\) and labels \(.*\); expected \[\.\.\., N, C\] and"):
        function(probs, labels)


@pytest.mark.parametrize("function", [*METRICS.values(), reliability, bootstrap_intervals])
def test_no_questions_at_all_are_refused(function):
    with pytest.raises(ValueError, match="no questions"):
        function(torch.rand(0, 4), torch.zeros(0, dtype=torch.long))


def test_bootstrap_refuses_leading_dimensions():
    # its result is one interval per metric; the alternative is an obscure error about tensor sizes from deep inside
    with pytest.raises(ValueError, match=r"probs has shape \(2, 5, 4\)"):
        bootstrap_intervals(*random_case(2, 5), resamples=10)


@pytest.mark.parametrize("intervals", [True, False])
def test_scores_are_of_one_prediction(intervals):
    with pytest.raises(ValueError, match=r"shape \(2, 5, 4\); expected \[N, C\]"):
        score(*random_case(2, 5), intervals=intervals)


@pytest.mark.parametrize("function", [ece, reliability])
@pytest.mark.parametrize("bins", [0, -3])
def test_fewer_than_one_bin_is_refused(function, bins):
    with pytest.raises(ValueError, match=f"bins is {bins}"):
        function(HAND, HAND_LABELS, bins=bins)


@pytest.mark.parametrize("level", [0, 1, -0.1, 1.5, 95, math.nan])
def test_a_level_outside_zero_and_one_is_refused(level):
    with pytest.raises(ValueError, match=f"level is {level}"):
        bootstrap_intervals(HAND, HAND_LABELS, level=level)


# --- properties ------------------------------------------------------------------------------------------------------


@st.composite
def predictions(draw):
    """Probabilities ``[N, C]`` as ratios of small integers, so that ties, zeros and bin edges are common."""
    questions, choices = draw(st.integers(1, 12)), draw(st.integers(2, 5))
    row = st.lists(st.integers(0, 10), min_size=choices, max_size=choices).filter(any)
    weights = torch.tensor(draw(st.lists(row, min_size=questions, max_size=questions)), dtype=torch.float64)
    labels = draw(st.lists(st.integers(0, choices - 1), min_size=questions, max_size=questions))
    return weights / weights.sum(-1, keepdim=True), torch.tensor(labels)


few = settings(max_examples=60, deadline=None, database=None, derandomize=True)


@few
@given(predictions(), st.integers(1, 20))
def test_metrics_stay_within_their_bounds(case, bins):
    tolerance = 1e-12
    assert 0 <= accuracy(*case) <= 1
    assert -tolerance <= ece(*case, bins=bins) <= 1 + tolerance
    assert -tolerance <= brier(*case) <= 2 + tolerance
    assert 0 <= nll(*case) < math.inf


@few
@given(predictions(), st.randoms(use_true_random=False))
def test_the_order_of_the_questions_does_not_matter(case, random):
    probs, labels = case
    order = random.sample(range(len(labels)), len(labels))
    for name, metric in METRICS.items():
        assert metric(probs[order], labels[order]).item() == pytest.approx(metric(probs, labels).item()), name


@few
@given(predictions())
def test_brier_and_nll_do_not_depend_on_the_order_of_the_choices(case):
    probs, labels = case
    for metric in (nll, brier):
        flipped = metric(probs.flip(-1), probs.shape[-1] - 1 - labels)
        assert flipped.item() == pytest.approx(metric(probs, labels).item())


@few
@given(predictions())
def test_reliability_weights_sum_to_one_and_every_confidence_is_inside_its_bin(case):
    table = reliability(*case)
    assert table.weight.sum().item() == pytest.approx(1)
    for b, (confidence, weight) in enumerate(zip(table.confidence.tolist(), table.weight.tolist(), strict=True)):
        assert math.isnan(confidence) == (weight == 0)
        if weight:
            assert b / 10 - 1e-12 < confidence <= (b + 1) / 10 + 1e-12


@few
@given(predictions())
def test_entropy_lies_between_zero_and_log_of_the_choices(case):
    probs, _ = case
    assert (entropy(probs) >= -1e-12).all()
    assert (entropy(probs) <= math.log(probs.shape[-1]) + 1e-12).all()


@few
@given(predictions())
def test_mutual_information_is_zero_for_repeated_draws_and_never_negative(case):
    probs, _ = case
    assert mutual_information(torch.stack([probs, probs])).abs().max() < 1e-12
    assert (mutual_information(torch.stack([probs, probs.flip(-1)])) > -1e-12).all()
