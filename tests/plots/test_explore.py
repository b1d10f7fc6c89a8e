"""Figures, tables and the τ explorer: what they show equals what the metrics say. No browser; see test_browser.py."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

pytest.importorskip("plotly")
pytest.importorskip("ipywidgets")

from ivon_lora_lite import Linearized, Question, Scores, TauExplorer, TauSweep, score
from ivon_lora_lite.evaluation import METRICS, metrics
from ivon_lora_lite.plots import (
    COLORS,
    MEAN,
    draws_html,
    flips_html,
    lengths_figure,
    line_taus,
    path_figure,
    reliability_bars,
    reliability_figure,
    sweep_html,
    table_html,
    tradeoff_figure,
)
from ivon_lora_lite.plots.figures import set_ranges, worth_seeing
from ivon_lora_lite.plots.style import SPANS

TAUS = (0.0, 0.25, 1.0)


def synthetic(taus=TAUS, samples=4, n=50, c=4, linear=True):
    """A sweep of overconfident random logits, of which some answers flip; no model is involved."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(c, (n,), generator=generator)
    mean = 2 * torch.randn(n, c, generator=generator)
    mean[torch.arange(n), labels] += 2
    root = torch.randn(n, c, c, generator=generator)
    noise = torch.einsum("nij,snj->sni", root, torch.randn(samples, n, c, generator=generator))
    line = Linearized(mean, root @ root.mT, labels) if linear else None
    return TauSweep(tuple(taus), torch.stack([mean + tau**0.5 * noise for tau in taus]), labels, line)


def ask(stem, *choices):
    return Question("", choices, 0, stem, tuple("ABCD"[: len(choices)]))


def traces(figure, group):
    """The traces of one legend group, metric → trace: there is one in each panel."""
    found = [trace for trace in figure.data if trace.legendgroup == group]
    assert len(found) == len(METRICS)
    return dict(zip(METRICS, found))


def rounded(values):
    return pytest.approx([round(float(value), 4) for value in values], abs=1e-9)


def text(markup):
    """What a reader sees: no tags, no style sheet."""
    return " ".join(re.sub(r"<[^>]*>", " ", re.sub(r"<style>.*?</style>", "", markup, flags=re.S)).split())


@pytest.fixture(scope="module")
def sweep():
    return synthetic()


# ------------------------------------------------------------------------------------------------------------- figures


def test_the_tradeoff_figure_holds_the_curves_the_line_and_the_marker(sweep):
    figure = tradeoff_figure(sweep, 0.25, samples=2)
    sampled, line = sweep.curves(2), sweep.linear_curves(line_taus(sweep))
    scores = sweep.scores(0.25, 2, intervals=False)
    for name in METRICS:
        curve, dashes, marker = (traces(figure, group)[name] for group in ("ivon", "linear", "now"))
        assert list(curve.x) == list(TAUS) and list(curve.y) == rounded(sampled[name])
        assert list(dashes.x) == [i / 20 for i in range(21)] and list(dashes.y) == rounded(line[name])
        assert list(marker.x) == [0.25] and list(marker.y) == rounded([scores[name]])
        assert marker.name == "τ = 0.25" and curve.name == "2 draws"
        # all three are in the panel of this metric's title
        assert curve.xaxis == dashes.xaxis == marker.xaxis and curve.yaxis == marker.yaxis
    assert len({trace.yaxis for trace in figure.data}) == 4
    assert sum(bool(trace.showlegend) for trace in figure.data) == 3  # each kind once


def test_panels_are_titled_in_the_order_of_the_table(sweep):
    titles = [re.sub("<[^>]*>", "", note.text) for note in tradeoff_figure(sweep).layout.annotations]
    assert titles == ["accuracy ↑", "ECE ↓", "NLL ↓", "Brier ↓"]  # METRICS: acc, ece, nll, brier
    head = re.search("<thead>(.*?)</thead>", table_html({}))[1]
    assert text(head) == " ".join(titles)


def test_without_a_linear_part_there_is_no_line(sweep):
    figure = tradeoff_figure(synthetic(linear=False))
    assert {trace.legendgroup for trace in figure.data} == {"ivon", "now"}


def test_the_marker_may_be_off_the_grid_only_on_the_line(sweep):
    marker = traces(tradeoff_figure(sweep, 0.6), "now")["nll"]
    assert list(marker.y) == rounded([sweep.scores(0.6, linear=True)["nll"]])
    with pytest.raises(ValueError, match="tau=0.6 was not sampled"):
        tradeoff_figure(synthetic(linear=False), 0.6)


def test_the_line_goes_as_far_as_the_draws():
    far = synthetic(taus=(0.0, 2.0))
    assert line_taus(far)[-1] == 2.0 and line_taus(synthetic(taus=(0.0, 0.5)))[-1] == 1.0
    low, high = tradeoff_figure(far, 2.0).layout.xaxis.range
    assert low < 0 and high > 2


def test_axes_hold_all_points_and_do_not_magnify_noise(sweep):
    figure = tradeoff_figure(sweep)
    flat = {name: torch.tensor([0.5, 0.5001]) for name in METRICS}
    for trace in figure.data:
        low, high = figure.layout[trace.yaxis.replace("y", "yaxis")].range
        assert low < min(trace.y) and max(trace.y) < high
    set_ranges(figure, synthetic(taus=(0.0, 1e-6), linear=False), flat)
    for number, name in zip(("", 2, 3, 4), METRICS):
        low, high = figure.layout[f"yaxis{number}"].range
        assert high - low == pytest.approx(SPANS[name], abs=1e-3) and low < 0.5 < high


def test_a_tau_that_destroys_the_answers_does_not_set_the_scale():
    labels = torch.zeros(100, dtype=torch.long)
    right = torch.tensor([[2.0, 0.0]]).expand(100, 2)
    logits = torch.stack([right, right.clone(), -right])[:, None]  # accuracy 1, 0.9, 0
    logits[1, 0, :10] *= -1
    ruined = TauSweep((0.0, 1.0, 4.0), logits, labels)
    assert worth_seeing(ruined).tolist() == [True, True, False]
    panels, path = tradeoff_figure(ruined), path_figure(ruined)
    assert panels.layout.yaxis.range[0] > 0.5 and path.layout.yaxis.range[0] > 0.5
    assert path.layout.xaxis.range[1] < ruined.curves()["nll"][2]
    assert path.layout.annotations[0].text == "τ = 4 lies further out"
    assert panels.data[0].y[-1] == 0.0  # it is drawn all the same
    fine = TauSweep((0.0, 1.0), logits[:2], labels)
    assert worth_seeing(fine).all() and not path_figure(fine).layout.annotations
    back = TauSweep((0.0, 1.0, 4.0), logits[[0, 2, 1]], labels)  # what lies between is kept
    assert worth_seeing(back).all()


def test_reliability_bars_by_hand():
    # confidences 0.95 (right, right, wrong), 0.85 (wrong), 0.55 (right); bins are tenths
    top, right = torch.tensor([0.95, 0.95, 0.95, 0.85, 0.55]), torch.tensor([1, 1, 0, 0, 1])
    bars = reliability_bars(torch.stack([top, 1 - top], -1), 1 - right)
    assert bars["y"] == [0, 0, 0, 0, 0, 1.0, 0, 0, 0.0, 0.6667]
    assert bars["customdata"] == [0, 0, 0, 0, 0, 1, 0, 0, 1, 3]
    colors = bars["marker"]["color"]
    assert colors[0] == "rgba(0,0,0,0)" and colors[9] == "rgba(31, 95, 191, 0.95)"  # empty; the fullest is the darkest
    opacity = [float(re.search(r"([\d.]+)\)$", color)[1]) for color in colors]
    assert 0 < opacity[5] == opacity[8] < opacity[9]


@pytest.mark.parametrize("bins", [5, 10])
def test_the_reliability_figure_holds_the_accuracies_of_the_bins(sweep, bins):
    pairs = {"mean": (sweep.at(0.0), sweep.labels), "draws": (sweep.at(1.0), sweep.labels)}
    figure = reliability_figure(pairs, bins)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert [re.sub("<[^>]*>", "", note.text) for note in figure.layout.annotations] == ["mean", "draws"]
    for trace, (probs, labels) in zip(bars, pairs.values(), strict=True):
        table = metrics.reliability(probs.double(), labels, bins)
        assert list(trace.x) == pytest.approx([(b + 0.5) / bins for b in range(bins)])
        assert list(trace.y) == rounded(table.accuracy.nan_to_num(0.0))
        assert sum(trace.customdata) == len(labels)
        # what one reads off the bars is the overall accuracy
        by_hand = sum(y * n for y, n in zip(trace.y, trace.customdata)) / len(labels)
        assert by_hand == pytest.approx(float(metrics.accuracy(probs, labels)), abs=1e-3)
    assert len({trace.xaxis for trace in bars}) == 2
    diagonals = [trace for trace in figure.data if trace.type == "scatter"]
    assert all(list(trace.x) == list(trace.y) == [0, 1] for trace in diagonals) and len(diagonals) == 2


# -------------------------------------------------------------------------------------------------------------- tables


def test_the_table_holds_rounded_numbers_and_intervals():
    values = {"acc": 0.81249, "ece": 0.0456, "nll": 0.5, "brier": 1.23456}
    intervals = {"acc": (0.7, 0.9), "ece": (0.0, 0.1), "nll": (0.41, 0.62), "brier": (1.0, 1.5)}
    markup = table_html({"IVON": Scores(values, intervals, 80), "plain": Scores(values, {}, 80)})
    body = [text(row) for row in re.findall("<tr>(.*?)</tr>", markup)]
    assert body[1] == "IVON 0.812 [0.700, 0.900] 0.046 [0.000, 0.100] 0.500 [0.410, 0.620] 1.235 [1.000, 1.500]"
    assert body[2] == "plain 0.812 0.046 0.500 1.235"
    assert "95 % bootstrap interval" in markup and "10 bins" in markup
    assert re.findall("data-metric='(.*?)'", markup)[:4] == ["acc", "ece", "nll", "brier"]


def test_titles_and_questions_are_escaped(sweep):
    nasty = "<img src=x onerror='alert(1)'> & <b>"
    assert nasty not in table_html({nasty: sweep.scores(1.0)})
    assert "&lt;img src=x onerror=&#x27;alert(1)&#x27;&gt; &amp; &lt;b&gt;" in table_html({nasty: sweep.scores(1.0)})
    questions = [ask(nasty, *(f"<i>{k}" for k in "abcd"))] * len(sweep.labels)
    markup = flips_html(sweep, sweep.at(0.0).flip(-1), questions)
    assert nasty not in markup and "<i>" not in markup
    assert "&lt;img" in markup and "&lt;i&gt;a" in markup
    assert nasty not in reliability_figure({nasty: (sweep.at(1.0), sweep.labels)}).to_json()


# --------------------------------------------------------------------------------------------------------------- flips


@pytest.fixture
def four_questions():
    """At the mean the answers are 0, 1, 2, 0; right are 0, 0, 1, 1."""
    mean = 4 * torch.eye(3)[[0, 1, 2, 0]]
    labels = torch.tensor([0, 0, 1, 1])
    questions = [ask(f"Question {i}?", f"red {i}", f"green {i}", f"blue {i}") for i in range(4)]
    return TauSweep((0.0,), mean.view(1, 1, 4, 3), labels), questions


def test_flips_by_hand(four_questions):
    sweep, questions = four_questions
    now = torch.eye(3)[[2, 0, 0, 0]]  # 0: right → wrong, 1: wrong → right, 2: wrong → wrong, 3: stays
    markup = flips_html(sweep, now, questions)
    assert text(markup) == (
        "3 of 4 answers differ from the mean's: 1 became right, 1 became wrong, 1 stayed wrong. question at the mean "
        "now Question 0? red 0 ✓ blue 0 ✗ Question 1? green 1 ✗ red 1 ✓ Question 2? blue 2 ✗ red 2 ✗"
    )


def test_no_flip_no_list(four_questions):
    sweep, questions = four_questions
    assert text(flips_html(sweep, sweep.at(0.0), questions)).startswith("0 of 4 answers differ")
    assert "<table" not in flips_html(sweep, sweep.at(0.0), questions)


def test_without_questions_flips_are_only_counted(four_questions):
    sweep, _ = four_questions
    assert "<table" not in flips_html(sweep, torch.eye(3)[[2, 0, 0, 0]], None)


def test_a_long_list_of_flips_is_cut_and_says_so(four_questions):
    sweep, questions = four_questions
    markup = flips_html(sweep, torch.eye(3)[[2, 0, 0, 0]], questions, limit=2)
    assert "Question 1?" in markup and "Question 2?" not in markup and "… and 1 more." in markup
    assert "more" not in flips_html(sweep, torch.eye(3)[[2, 0, 0, 0]], questions, limit=3)


def test_without_the_means_answers_there_is_nothing_to_compare_with():
    no_mean = synthetic(taus=(0.5, 1.0), linear=False)
    assert flips_html(no_mean, no_mean.at(1.0), None) == ""
    explorer = TauExplorer(no_mean)  # it works all the same, without the mean's row
    assert MEAN not in explorer._table.value and explorer._flips.value == ""
    on_line = synthetic(taus=(0.5, 1.0))
    assert "0 of 50" in flips_html(on_line, on_line.linear.mean.softmax(-1), None)


# ------------------------------------------------------------------------------------------------------------ explorer


def assert_shows(explorer, tau, samples=None, linear=False):
    """Scores, table, marker, curves, bars and flips are those of this point."""
    sweep = explorer.sweep
    probs = sweep.at(tau, samples, linear=linear)
    want = score(probs, sweep.labels)
    assert explorer.tau == tau and explorer.linear == linear
    assert explorer.scores == want and explorer.scores.intervals == want.intervals
    kind = "linearised" if linear else "1 draw" if samples == 1 else f"{samples or sweep.samples} draws"
    rows = {MEAN: score(sweep.at(0.0), sweep.labels), f"τ = {tau:g}, {kind}": want}
    assert explorer._table.value == table_html(rows)
    for name in METRICS:
        low, high = want.intervals[name]
        assert f"{want[name]:.3f} [{low:.3f}, {high:.3f}]" in text(explorer._table.value)
        at, value = explorer.marker[name]
        assert at == tau and value == pytest.approx(want[name], abs=6e-5)
        marker = traces(explorer.figure, "now")[name]
        assert (marker.x[0], marker.y[0]) == explorer.marker[name] and marker.name == f"τ = {tau:g}"
    on_path = explorer.path.data[-1]
    assert [on_path.x[0], on_path.y[0]] == rounded([want["nll"], want["acc"]])
    assert list(on_path.hovertext) == [f"τ = {tau:g}"]
    curves = sweep.curves(explorer.samples)
    assert list(explorer.path.data[0].x) == rounded(curves["nll"])
    bars, table = explorer.reliability.data[0], metrics.reliability(probs.double(), sweep.labels)
    assert list(bars.y) == rounded(table.accuracy.nan_to_num(0.0))
    assert list(bars.customdata) == (table.weight * len(sweep.labels)).round().tolist()
    assert list(bars.marker.color) == reliability_bars(probs, sweep.labels)["marker"]["color"]
    assert explorer.reliability.layout.annotations[0].text == f"<b>τ = {tau:g}, {kind}</b>"
    assert explorer._flips.value == flips_html(sweep, probs, explorer.questions)


def test_the_explorer_starts_at_the_posterior_with_all_draws(sweep):
    explorer = TauExplorer(sweep)
    assert explorer.samples == 4
    assert_shows(explorer, 1.0)


def test_rivals_are_points_beside_the_path(sweep):
    rival = Scores({"acc": 0.9, "ece": 0.1, "nll": 0.2, "brier": 0.3}, {}, 50)
    names = [trace.name for trace in TauExplorer(sweep, rivals={"AdamW": rival}).path.data]
    assert names == ["IVON, from τ to τ", "AdamW", "now"]


def test_setting_tau_moves_everything(sweep):
    explorer = TauExplorer(sweep, [ask(f"Question {i}?", *"abcd") for i in range(50)])
    for tau in (0.25, 0.0, 1.0):
        explorer.tau = tau
        assert_shows(explorer, tau)
    assert "Question" in explorer._flips.value


def test_setting_samples_moves_everything_and_the_curves(sweep):
    explorer = TauExplorer(sweep)
    ranges = explorer.figure.layout.yaxis3.range
    for count in (1, 3):
        explorer.samples = count
        assert_shows(explorer, 1.0, count)
        for name, curve in traces(explorer.figure, "ivon").items():
            assert list(curve.y) == rounded(sweep.curves(count)[name])
            assert curve.name == ("1 draw" if count == 1 else "3 draws")
            low, high = explorer.figure.layout[curve.yaxis.replace("y", "yaxis")].range
            assert low < min(curve.y) and max(curve.y) < high
    assert explorer.figure.layout.yaxis3.range == ranges  # the axis stays, so that the curve is seen to move


def test_linear_mode_takes_any_tau_and_keeps_it(sweep):
    explorer = TauExplorer(sweep)
    explorer.tau = 0.25
    explorer.linear = True
    assert_shows(explorer, 0.25, linear=True)
    for tau in (0.37, 0.0, 0.98):
        explorer.tau = tau
        assert_shows(explorer, tau, linear=True)
    explorer.tau = 0.4
    explorer.linear = False
    assert_shows(explorer, 0.25)  # the nearest τ that was sampled


def test_controls_of_the_other_mode_are_hidden(sweep):
    explorer = TauExplorer(sweep)

    def shown():
        controls = (explorer._tau, explorer._samples, explorer._any_tau)
        return [control.layout.display != "none" for control in controls]

    assert shown() == [True, True, False]
    explorer.linear = True
    assert shown() == [False, False, True]
    explorer.linear = False
    assert shown() == [True, True, False]


def test_moving_the_controls_does_the_same_as_code(sweep):
    explorer = TauExplorer(sweep)
    explorer._tau.index = 1  # what the browser sends when a slider moves
    explorer._samples.value = 2
    assert_shows(explorer, 0.25, 2)
    explorer._mode.index = 1
    explorer._any_tau.value = 0.61
    assert_shows(explorer, 0.61, linear=True)


def test_a_tau_off_the_grid_is_refused_and_changes_nothing(sweep):
    explorer = TauExplorer(sweep)
    with pytest.raises(ValueError, match=re.escape("tau=0.3 was not sampled (grid: 0, 0.25, 1); set explorer.linear")):
        explorer.tau = 0.3
    assert_shows(explorer, 1.0)
    explorer.linear = True
    for tau in (-0.1, 1.2):  # a slider would clip it without a word
        with pytest.raises(ValueError, match="the slider goes from 0 to 1"):
            explorer.tau = tau
    assert_shows(explorer, 1.0, linear=True)


@pytest.mark.parametrize("samples", [0, 5])
def test_more_draws_than_there_are_or_none_are_refused(sweep, samples):
    explorer = TauExplorer(sweep)
    with pytest.raises(ValueError, match="the sweep has 4 draws"):
        explorer.samples = samples
    assert_shows(explorer, 1.0)


def test_without_a_linear_part_the_mode_is_refused_and_not_offered():
    explorer = TauExplorer(synthetic(linear=False))
    with pytest.raises(ValueError, match="no linearised Gaussian"):
        explorer.linear = True
    assert explorer._mode.options == ("sampled",) and explorer._mode.layout.display == "none"
    assert_shows(explorer, 1.0)


def test_one_tau_is_enough(four_questions):
    sweep, questions = four_questions
    assert_shows(TauExplorer(sweep, questions), 0.0, 1)


def test_a_notebook_shows_the_widget(sweep):
    bundle = TauExplorer(sweep)._repr_mimebundle_(include=None, exclude=None)
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "application/vnd.jupyter.widget-view+json" in data


def test_the_slider_starts_at_the_posterior_and_says_how_many_draws_were_made():
    whole = synthetic(taus=(0.0, 1.0, 4.0), linear=False)
    few = TauSweep(whole.taus, whole.logits, whole.labels, drawn=(1, 4, 2))
    explorer = TauExplorer(few)
    assert explorer.tau == 1.0 and "τ = 1, 2 draws" in text(explorer._table.value)  # as many as every τ has
    explorer.samples = 4
    assert "τ = 1, 4 draws" in text(explorer._table.value)
    explorer.tau = 4.0
    assert "τ = 4, 2 draws" in text(explorer._table.value)
    assert dict(explorer.scores) == pytest.approx(dict(few.scores(4.0, 2)))
    explorer.tau = 0.0
    assert "τ = 0, 1 draw" in text(explorer._table.value)


def test_the_page_says_that_every_tau_has_equally_many_draws_where_one_has_more(tmp_path):
    whole = synthetic(taus=(0.0, 1.0, 4.0), linear=False)
    few = TauSweep(whole.taus, whole.logits, whole.labels, drawn=(1, 4, 2))
    said = [sweep_html(sweep, tmp_path / "sweep.html").read_text("utf8") for sweep in (whole, few)]
    assert "Every τ has" not in said[0]
    assert "Every τ has 2 draws here" in said[1] and f"has all {whole.samples} draws of τ = 1" in said[1]
    assert "τ = 1, 2 draws" in said[1] and "τ = 1, 4 draws" not in said[1]


# --- the path, lengths, draws ----------------------------------------------------------------------------------------


def test_the_path_holds_accuracy_against_nll_at_every_tau_and_the_rivals(sweep):
    rivals = {"AdamW": Scores({"acc": 0.9, "ece": 0.1, "nll": 0.2, "brier": 0.3}, {}, 50), "before": sweep.scores(0.25)}
    figure = path_figure(sweep, 0.25, rivals)
    path, adamw, before, now = figure.data
    curves = sweep.curves()
    assert list(path.x) == rounded(curves["nll"]) and list(path.y) == rounded(curves["acc"])
    assert list(path.hovertext) == ["τ = 0", "τ = 0.25", "τ = 1"]
    assert (adamw.x[0], adamw.y[0], adamw.marker.color) == (0.2, 0.9, COLORS["adamw"])
    assert before.marker.color == COLORS["before"]
    at = sweep.scores(0.25)
    assert [now.x[0], now.y[0]] == rounded([at["nll"], at["acc"]]) and now.marker.color == COLORS["now"]
    for axis, values in ((figure.layout.xaxis, [0.2, *path.x]), (figure.layout.yaxis, [0.9, *path.y])):
        assert axis.range[0] < min(values) and max(values) < axis.range[1]


def test_no_label_of_the_path_lies_on_another_and_its_ends_have_theirs():
    labels, step = torch.zeros(200, dtype=torch.long), [0, 1, 2, 3, 25]  # wrong answers at each τ: four points close by
    logits = torch.tensor([[2.0, 0.0]]).repeat(5, 1, 200, 1)
    for k, wrong in enumerate(step):
        logits[k, 0, :wrong] *= -1
    figure = path_figure(TauSweep((0.0, 0.25, 0.5, 1.0, 2.0), logits, labels))
    path = figure.data[0]
    shown = [k for k, label in enumerate(path.text) if label]
    assert {0, 4} < set(shown) < set(range(5))
    (left, right), (low, high) = figure.layout.xaxis.range, figure.layout.yaxis.range
    for a, b in itertools.combinations(shown, 2):
        across, up = abs(path.x[a] - path.x[b]) / (right - left), abs(path.y[a] - path.y[b]) / (high - low)
        assert across > 0.09 or up > 0.045


def test_lengths_are_means_with_standard_errors_over_seeds():
    def scores(value):
        return {name: value + k for k, name in enumerate(METRICS)}

    figure = lengths_figure({"AdamW": {20: [scores(1.0), scores(3.0)], 5: [scores(0.5)]}, "IVON": {5: [scores(0.0)]}})
    assert len(figure.data) == 8
    for k, trace in enumerate(figure.data[:4]):
        assert list(trace.x) == [5, 20] and list(trace.y) == pytest.approx([0.5 + k, 2.0 + k])
        assert list(trace.error_y.array) == pytest.approx([0.0, 1.0])  # of 1 and 3 it is √2/√2
        assert trace.error_y.width == 0  # so that one seed has no bar, instead of one that claims no error
        assert trace.line.color == COLORS["adamw"] and trace.name == "AdamW"
    assert figure.data[4].line.color == COLORS["ivon"]
    assert list(figure.layout.xaxis.tickvals) == [5, 20]
    both = lengths_figure({"IVON@mean": {5: [scores(0.0)]}, "IVON": {5: [scores(1.0)]}})
    assert [(trace.name, trace.line.dash) for trace in both.data[::4]] == [("IVON@mean", "dash"), ("IVON", "solid")]
    many = lengths_figure({f"IVON {k}": {5: [scores(0.0)]} for k in range(6)})
    assert [t.line.dash for t in many.data[::4]] == ["solid", "dash", "dot", "dashdot", "solid", "dash"]


def test_a_question_is_shown_draw_by_draw():
    draws = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    question = Question("", ("<b>wet</b>", "dry"), 1, "Water is …?", ("A", "B"))
    page = draws_html(question, draws, {"AdamW": torch.tensor([0.9, 0.1])})
    head, wet, dry = "AdamW draw 1 draw 2 average", "0.90 0.75 0.25 0.50", "0.10 0.25 0.75 0.50"
    assert text(page) == f"Water is …? {head} &lt;b&gt;wet&lt;/b&gt; {wet} dry ✓ {dry}"
