"""Notebook 04: the metrics that it builds equal the library's on other inputs, and what it says of recorded runs."""

import json
import math

import ipywidgets
import plotly.graph_objects as go
import pytest
import torch
from cells import NOTEBOOKS, defined_in
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from ivon_lora_lite import (
    Predictions,
    accuracy,
    bootstrap_intervals,
    brier,
    ece,
    ece_floor,
    nll,
    paired_differences,
    reliability,
)
from ivon_lora_lite.evaluation import auroc, doubts, right_answers
from ivon_lora_lite.plots import COLORS, INK, LAYOUT
from ivon_lora_lite.studies import by_length

NOTEBOOK = "04_metrics.ipynb"
HAND = defined_in(
    NOTEBOOK,
    "accuracy_by_hand",
    "nll_by_hand",
    "brier_by_hand",
    "bins_by_hand",
    "ece_by_hand",
    "floor_by_hand",
    "expected_nll",
    "expected_brier",
    "expected_error",
    "with_temperature",
    "fit_temperature",
    "bootstrap",
    "auroc_by_hand",
    torch=torch,
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
    rows = {round(float(high) * bins) - 1: row for _, high, *row in HAND["bins_by_hand"](probs, labels, bins)}
    for b in range(bins):
        n, right, confidence = rows.get(b, (0, None, None))
        assert n == round(float(table.weight[b]) * len(labels))
        if n:
            assert right == pytest.approx(float(table.accuracy[b]))
            assert confidence == pytest.approx(float(table.confidence[b]))
    if bins == 10:  # (0.4, 0.5] holds the 0.5
        assert rows[4][0] == 1


def test_the_floor_by_hand_is_the_librarys_and_falls_with_the_root_of_n():
    probs, _ = random_predictions(0, 800, 4, 1.5)
    floor = HAND["floor_by_hand"]
    for bins in (8, 32):
        assert floor(probs, bins) == pytest.approx(ece_floor(probs, bins)[0], rel=0.1)
    assert floor(probs.repeat(4, 1), 8) == pytest.approx(floor(probs, 8) / 2, rel=0.1)
    assert floor(probs, 8) < floor(probs, 32)


@pytest.mark.parametrize("p", [0.02, 0.31, 0.5, 0.77])
def test_expected_scores_are_those_of_the_library_over_many_events(p):
    # an event of probability p, said to have probability q: 1000 predictions, of which p · 1000 are right
    right = round(1000 * p)
    labels = torch.tensor([0] * right + [1] * (1000 - right))
    for q in (0.1, 0.45, 0.9):
        probs = torch.tensor([[q, 1 - q]], dtype=torch.float64).expand(1000, 2)
        said = torch.tensor(q, dtype=torch.float64)
        assert float(HAND["expected_nll"](said, p)) == pytest.approx(float(nll(probs, labels)))
        assert float(HAND["expected_brier"](said, p)) == pytest.approx(float(brier(probs, labels)))
        assert float(HAND["expected_error"](said, p)) == pytest.approx(1 - float(accuracy(probs, labels)))


def test_the_slider_of_the_true_probability_moves_curves_and_dots():
    content = json.loads((NOTEBOOKS / NOTEBOOK).read_text("utf8"))
    (code,) = (text for c in content["cells"] if "true_p =" in (text := "".join(c["source"])))
    given = {"torch": torch, "go": go, "ipywidgets": ipywidgets, "INK": INK, "LAYOUT": LAYOUT, "COLORS": COLORS}
    exec(code, given := given | {"display": lambda widget: given.update(shown=widget)})
    slider, panels = given["true_p"], given["panels"]
    assert given["shown"].children == (slider, panels)
    for p in (0.2, 0.35, 0.9):
        slider.value = p
        for k, score in enumerate(("expected_nll", "expected_brier", "expected_error")):
            curve, dot = panels.data[2 * k : 2 * k + 2]
            assert dot.x == (p,) and dot.marker.color == COLORS["now"]
            assert dot.y[0] == pytest.approx(float(HAND[score](torch.tensor([p]), p)))
            assert min(curve.y) == pytest.approx(dot.y[0], abs=1e-4)  # nothing beats the truth
            if k < 2:
                assert float(curve.x[curve.y.argmin()]) == pytest.approx(p, abs=0.006)


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
    tails = torch.tensor([0.025, 0.975], dtype=torch.float64)
    for name, values in per_question.items():
        found = torch.quantile(HAND["bootstrap"](values), tails).tolist()
        assert found == pytest.approx(list(library[name]), abs=1e-9)


def test_auroc_by_hand_is_the_librarys_with_ties():
    generator = torch.Generator().manual_seed(4)
    doubt, wrong = torch.randint(7, (200,), generator=generator) / 7, torch.rand(200, generator=generator) < 0.3
    assert HAND["auroc_by_hand"](doubt, wrong) == pytest.approx(auroc(doubt, wrong))
    assert HAND["auroc_by_hand"](wrong.float(), wrong) == 1


# what it says of recorded runs


@pytest.fixture(scope="module")
def runs():
    records = by_length(ROOT / "data" / "runs" / "passes", "everyday")
    return {title: [r.predictions for r in rows[20]] for title, rows in records.items()}


@pytest.fixture(scope="module")
def scores(runs):
    """Title → metric → values of three seeds."""
    metrics = {"acc": accuracy, "ece": ece, "nll": nll, "brier": brier}
    return {
        t: {m: [float(f(p.ensemble().double(), p.labels)) for p in ps] for m, f in metrics.items()}
        for t, ps in runs.items()
    }


def mean(values):
    return sum(values) / len(values)


def repaired(run: Predictions) -> Predictions:
    """As the notebook does: each half of the questions with the temperature of the other half."""
    probs, labels = run.ensemble().double(), run.labels
    one, two = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).split(len(labels) // 2)
    out = probs.clone()
    for here, there in ((one, two), (two, one)):
        out[here] = HAND["with_temperature"](probs[here], HAND["fit_temperature"](probs[there], labels[there]))
    return Predictions(out.log()[None].float(), labels)


def test_a_tenth_of_the_questions_makes_more_than_half_of_adamws_nll(runs):
    for run in runs["AdamW"]:
        probs = run.ensemble().double()
        loss = -probs[torch.arange(912), run.labels].log()
        worst = loss.argsort()[-91:]
        assert float(loss[worst].sum() / loss.sum()) > 0.5
        confidence, answer = probs[worst].max(-1)
        assert not (answer == run.labels[worst]).any() and 0.55 < float((confidence > 0.8).double().mean()) < 0.65


def test_the_most_accurate_row_is_the_least_calibrated_and_yet_better_than_adamw(scores):
    trained, point = ("AdamW", "IVON@mean", "IVON"), scores["IVON@mean"]
    assert max(trained, key=lambda t: mean(scores[t]["acc"])) == "IVON@mean"
    assert max(scores, key=lambda t: mean(scores[t]["ece"])) == "IVON@mean"
    for metric in ("nll", "brier"):
        assert max(point[metric]) < min(scores["AdamW"][metric])


def test_overconfidence_is_above_the_floor_and_draws_and_a_temperature_are_at_it(runs, scores):
    for title, overconfident in (("AdamW", True), ("IVON@mean", True), ("IVON", False), ("AdamW + temperature", False)):
        for run, value in zip(runs[title], scores[title]["ece"]):
            low, high = ece_floor(run.ensemble())
            assert value > high if overconfident else value < low
    few = torch.randperm(912, generator=torch.Generator().manual_seed(0))[:50]
    floor = ece_floor(runs["IVON"][0].ensemble()[few])[0]
    assert floor == pytest.approx(0.1, abs=0.015) and floor > max(max(row["ece"]) for row in scores.values())


def test_always_a_quarter_beats_the_model_before_training(runs):
    before = Predictions.load(ROOT / "data/runs/demo/seed21/predictions/before-training.safetensors")
    labels, probs = before.labels, before.ensemble().double()
    assert torch.equal(labels, runs["IVON"][0].labels) and labels.bincount().tolist() == [228] * 4
    assert float(nll(probs, labels)) > math.log(4) and float(brier(probs, labels)) > 0.75


def test_with_a_temperature_ivons_mean_is_where_its_draws_are_and_adamw_is_not(runs):
    adamw, point = ([repaired(run) for run in runs[title]] for title in ("AdamW", "IVON@mean"))
    for metric in ("nll", "brier"):
        assert paired_differences(adamw, runs["IVON"])[metric]["interval"][1] < 0
        low, high = paired_differences(point, runs["IVON"])[metric]["interval"]
        assert low < 0 < high
    assert paired_differences(point, runs["IVON"])["nll"]["difference"] > 0
    assert paired_differences(adamw, runs["IVON"])["acc"]["interval"][0] > 0


def test_confidence_finds_mistakes_better_than_mutual_information_on_every_seed(runs):
    index = torch.randint(912, (300, 912), generator=torch.Generator().manual_seed(1))
    for run in runs["IVON"]:
        doubt, wrong = doubts(run), ~right_answers(run)
        gaps = [
            auroc(doubt["mutual_information"][i], wrong[i]) - auroc(doubt["confidence"][i], wrong[i]) for i in index
        ]
        assert torch.tensor(gaps).quantile(0.975) < 0
        assert abs(auroc(doubt["entropy"], wrong) - auroc(doubt["confidence"], wrong)) < 0.01
        unsure, apart = (doubt[name] > doubt[name].median() for name in ("confidence", "mutual_information"))
        groups = unsure & ~apart, apart & ~unsure
        assert all(45 < int(group.sum()) < 66 for group in groups)
        assert wrong[groups[0]].double().mean() > wrong[groups[1]].double().mean() + 0.05
