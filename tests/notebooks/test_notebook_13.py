"""What notebook 13 builds is what the library does, its sliders say what they show, and its text what was recorded."""

import json
import math
import types

import pytest
import torch
from cells import NOTEBOOKS, defined_in

from ivon_lora_lite import IVON, GaussianPosterior, Linearized, leave_one_out
from ivon_lora_lite.applications import merged_mean
from ivon_lora_lite.files import read_json
from ivon_lora_lite.studies import recorded

NAME = "13_sensitivity_and_merging.ipynb"
TEXT = (NOTEBOOKS / NAME).read_text("utf8")
CELLS = ["".join(c["source"]) for c in json.loads(TEXT)["cells"] if c["cell_type"] == "code"]
PROSE = "".join("".join(c["source"]) for c in json.loads(TEXT)["cells"] if c["cell_type"] == "markdown")


@pytest.fixture(autouse=True)
def double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def toy():
    given = {"torch": torch, "math": math, "IVON": IVON, "contextlib": __import__("contextlib")}
    return defined_in(NAME, "moons", "bumps", "losses", "train", "left_out", **given)


def run_cells(monkeypatch, *beginnings):
    """The set-up cell without its installation, then the cells that hold these words, without showing figures."""
    go = pytest.importorskip("plotly.graph_objects")
    pytest.importorskip("anywidget")
    monkeypatch.setattr(go.Figure, "show", lambda self, *_: None)
    space = {"ivon_lora_lite": __import__("ivon_lora_lite")}
    sources = [CELLS[0].split("repository\n", 1)[1], CELLS[1], *(next(c for c in CELLS if b in c) for b in beginnings)]
    for source in sources:
        exec(source, space)
    return space


def test_the_line_of_the_slider_is_that_of_the_equation_and_of_the_fit(monkeypatch):
    space = run_cells(monkeypatch, "refitted = ", "def redraw(change")
    for example in (1, 9, 16):
        space["which"].value = example
        _, _, predicted, fitted, dot = space["live"].data
        for trace, way in ((predicted, space["moved"]), (fitted, space["refitted"])):
            height, slope = (space["m"] + way[example - 1]).tolist()
            assert trace.y == pytest.approx([height - 1.7 * slope, height + 1.7 * slope], abs=1e-3)
        assert dot.y[0] == pytest.approx(float(space["y"][example - 1]), abs=1e-3)
        assert f"without {example}: height {space['moved'][example - 1, 0]:+.3f}" in space["note"].value
    # the text: number 9 changes the height most, number 16 the slope, although 9 is farther from the line
    assert space["refitted"].abs().argmax(0).tolist() == [8, 15]
    residual = (space["phi"] @ space["m"] - space["y"]).abs()
    assert residual.argmax() == 8 and (space["moved"].abs() <= space["refitted"].abs() + 1e-12).all()


def test_the_merged_gaussian_of_the_slider_is_the_product(monkeypatch):
    space = run_cells(monkeypatch, "def both(")
    for ratio in (0.0625, 1.0, 16.0):
        space["ratio"].value = ratio
        mean, total = merged_mean(torch.zeros(1), [-torch.ones(1), torch.ones(1)], [1.0, ratio])
        assert f"product at {float(mean):+.2f} with σ = {float(total) ** -0.5:.2f}" in space["said"].value
        one, two, both = (torch.tensor(trace.y) for trace in space["pair"].data)
        product = one * two / (one * two).sum()
        torch.testing.assert_close(both / both.sum(), product, atol=2e-4, rtol=0.02)
    assert space["both"](4.0)[0] == pytest.approx(0.6)


def test_the_expected_loss_is_that_of_the_library(toy):
    points, labels, wrong = toy["moons"](3)
    assert len(points) == 80 and int(wrong.sum()) == 8
    features = toy["bumps"](points)
    mean, variance = toy["train"](features, labels, steps=60)
    change, expected = toy["left_out"](features, labels, mean, variance, 0.01)
    spread = features.square() @ variance  # of logit 1; logit 0 is 0
    zero = torch.zeros(80)
    line = Linearized(
        torch.stack([zero, features @ mean], 1), torch.diag_embed(torch.stack([zero, spread], 1)), labels.long()
    )
    gaussian = GaussianPosterior({"w": mean}, {"w": variance}, {"ess": 80.0})
    left_out = leave_one_out(types.SimpleNamespace(posterior=gaussian, config={"train_size": 80}), line)
    library = torch.nn.functional.cross_entropy(left_out.mean, left_out.labels, reduction="none")
    held = (1 / (80 * variance) - 0.01 > 0).all()  # a noisy h below 0 counts as 0 in the notebook
    torch.testing.assert_close(expected.mean(), library.mean(), atol=1e-8 if held else 0.02, rtol=0)
    assert (change >= 0).all() and (expected >= toy["losses"](features @ mean, labels)).all()


def test_copies_of_a_weight_are_weights(toy):
    """k weights with feature φ/√k, each with a k-th of the curvature, summed up as the equation does."""
    features = torch.rand(80, 5, generator=torch.Generator().manual_seed(0))
    labels, mean, h, delta, k = (torch.arange(80) % 2).double(), torch.linspace(-1, 1, 5), torch.rand(5) + 0.1, 0.05, 4
    found = toy["left_out"](features, labels, mean, 1 / (80 * (h + delta)), delta, copies=k)
    wide, many = (features / k**0.5).repeat(1, k), (mean / k**0.5).repeat(k)
    torch.testing.assert_close(wide @ many, features @ mean)  # the same model
    expected = toy["left_out"](wide, labels, many, 1 / (80 * ((h / k).repeat(k) + delta)), delta)
    torch.testing.assert_close(found, expected)


def test_what_it_says_of_the_expected_test_loss_is_recorded():
    files = sorted(recorded("left-out").glob("estimate-*-20-passes-*.json"))
    assert len(files) == 3
    for file in files:
        losses = {name: curve[0] for name, curve in read_json(file)["nll"].items()}
        assert losses["left_out"] > 20 and 0.55 < losses["test"] < 0.65 and 0.025 < losses["train"] < 0.045
        assert losses["validation"] < losses["test"]
    run = read_json(recorded("passes") / "20-passes/everyday@2/ivon/seed21/metrics.json")
    settings = run["settings"]
    assert f"λ = {settings['ess']:,.0f}" in PROSE and settings["weight_decay"] == 0 and settings["ess"] / 160 > 1000
    assert "460,800" in PROSE and 30 * (8 * (576 + 576) + 8 * (576 + 192)) == 460_800


def test_what_it_says_of_wrong_labels_is_recorded():
    """AdamW's loss is ahead, and it has learned few wrong labels by heart; the sensitivity beats IVON's own loss."""
    files = sorted(recorded("left-out").glob("labels-*-20-passes-*.json"))
    assert len(files) == 3 and "on each of the three seeds" in PROSE.lower()
    for file in files:
        record = read_json(file)
        found, wrong = record["auroc"], record["wrong"]
        assert found["AdamW's loss"] > found["sensitivity"] > found["loss"] > 0.7 and len(wrong) == 16
        assert found["loss of draws"] > found["sensitivity"] - 0.04
        assert sum(file_["auroc"]["loss of draws"] for file_ in map(read_json, files)) / 3 > 0.84
        for name, low, high in (("AdamW's loss", 2, 4), ("loss", 13, 15)):  # by heart
            assert low <= sum(record["measures"][name][i] < math.log(2) for i in wrong) <= high


def test_what_it_says_of_merging_is_recorded():
    records = [read_json(file) for file in sorted(recorded("merging").glob("seed*.json"))]
    assert len(records) == 3 and "on each of the three seeds. Both moved too little" in PROSE
    gaps = {"everyday@2": [], "arc_easy": [], "openbookqa": []}
    for record in records:
        nll = {kind: {task: s["nll"] for task, s in tasks.items()} for kind, tasks in record["test"].items()}
        assert all(nll["precision"][task] > nll["average"][task] + 0.02 for task in ("everyday@2", "arc_easy"))
        assert all(chosen["scale"] >= 1.5 for chosen in record["chosen"].values())
        assert min(scores["openbookqa"] for scores in nll.values()) > math.log(4)
        for task, found in gaps.items():
            found.append(nll["precision, scaled"][task] - nll["average, scaled"][task])
        assert abs(nll["average, scaled"]["arc_easy"] - nll["only arc_easy"]["arc_easy"]) < 0.006
        assert 0 < nll["average, scaled"]["everyday@2"] - nll["only everyday@2"]["everyday@2"] < 0.02
    scales = [record["chosen"]["precision"]["scale"] for record in records]
    assert scales == [1.5, 1.5, 2] and all(first > 0 < second and third < 0 for first, second, third in (gaps["everyday@2"], gaps["arc_easy"]))
    assert max(gaps["openbookqa"]) < 0


def test_nothing_recorded_is_an_empty_list_and_says_so(tmp_path):
    def missing(name):
        raise FileNotFoundError(name)

    records = defined_in(NAME, "records", json=json, recorded=missing)["records"]
    assert records("merging", "seed*.json") == []
    (tmp_path / "seed2.json").write_text('{"seed": 2}', "utf8")
    (tmp_path / "summary.json").write_text("{}", "utf8")
    records = defined_in(NAME, "records", json=json, recorded=lambda name: tmp_path)["records"]
    assert records("merging", "seed*.json") == [{"seed": 2}]


@pytest.mark.parametrize("seeds", [0, 1, 3])
def test_the_cells_of_wrong_labels_and_of_merging_show_what_is_there(seeds, tmp_path, monkeypatch, capsys):
    plots = pytest.importorskip("ivon_lora_lite.plots")
    shown = []

    def dots_figure(panels):
        shown.append(panels)
        return types.SimpleNamespace(show=lambda: plots.dots_figure(panels))

    for seed in range(seeds):
        auroc = {"AdamW's loss": 0.7 + seed / 100, "sensitivity": 0.8}
        label = {"passes": 20, "seed": seed, "auroc": auroc}
        (tmp_path / f"labels-everyday@2-20-passes-seed{seed}.json").write_text(json.dumps(label), "utf8")
        scores = {"everyday@2": {"acc": 0.5, "nll": 1.0}, "arc_easy": {"acc": 0.3, "nll": 2.0 + seed}}
        merged = {"seed": seed, "test": {kind: scores for kind in ("average", "precision, scaled", "average, scaled")}}
        (tmp_path / f"seed{seed}.json").write_text(json.dumps(merged), "utf8")
    space = {"json": json, "dots_figure": dots_figure}
    for words in ("planted = records", 'records("merging"'):
        source = next(cell for cell in CELLS if words in cell)
        exec(
            source.replace("from ivon_lora_lite.studies import recorded", ""), {**space, "recorded": lambda _: tmp_path}
        )
        space["records"] = defined_in(NAME, "records", json=json, recorded=lambda _: tmp_path)["records"]
    said = capsys.readouterr().out
    assert said.count("Nothing is recorded yet") == (0 if seeds else 2)
    assert ("one seed has no error bar" in said) == (seeds == 1)
    if seeds:
        labels, merging = shown
        assert len(labels["AUROC after 20 passes"]["IVON's sensitivity"]) == seeds
        assert list(merging) == ["NLL, everyday", "NLL, arc_easy"] and merging["NLL, everyday"]["average"] == [1.0] * seeds
        assert merging["NLL, arc_easy"]["precision, scaled"] == [2.0 + seed for seed in range(seeds)]
    else:
        assert not shown
