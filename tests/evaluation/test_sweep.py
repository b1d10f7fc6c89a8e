"""The τ sweep against predict(), explicit means and score(); its file; choosing τ on sweeps made by hand."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ivon_lora_lite import (
    GaussianPosterior,
    Linearized,
    Predictions,
    Run,
    TauSweep,
    choose_tau,
    linearized,
    predict,
    score,
    tau_sweep,
)
from ivon_lora_lite.evaluation import METRICS, metrics
from ivon_lora_lite.evaluation.sweep import TAUS

FUNCTIONS = {"acc": metrics.accuracy, "ece": metrics.ece, "nll": metrics.nll, "brier": metrics.brier}


def synthetic(taus=(0.0, 0.3, 1.0), samples=4, n=30, c=4, linear=True, seed=0):
    """A sweep of overconfident random logits; every third question has one choice less; no model is involved."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(c - 1, (n,), generator=generator)
    mean = 2 * torch.randn(n, c, generator=generator)
    mean[torch.arange(n), labels] += 2
    present = torch.ones(n, c, dtype=torch.bool)
    present[::3, -1] = False
    root = torch.randn(n, c, c, generator=generator) * present.unsqueeze(-1)
    noise = torch.einsum("nij,snj->sni", root, torch.randn(samples, n, c, generator=generator))
    mean = mean.masked_fill(~present, -torch.inf)
    line = Linearized(mean, root @ root.mT, labels) if linear else None
    facts = {"task": "synthetic", "seed": seed, "scale": 0.5, "names": ["τ"]}
    return TauSweep(tuple(taus), torch.stack([mean + tau**0.5 * noise for tau in taus]), labels, line, facts)


def by_hand(table):
    """A sweep of one draw: τ → the probability of the right answer (of two) for each question."""
    right = torch.tensor(list(table.values()), dtype=torch.float64)
    logits = torch.stack([right.log(), (1 - right).log()], -1).float().unsqueeze(1)  # [T, 1, N, 2]
    return TauSweep(tuple(table), logits, torch.zeros(right.shape[1], dtype=torch.long))


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama", trained=True)


@pytest.fixture(scope="module")
def posterior(model):
    return GaussianPosterior.isotropic(model, 0.05**2)


# ------------------------------------------------------------------------------------------------------------ sampling


@pytest.mark.parametrize("format", ["text", "letter"])
def test_a_sweep_equals_predict_at_each_tau(model, posterior, questions, format):
    options = {"samples": 3, "seed": 7, "posterior": posterior, "format": format, "batch_size": 4}
    sweep = tau_sweep(model, questions, taus=(0.0, 0.25, 1.0), **options)
    assert sweep.taus == (0.0, 0.25, 1.0) and sweep.logits.shape == (3, 3, len(questions), 5)
    assert sweep.logits.dtype == torch.float32
    for tau, logits in zip(sweep.taus, sweep.logits):
        want = predict(model, questions, tau=tau, **options)
        assert torch.equal(logits, want.logits)
        assert torch.equal(sweep.labels, want.labels)
        assert torch.equal(sweep.predictions(tau).logits, want.logits if tau else want.logits[:1])
    assert not torch.equal(sweep.logits[1], sweep.logits[2])


def test_elsewhere_fewer_draws_are_made_and_averaged(model, posterior, questions, tmp_path):
    options = {"seed": 7, "posterior": posterior, "batch_size": 4}
    sweep = tau_sweep(model, questions, taus=(0, 0.5, 1), samples=5, elsewhere=2, **options)
    assert sweep.drawn == (1, 2, 5) and sweep.samples == 5
    two = predict(model, questions, tau=0.5, samples=2, **options)
    assert torch.equal(sweep.predictions(0.5).logits, two.logits)
    for samples in (2, 3, 5, None):  # more than were made is all of them
        torch.testing.assert_close(sweep.at(0.5, samples), two.ensemble(), rtol=0, atol=1e-6)
    torch.testing.assert_close(sweep.at(0.5, 1), two.ensemble(1), rtol=0, atol=1e-6)
    assert sweep.predictions(0.5, 4).metadata["samples"] == 2
    again = TauSweep.load(sweep.save(tmp_path / "sweep.safetensors"))
    assert again.drawn == sweep.drawn and torch.equal(again.probabilities, sweep.probabilities)


@pytest.mark.parametrize("elsewhere", [0, 6])
def test_impossible_numbers_of_draws_elsewhere_are_refused(model, posterior, questions, elsewhere):
    with pytest.raises(ValueError, match="elsewhere"):
        tau_sweep(model, questions, taus=(0, 1), samples=5, elsewhere=elsewhere, posterior=posterior)


def test_a_sweep_refuses_counts_that_do_not_fit():
    with pytest.raises(ValueError, match="drawn"):
        TauSweep((0.0, 1.0), torch.zeros(2, 3, 4, 4), torch.zeros(4, dtype=torch.long), drawn=(1, 4))


def test_at_tau_zero_all_draws_are_the_mean_and_elsewhere_none_is(model, posterior, questions):
    sweep = tau_sweep(model, questions, taus=(0, 1), samples=3, posterior=posterior)
    mean = predict(model, questions, posterior=posterior).logits[0]
    for s in range(3):
        assert torch.equal(sweep.logits[0, s], mean)
        assert not torch.equal(sweep.logits[1, s], mean)
    assert not torch.equal(sweep.logits[1, 0], sweep.logits[1, 1])


def test_the_mean_is_computed_once_and_not_once_per_draw(model, posterior, questions, monkeypatch):
    from ivon_lora_lite.evaluation import Batches

    copies = []
    original = Batches._run
    monkeypatch.setattr(Batches, "_run", lambda self, *args: copies.append(args[1]) or original(self, *args))
    tau_sweep(model, questions[:2], taus=(0, 0.5, 1), samples=4, posterior=posterior)
    assert sum(copies) == 1 + 2 * 4


def test_taus_are_sorted_and_doubles_dropped(model, posterior, questions):
    options = {"samples": 2, "posterior": posterior}
    sweep = tau_sweep(model, questions[:2], taus=(1, 0, 0.5, 1.0), **options)
    assert sweep.taus == (0.0, 0.5, 1.0)
    assert torch.equal(sweep.logits, tau_sweep(model, questions[:2], taus=(0, 0.5, 1), **options).logits)


def test_numbers_may_be_numpys(model, posterior, questions, tmp_path):
    options = {"posterior": posterior, "seed": np.int64(3), "samples": np.int64(2)}
    sweep = tau_sweep(model, questions[:2], taus=np.linspace(0, 1, 3), **options)
    drawn = predict(model, questions[:2], tau=np.float32(0.5), **options)
    assert torch.equal(sweep.predictions(0.5).logits, drawn.logits)
    assert Predictions.load(drawn.save(tmp_path / "drawn.safetensors")).metadata["seed"] == 3
    assert TauSweep.load(sweep.save(tmp_path / "sweep.safetensors")).taus == (0, 0.5, 1)


def test_a_run_brings_its_posterior_and_format(model, posterior, questions):
    run = Run(model, dict(posterior.mean), posterior, {"format": "letter"})
    got = tau_sweep(run, questions, taus=(0, 1), samples=2)
    want = tau_sweep(model, questions, taus=(0, 1), samples=2, posterior=posterior, format="letter")
    assert torch.equal(got.logits, want.logits)


def test_facts_and_the_linear_part_are_kept(model, posterior, questions):
    line = linearized(model, questions[:3], posterior=posterior)
    sweep = tau_sweep(
        model, questions[:3], taus=(0,), samples=2, seed=9, posterior=posterior, linear=line, metadata={"task": "ten"}
    )
    assert sweep.linear is line
    assert sweep.metadata == {"samples": 2, "seed": 9, "task": "ten"}


def test_the_model_is_left_as_found(model, posterior, questions):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tau_sweep(model, questions[:2], taus=(0, 1), samples=2, posterior=posterior)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_sweep_without_posterior_draws_or_questions_is_refused(model, posterior, questions):
    with pytest.raises(ValueError, match="no posterior.*optimizer='ivon'"):
        tau_sweep(model, questions)
    with pytest.raises(ValueError, match="no posterior"):
        tau_sweep(Run(model, {}, None, {"format": "text"}), questions)
    with pytest.raises(ValueError, match="at least one draw"):
        tau_sweep(model, questions, samples=0, posterior=posterior)
    with pytest.raises(ValueError, match="one question"):
        tau_sweep(model, [], posterior=posterior)
    with pytest.raises(ValueError, match="tau is -1"):
        tau_sweep(model, questions, taus=(-1, 0), posterior=posterior)


def test_the_grid_starts_at_the_mean_and_ends_at_the_posterior():
    assert TAUS[0] == 0 and TAUS[-1] == 1  # choose_tau and the explorer compare with τ = 0


# ------------------------------------------------------------------------------------------------ averages and scores


def test_prefix_averages_equal_explicit_means_for_each_number_of_draws():
    sweep = synthetic(samples=5)
    assert sweep.samples == 5
    for t, tau in enumerate(sweep.taus):
        for count in range(1, 6):
            want = sum(sweep.logits[t, s].double().softmax(-1) for s in range(count)) / count
            torch.testing.assert_close(sweep.at(tau, count), want, atol=1e-6, rtol=0)
            torch.testing.assert_close(sweep.at(tau, count), sweep.predictions(tau, count).ensemble())
        assert torch.equal(sweep.at(tau), sweep.at(tau, 5))


def test_scores_are_those_of_score():
    sweep = synthetic()
    for tau in sweep.taus:
        for count in (1, 3):
            got, want = sweep.scores(tau, count), score(sweep.at(tau, count), sweep.labels)
            assert got == want and got.intervals == want.intervals and got.questions == 30
    got = sweep.scores(0.123, linear=True)
    assert dict(got) == pytest.approx(dict(score(sweep.linear.predictions(0.123))), abs=1e-5)
    assert sweep.scores(1.0, intervals=False).intervals == {}


def test_curves_agree_with_scores_and_with_the_metrics():
    sweep = synthetic()
    for count in (None, 1, 3):
        curves = sweep.curves(count)
        assert set(curves) == set(METRICS)
        for name, values in curves.items():
            assert values.shape == (3,)
            for tau, value in zip(sweep.taus, values):
                assert float(value) == pytest.approx(sweep.scores(tau, count, intervals=False)[name], abs=1e-9)
                assert float(value) == pytest.approx(
                    float(FUNCTIONS[name](sweep.at(tau, count).double(), sweep.labels)), abs=1e-9
                )
    assert not torch.equal(sweep.curves(1)["nll"], sweep.curves(4)["nll"])


def test_linear_curves_agree_with_the_linearised_gaussian():
    sweep, taus = synthetic(), (0.0, 0.17, 2.0)
    curves = sweep.linear_curves(taus)
    for name in METRICS:
        want = [float(FUNCTIONS[name](sweep.linear.probabilities(tau).double(), sweep.labels)) for tau in taus]
        assert curves[name].tolist() == pytest.approx(want, abs=1e-9)
    # without noise both say the same
    assert float(curves["nll"][0]) == pytest.approx(float(sweep.curves()["nll"][0]), abs=1e-6)


def test_a_tau_off_the_grid_is_refused_and_the_grid_named():
    sweep = synthetic()
    for ask in (sweep.at, sweep.scores):
        with pytest.raises(ValueError, match=re.escape("tau=0.5 was not sampled; the grid is 0, 0.3, 1.")):
            ask(0.5)
    sweep.at(0.5, linear=True)  # where the Gaussian is known, any τ will do


@pytest.mark.parametrize("samples", [0, -1, 5])
def test_more_draws_than_there_are_or_none_are_refused(samples):
    with pytest.raises(ValueError, match=f"samples is {samples}; the sweep has 4 draws"):
        synthetic().at(1.0, samples)


def test_without_a_linear_part_asking_for_it_is_refused():
    sweep = synthetic(linear=False)
    for ask in (lambda: sweep.at(0.0, linear=True), lambda: sweep.linear_curves([0.0])):
        with pytest.raises(ValueError, match="no linearised Gaussian"):
            ask()


@pytest.mark.parametrize(
    ("taus", "shape", "message"),
    [
        ((0.0, 1.0), (3, 2, 4, 2), r"expected \[2, S, N, C\]"),
        ((0.0, 1.0), (2, 4, 2), r"\(2, 4, 2\)"),
        ((1.0, 0.0), (2, 2, 4, 2), "ascending"),
        ((0.5, 0.5), (2, 2, 4, 2), "different"),
    ],
)
def test_a_sweep_that_does_not_fit_together_is_refused(taus, shape, message):
    with pytest.raises(ValueError, match=message):
        TauSweep(taus, torch.zeros(shape), torch.zeros(4, dtype=torch.long))


# ---------------------------------------------------------------------------------------------------------------- file


@pytest.mark.parametrize("linear", [True, False])
def test_save_and_load_keep_everything(tmp_path, linear):
    sweep = synthetic(linear=linear)
    path = sweep.save(tmp_path / "new folder" / "sweep.safetensors")
    assert path.is_file() and [p.name for p in path.parent.iterdir()] == ["sweep.safetensors"]
    got = TauSweep.load(path)
    assert got.taus == sweep.taus and got.metadata == sweep.metadata
    assert torch.equal(got.logits, sweep.logits) and torch.equal(got.labels, sweep.labels)
    assert got.scores(0.3, 2) == sweep.scores(0.3, 2)
    if linear:
        assert torch.equal(got.linear.mean, sweep.linear.mean)
        assert torch.equal(got.linear.covariance, sweep.linear.covariance)
        assert torch.equal(got.linear.labels, sweep.labels)
        assert torch.equal(got.at(0.4, linear=True), sweep.at(0.4, linear=True))
    else:
        assert got.linear is None


def test_a_view_of_other_logits_can_be_saved(tmp_path):
    # safetensors refuses tensors that are not contiguous
    whole = synthetic()
    part = TauSweep(whole.taus, whole.logits[:, :2], whole.labels)
    got = TauSweep.load(part.save(tmp_path / "part.safetensors"))
    assert torch.equal(got.logits, whole.logits[:, :2])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no τ sweep at .*nowhere.safetensors"):
        TauSweep.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError):
        TauSweep.load(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 200, -10])
def test_a_damaged_file_is_named(tmp_path, keep):
    path = synthetic().save(tmp_path / "sweep.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="sweep.safetensors is damaged"):
        TauSweep.load(path)


def test_a_file_of_something_else_is_named(tmp_path):
    save_file({"logits": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors holds no τ sweep"):
        TauSweep.load(tmp_path / "other.safetensors")
    predictions = synthetic().predictions(1.0).save(tmp_path / "predictions.safetensors")
    with pytest.raises(ValueError, match="predictions.safetensors holds no τ sweep"):
        TauSweep.load(predictions)


def test_the_file_names_its_format_so_that_later_versions_can_tell(tmp_path):
    path = synthetic().save(tmp_path / "sweep.safetensors")
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert header["format"] == "ivon_lora_lite.TauSweep/1"
    assert json.loads(header["facts"])["taus"] == [0.0, 0.3, 1.0]


def test_metadata_that_json_cannot_hold_leaves_the_former_file(tmp_path):
    path = synthetic().save(tmp_path / "sweep.safetensors")
    before = path.read_bytes()
    other = synthetic(seed=1)
    with pytest.raises(TypeError):
        TauSweep(other.taus, other.logits, other.labels, None, {"model": object()}).save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


# ----------------------------------------------------------------------------------------------------------- choosing τ

# τ → probability of the right answer for five questions (two choices: right above one half). Overconfident at 0.
#   τ      acc   nll     what it is for
#   0      0.8   0.964   one question badly wrong
#   0.25   0.8   0.478
#   0.5    0.6   0.447   best NLL, at the cost of one answer
#   1      0.4   0.731   too much noise
HANDMADE = {
    0.0: [0.99, 0.99, 0.99, 0.99, 0.0084],
    0.25: [0.9, 0.9, 0.9, 0.9, 0.14],
    0.5: [0.95, 0.95, 0.95, 0.49, 0.2548],
    1.0: [0.6, 0.6, 0.4, 0.4, 0.45],
}


def expected(tau):
    """Accuracy and NLL of a row of the table, from the probabilities themselves."""
    right = HANDMADE[tau]
    return sum(p > 0.5 for p in right) / len(right), -sum(map(math.log, right)) / len(right)


def test_the_table_is_what_it_says():
    curves = by_hand(HANDMADE).curves()
    for t, tau in enumerate(HANDMADE):
        acc, nll = expected(tau)
        assert float(curves["acc"][t]) == pytest.approx(acc) and float(curves["nll"][t]) == pytest.approx(nll, abs=1e-5)
    assert [round(expected(tau)[1], 3) for tau in HANDMADE] == [0.964, 0.478, 0.447, 0.731]


@pytest.mark.parametrize(
    ("limit", "tau"),
    [
        (1.0, 0.5),  # whatever accuracy it costs
        (0.2, 0.5),  # exactly the one answer in five that it costs
        (0.19, 0.25),  # not that much
        (0.0, 0.25),  # nothing: as accurate as the mean
    ],
)
def test_the_smallest_nll_wins_among_those_that_keep_the_accuracy(limit, tau):
    assert choose_tau(by_hand(HANDMADE), "nll", limit)[0] == tau


def test_more_accuracy_than_the_means_is_no_loss():
    table = {0.0: [0.9, 0.2, 0.2], 1.0: [0.6, 0.6, 0.6]}
    assert choose_tau(by_hand(table), "nll", 0.0)[0] == 1.0


def test_for_accuracy_the_largest_wins_and_for_the_others_the_smallest():
    better_right, better_sure = [0.51, 0.51, 0.51, 0.51], [0.95, 0.95, 0.95, 0.45]
    sweep = by_hand({0.0: [0.9, 0.9, 0.1, 0.1], 0.5: better_right, 1.0: better_sure})
    assert choose_tau(sweep, "acc")[0] == 0.5
    for objective in ("nll", "brier", "ece"):
        curve = sweep.curves()[objective]
        assert choose_tau(sweep, objective)[0] == sweep.taus[int(curve.argmin())] == 1.0


def test_it_judges_by_as_many_draws_as_it_is_told():
    """Two draws of one question at τ = 1: the first is worse than the mean, both together are better."""
    logits = torch.tensor([[[[0.0, 0.0]]] * 2, [[[0.0, 1.0]], [[5.0, 0.0]]]])  # [T, S, N, C]
    sweep = TauSweep((0.0, 1.0), logits, torch.tensor([0]))
    assert choose_tau(sweep, "nll", samples=1)[0] == 0.0
    assert choose_tau(sweep, "nll", samples=2)[0] == choose_tau(sweep, "nll")[0] == 1.0


def test_at_a_tie_the_smaller_tau_wins():
    same = [0.8, 0.7, 0.4]
    sweep = by_hand({0.0: [0.9, 0.3, 0.4], 0.25: same, 0.5: same, 1.0: [0.9, 0.3, 0.4]})
    assert choose_tau(sweep, "nll")[0] == 0.25
    assert choose_tau(sweep, "acc")[0] == 0.25
    assert choose_tau(by_hand({0.0: same, 0.5: same, 1.0: same}), "brier")[0] == 0.0
    # differences that no one would report are ties too
    nearly = [p + 1e-7 for p in same]
    assert choose_tau(by_hand({0.0: same, 1.0: nearly}), "nll")[0] == 0.0


@pytest.mark.parametrize("objective", METRICS)
def test_the_sentence_states_the_numbers(objective):
    sweep = by_hand(HANDMADE)
    tau, sentence = choose_tau(sweep, objective, 0.2)
    was, now = sweep.scores(0.0, intervals=False), sweep.scores(tau, intervals=False)
    assert sentence.startswith(f"τ = {tau:g} has the best {objective.upper()} of 3 admissible values")  # 1 costs 0.4
    assert "on 5 validation questions" in sentence
    assert f"{objective.upper()} {was[objective]:.3f} → {now[objective]:.3f}" in sentence
    assert f"accuracy {was['acc']:.3f} → {now['acc']:.3f}" in sentence


def test_the_sentence_word_for_word():
    assert choose_tau(by_hand(HANDMADE), "nll")[1] == (
        "τ = 0.5 has the best NLL of 4 admissible values on 5 validation questions: NLL 0.964 → 0.447, accuracy "
        "0.800 → 0.600, compared with the mean (τ = 0)."
    )


def test_without_tau_zero_there_is_nothing_to_compare_with():
    with pytest.raises(ValueError, match="needs τ = 0"):
        choose_tau(by_hand({0.5: [0.9, 0.9], 1.0: [0.8, 0.8]}))
    with pytest.raises(ValueError, match="needs τ = 0"):
        choose_tau(synthetic().linear, taus=(0.5, 1.0))


def test_a_choice_at_the_end_of_the_grid_says_so():
    better = by_hand({0.0: [0.6, 0.6], 0.5: [0.7, 0.7], 1.0: [0.8, 0.8]})
    assert choose_tau(better)[1].endswith("It is the largest that was tried.")
    inside = by_hand({0.0: [0.6, 0.6], 0.5: [0.8, 0.8], 1.0: [0.7, 0.7]})
    assert choose_tau(inside)[1].endswith("compared with the mean (τ = 0).")


def test_a_linearised_gaussian_is_searched_far_beyond_the_posterior():
    """Confident and wrong half of the time: the more noise, the better."""
    mean = torch.tensor([[8.0, 0.0], [8.0, 0.0]])
    line = Linearized(mean, torch.eye(2).expand(2, 2, 2).contiguous(), torch.tensor([0, 1]))
    tau, sentence = choose_tau(line)
    assert tau == 8 and sentence.endswith("It is the largest that was tried.")


def test_an_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="no objective 'f1'. Known: acc, ece, nll, brier"):
        choose_tau(by_hand(HANDMADE), "f1")


def test_all_draws_of_a_sweep_count():
    # one draw alone would choose another τ than their average does
    one, two = by_hand({0.0: [0.6, 0.6], 1.0: [0.9, 0.2]}), by_hand({0.0: [0.6, 0.6], 1.0: [0.7, 0.95]})
    both = TauSweep(one.taus, torch.cat([one.logits, two.logits], 1), one.labels)
    assert choose_tau(one)[0] == 0.0
    assert choose_tau(both)[0] == 1.0


@pytest.mark.parametrize("taus", [(), (0.0, 0.1, 0.9, 3.0)])
@pytest.mark.parametrize("objective", METRICS)
def test_a_linearised_gaussian_is_searched_at_its_candidates(taus, objective):
    line = synthetic(n=60).linear
    candidates = taus or [*(i / 20 for i in range(31)), 2, 3, 4, 6, 8]
    tau, sentence = choose_tau(line, objective, taus=taus)
    values = [score(line.predictions(t), intervals=False)[objective] for t in candidates]
    best = max(values) if objective == "acc" else min(values)
    assert tau == min(t for t, value in zip(candidates, values) if abs(value - best) < 1e-6)
    assert f"{len(candidates)} admissible values on 60 validation questions" in sentence
    assert f"{objective.upper()} {values[0]:.3f} → {best:.3f}" in sentence


def test_files_say_where_they_come_from(tmp_path):
    """Date, versions and device lie in the header, beside what the file is about."""
    from safetensors import safe_open

    from ivon_lora_lite import Predictions

    path = Predictions(torch.zeros(1, 2, 3), torch.zeros(2, dtype=torch.long), {"task": "x"}).save(
        tmp_path / "p.safetensors"
    )
    with safe_open(path, "pt") as file:
        made = json.loads(file.metadata()["provenance"])
    assert {"date", "commit", "device", "versions"} <= made.keys()
    assert Predictions.load(path).metadata == {"task": "x"}
