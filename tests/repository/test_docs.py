"""Every number that prose shows comes from a file in data/."""

import json
import re
from statistics import fmean

import pytest
import torch
from conftest import ROOT, load_script

from ivon_lora_lite import Predictions, TauSweep, hyperparameters, paired_differences, score
from ivon_lora_lite.cli import build_parser
from ivon_lora_lite.evaluation import accuracy
from ivon_lora_lite.files import read_json
from ivon_lora_lite.language import full_name
from ivon_lora_lite.studies import by_length, load_records
from ivon_lora_lite.studies.demo import DEMO, METRICS_FILE, summarize

RUNS = ROOT / "data" / "runs"
ADAMW_LOSS = "AdamW's loss"
METHODS_OF_IVON = ("ivon", "ivon@mean", "temperature@ivon", "ivon@linearized", "tfb@ivon")
README = (ROOT / "README.md").read_text("utf8")


def refresh():
    return load_script("docs/refresh.py")


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "results.md"], ids=lambda page: page.name)
def test_tables_are_the_recorded_ones(page):
    text = page.read_text("utf8")
    assert "made by docs/refresh.py" in text and refresh().filled(text) == text


def test_every_table_stands_on_a_page():
    pages = "".join(page.read_text("utf8") for page in refresh().PAGES)
    assert set(re.findall(r"<!-- ([\w ]+) table, made by", pages)) == set(refresh().TABLES)


def test_summary_is_that_of_the_recorded_seeds():
    folder = RUNS / "demo"
    recorded = json.loads((folder / "summary.json").read_text())
    assert recorded == json.loads(json.dumps(summarize([folder / f"seed{seed}" for seed in recorded["seeds"]])))
    assert len(recorded["seeds"]) >= 3


@pytest.mark.parametrize("seed", [21, 42, 87])
def test_recorded_scores_follow_from_the_recorded_logits(seed):
    folder = RUNS / "demo" / f"seed{seed}"
    record = json.loads((folder / METRICS_FILE).read_text())
    names = {"before training": "before-training", "AdamW": "adamw", "IVON@mean": "ivon-mean", "IVON": "ivon"}
    for method, name in names.items():
        predictions = Predictions.load(folder / "predictions" / f"{name}.safetensors")
        again = score(predictions, intervals=False)
        assert {k: record["scores"][method][k] for k in again} == pytest.approx(dict(again), abs=1e-6)


def test_the_recorded_demo_used_the_presets_and_the_demos_own_sizes():
    record = json.loads((RUNS / "demo" / "seed21" / METRICS_FILE).read_text())
    for optimizer in ("ivon", "adamw"):
        assert record["settings"][optimizer] == hyperparameters(optimizer, "small", "everyday", DEMO["steps"])
    assert {k: record["config"][k] for k in ("steps", "train_size", "batch_size", "samples", "task")} == {
        k: DEMO[k] for k in ("steps", "train_size", "batch_size", "samples", "task")
    } | {"task": full_name(DEMO["task"])}


def test_the_command_and_the_function_have_the_same_defaults():
    args = vars(build_parser().parse_args(["demo"]))
    assert {name: args[name] for name in DEMO} == DEMO


def test_the_first_search_says_which_trial_was_best():
    """It was made on `everyday@1`; the preset for 200 steps was its winner until the search at several lengths."""
    folder = RUNS / "everyday-search"
    summary = json.loads((folder / "summary.json").read_text())
    for method, optimizer in (("adamw@mean", "adamw"), ("ivon@draws5", "ivon")):
        trials = {f.stem: json.loads(f.read_text()) for f in folder.glob(f"{optimizer}-*.json")}
        kind = method.split("@")[1]
        best = min(trials, key=lambda name, kind=kind, trials=trials: trials[name]["validation"][kind]["nll"])
        assert summary[method]["trial"] == best


LENGTHS = {"5": 200, "20 of 100": 500, "20": 800, "40": 1600}  # passes over the training questions → steps


@pytest.mark.parametrize("optimizer", ["adamw", "ivon"])
@pytest.mark.parametrize("length", LENGTHS)
def test_small_preset_at_other_lengths_is_the_best_trial_there(length, optimizer):
    search = load_script("benchmarks/search.py")
    trials = search.summary(RUNS / "search")[length]
    assert len({len(found) for found in trials.values()}) == 1  # the same number for both optimizers
    judged = search.JUDGED_BY[optimizer]
    records = [json.loads((RUNS / "search" / f"{t['file']}.json").read_text()) for t in trials[optimizer]]
    best = min(records, key=lambda record: record["validation"][judged]["nll"])
    assert hyperparameters(optimizer, "small", "everyday", LENGTHS[length]) == best["config"]["settings"]


def test_what_is_said_of_more_passes_is_recorded():
    """AdamW pays for more passes and IVON gains; at 20 it is better in all, at 5 the fitted temperature is."""
    records = by_length(RUNS / "passes")
    pooled = {(title, n): [r.predictions for r in rs] for title, lines in records.items() for n, rs in lines.items()}

    def interval(a, b, metric):
        return paired_differences(pooled[a], pooled[b])[metric]["interval"]

    assert {n: len(records["IVON"][n]) for n in (5, 20)} == {5: 3, 20: 3}
    assert interval(("AdamW", 5), ("AdamW", 20), "nll")[0] > 0
    assert interval(("AdamW + temperature", 5), ("AdamW + temperature", 20), "nll")[0] > 0
    assert interval(("IVON", 5), ("IVON", 20), "nll")[1] < 0 < interval(("AdamW", 20), ("IVON", 20), "acc")[0]
    for rival in (("AdamW", 5), ("AdamW", 20), ("AdamW + temperature", 5), ("AdamW + temperature", 20)):
        assert interval(rival, ("IVON", 20), "nll")[1] < 0
    low, high = interval(("AdamW", 5), ("IVON", 5), "acc")
    assert low < 0 < high and interval(("AdamW + temperature", 5), ("IVON", 5), "nll")[0] > 0
    scaled = ("IVON@mean + temperature", 20)
    assert (
        interval(("AdamW + temperature", 20), scaled, "nll")[1]
        < 0
        < interval(("AdamW + temperature", 20), scaled, "acc")[0]
    )
    for metric in ("acc", "ece", "nll", "brier"):
        low, high = interval(scaled, ("IVON", 20), metric)
        assert low < 0 < high
    for record in records["IVON"][20]:
        assert record.scores["ece"] < record.floor + 0.01
    for n, steps in ((5, 200), (20, 800)):  # what was chosen on validation questions, and nothing else
        for title, name in (("AdamW", "adamw"), ("IVON", "ivon")):
            for record in records[title][n]:
                assert record.content["settings"] == hyperparameters(name, "small", "everyday", steps)


def test_what_is_said_of_the_learned_variance_is_recorded():
    """Spread evenly it ruins accuracy and NLL; against an h that stays the Brier score alone is told apart."""
    record = read_json(RUNS / "learned" / "everyday@2-20-passes.json")
    assert record["seeds"] == ["21", "42", "87"]
    for kind in ("one size", "one size a tensor"):
        differences = record["learned_minus"][kind]
        assert differences["acc"]["interval"][0] > 0.05 and differences["nll"]["interval"][1] < -0.1
    stays = {name: d["interval"] for name, d in record["learned_minus"]["h stays"].items()}
    assert all(stays[name][0] < 0 < stays[name][1] for name in ("acc", "ece", "nll")) and stays["brier"][1] < 0
    for seed in record["sigma"].values():
        every = sorted((q["p50"], name) for name, q in seed["tensors"].items())
        lowest = {name for _, name in every[:2]}  # the medians of two matrices
        assert all(".v_proj.lora_B." in name and re.search(r"\.layers\.[01]\.", name) for name in lowest)
        assert every[0][0] < 0.55 * seed["start"] and every[len(every) // 2][0] > seed["start"]


def test_what_is_said_of_pruning_is_recorded():
    """Three quarters for nothing; at nine tenths |m|/σ loses a few points and |m| far more than ten."""
    files = sorted((RUNS / "sweeps").glob("everyday@2-seed*/pruned.safetensors"))
    assert files
    for file in files:
        cut = Predictions.load(file)
        acc = {tuple(row): float(accuracy(p, cut.labels)) for row, p in zip(cut.metadata["rows"], cut.probabilities)}
        whole = acc[0.0, "none"]
        assert acc[0.75, "ratio"] > whole - 0.01 and acc[0.75, "size"] > whole - 0.025
        assert whole - 0.06 < acc[0.9, "ratio"] < whole - 0.01 and acc[0.9, "size"] < whole - 0.1


def test_what_is_said_of_left_out_questions_is_recorded():
    files = sorted((RUNS / "left-out").glob("estimate-*.json"))
    assert files
    for file in files:
        losses = read_json(file)["nll"]
        assert losses["left_out"][0] > 10 and losses["test"][0] < 1
    assert read_json(RUNS / "left-out" / "summary.json") == json.loads(
        json.dumps(load_script("benchmarks/left_out.py").summary(RUNS / "left-out"))
    )


def test_what_is_said_of_a_second_task_is_recorded():
    """ARC-Easy, settings of `everyday`: less than half of the gain in NLL, and no accuracy to tell apart."""
    records = {title: lengths[20] for title, lengths in by_length(RUNS / "passes", "arc_easy").items()}
    own = {title: lengths[20] for title, lengths in by_length(RUNS / "passes").items()}
    for title in ("AdamW", "IVON"):
        assert records[title][0].content["settings"] == own[title][0].content["settings"]
        assert len(records[title]) == 3 and len(records[title][0].predictions.labels) == 2365

    def difference(rows, a, b):
        return paired_differences([r.predictions for r in rows[a]], [r.predictions for r in rows[b]])

    gaps = {a: difference(records, a, "IVON") for a in ("AdamW", "AdamW + temperature", "IVON@mean + temperature")}
    for gap in gaps.values():
        low, high = gap["acc"]["interval"]
        assert low < 0 < high
    readme = " ".join(README.split())
    for a in ("AdamW", "AdamW + temperature"):
        low, high = gaps[a]["nll"]["interval"]
        said = f"{gaps[a]['nll']['difference']:.3f} [{low:.3f}, {high:.3f}]".replace("-", "−")
        assert high < 0 and said in readme
    low, high = gaps["IVON@mean + temperature"]["nll"]["interval"]
    assert low < 0 < high
    scaled = "AdamW + temperature", "IVON@mean + temperature"
    assert difference(records, *scaled)["nll"]["interval"][1] < 0
    for pair in (("AdamW", "IVON"), ("AdamW + temperature", "IVON"), scaled):
        share = difference(records, *pair)["nll"]["difference"] / difference(own, *pair)["nll"]["difference"]
        assert 0.25 < share < 0.5
    early = {title: lengths[5] for title, lengths in by_length(RUNS / "passes", "arc_easy").items()}
    assert len(early["IVON"]) == 3
    gap = difference(early, "AdamW", "IVON")
    assert gap["acc"]["interval"][1] < 0 < gap["brier"]["interval"][0]
    assert f"{gap['acc']['difference']:.3f}" == "-0.007"
    low, high = gap["nll"]["interval"]
    assert low < 0 < high
    results = " ".join((ROOT / "docs" / "results.md").read_text("utf8").split())

    def text(found):
        low, high = found["interval"]
        return f"{found['difference']:+.3f} [{low:+.3f}, {high:+.3f}]".replace("-", "−")

    for a, b, in_readme in (("AdamW", "IVON", True), ("AdamW + temperature", "IVON", False), (*scaled, True)):
        gap = paired_differences([r.predictions for r in early[a]], [r.predictions for r in records[b]])
        assert text(gap["nll"]) in results and (not in_readme or text(gap["nll"]) in readme)
        assert gap["acc"]["interval"][0] < 0 < gap["acc"]["interval"][1]
        low, high = gap["nll"]["interval"]
        assert low < 0 < high if b == "IVON" else high < 0
        assert (a, b) != ("AdamW", "IVON") or text(gap["acc"]) in results
    longer = paired_differences([r.predictions for r in early["AdamW"]], [r.predictions for r in records["AdamW"]])
    assert longer["acc"]["interval"][1] < 0 < longer["nll"]["interval"][0]
    for title in ("AdamW", "IVON@mean"):
        assert abs(difference(early, title, f"{title} + temperature")["nll"]["difference"]) < 0.006


def test_what_is_said_of_a_task_that_the_model_hardly_knows_is_recorded():
    """OpenBookQA: IVON's mean gains accuracy, and needs a temperature; its draws alone are overconfident."""
    records = {title: lengths[20] for title, lengths in by_length(RUNS / "passes", "openbookqa").items()}
    predictions = {title: [r.predictions for r in rows] for title, rows in records.items()}
    assert len(records["IVON"]) == 3 and len(records["IVON"][0].predictions.labels) == 500
    scaled = "AdamW + temperature", "IVON@mean + temperature"
    for (a, b), metric in ((("AdamW", "IVON@mean"), "acc"), (scaled, "nll")):
        found = paired_differences(predictions[a], predictions[b])[metric]
        low, high = found["interval"]
        said = f"{found['difference']:+.3f} [{low:+.3f}, {high:+.3f}]".replace("-", "−")
        assert low * high > 0 and said in " ".join(README.split())
    assert paired_differences(predictions[scaled[0]], predictions["IVON"])["nll"]["interval"][0] > 0
    for k in range(3):
        scores = {title: rows[k].scores for title, rows in records.items()}
        assert min(scores, key=lambda title: scores[title]["nll"]) == scaled[1]
        assert scores["AdamW"]["ece"] > scores["IVON"]["ece"] > records["IVON"][k].floor + 0.1
        assert scores["AdamW"]["acc"] < 0.32


def test_what_is_said_of_planted_labels_is_recorded():
    records = [read_json(file) for file in (RUNS / "left-out").glob("labels-*.json")]
    assert len(records) == 3
    for record in records:
        assert record["auroc"][ADAMW_LOSS] > record["auroc"]["sensitivity"] > record["auroc"]["loss"]
        assert len(record["wrong"]) == 16 and len(record["measures"]["loss"]) == 160
    found = {name: fmean(record["auroc"][name] for record in records) for name in records[0]["auroc"]}
    said = f"(AUROC {found['sensitivity']:.2f} against {found['loss']:.2f})"
    assert said in README and f"finds most ({found[ADAMW_LOSS]:.2f})" in README


def test_what_is_said_of_leaving_questions_out_is_recorded():
    """From the files of every seed: 160 questions, each left out once, and how the guesses order what that did."""
    found = read_json(RUNS / "left-out" / "summary.json")["groups"]["20 passes"]
    files = sorted((RUNS / "left-out").glob("groups-*-all.json"))
    assert len(files) == 3
    for k, file in enumerate(files):
        every = read_json(file)
        groups = [read_json(file.with_name(file.name.replace("all", f"without{g}"))) for g in range(4)]
        left_out = {i: record["loss"][i] for record in groups for i in record["group"]}
        assert sorted(left_out) == list(range(160))
        grown = torch.tensor([left_out[i] - every["loss"][i] for i in range(160)]).double().argsort().argsort().double()
        for guess in ("loss", "sensitivity", "influence"):
            ranks = torch.tensor(every[guess]).argsort().argsort().double()
            expected = float(torch.corrcoef(torch.stack([ranks, grown]))[0, 1])
            assert found[f"order by {guess}"]["values"][k] == pytest.approx(expected, abs=1e-3)
    orders = {guess: found[f"order by {guess}"] for guess in ("loss", "sensitivity", "influence")}
    assert all(a > b for a, b in zip(orders["sensitivity"]["values"], orders["loss"]["values"]))
    assert orders["influence"]["mean"] < orders["sensitivity"]["mean"]
    said = (
        f"(rank correlation {orders['sensitivity']['mean']:.2f}), a little better than the order of the plain loss does"
    )
    assert f"{said} ({orders['loss']['mean']:.2f}), on each of three seeds" in " ".join(README.split())


def test_what_is_said_of_the_corrected_mean_is_recorded():
    found = read_json(RUNS / "correction" / "summary.json")
    gap, name = found["corrected_minus_laplace"], "everyday@2-20-passes-diag-seed{}-{}.safetensors"
    low, high = gap["nll"]["interval"]
    said = f"the NLL falls by {-gap['nll']['difference']:.3f} [{-high:.3f}, {-low:.3f}] at the same accuracy"
    assert len(found["seeds"]) == 3 and high < 0 and said in README
    assert all(gap[m]["interval"][0] < 0 < gap[m]["interval"][1] for m in ("acc", "ece", "brier"))
    moved = [Predictions.load(RUNS / "correction" / name.format(s, "corrected")) for s in found["seeds"]]
    ivon = [Predictions.load(RUNS / f"table1/everyday@2/ivon/seed{s}/predictions.safetensors") for s in found["seeds"]]
    lead = paired_differences(moved, ivon)
    assert lead["nll"]["interval"][1] < 0 < lead["acc"]["interval"][0]
    assert f"IVON's draws are lower by another {-lead['nll']['difference']:.3f}" in README
    for before, first, last in found["objective"]:
        assert before - first > 5 * (first - last) > 0


def test_what_is_said_of_merging_is_recorded():
    """NLL on two tasks: worse than the average; with scales from validation higher on two seeds, lower on one."""
    found = [read_json(file)["test"] for file in sorted((RUNS / "merging").glob("seed*.json"))]
    said = " ".join(README.split())
    assert len(found) == 3 and "(higher on two of three seeds, lower on the third)" in said
    for task in ("everyday@2", "arc_easy"):
        for scaled in ("", ", scaled"):
            own, rival = ([test[kind + scaled][task]["nll"] for test in found] for kind in ("precision", "average"))
            assert f"{fmean(own):.3f} against {fmean(rival):.3f}" in said
            assert [a > b for a, b in zip(own, rival)] == ([True, True, False] if scaled else [True] * 3)


def test_what_is_said_of_temperature_scaling_in_the_demo():
    """Against IVON's draws: the same ECE and NLL within the intervals, a higher Brier score."""
    files = ["adamw-temperature", "ivon"]
    scaled, ivon = (
        [Predictions.load(RUNS / "demo" / f"seed{s}" / "predictions" / f"{f}.safetensors") for s in (21, 42, 87)]
        for f in files
    )
    intervals = {name: d["interval"] for name, d in paired_differences(scaled, ivon).items()}
    assert all(intervals[name][0] < 0 < intervals[name][1] for name in ("ece", "nll")) and intervals["brier"][1] < 0


def test_what_is_said_of_the_recorded_table_is_what_it_says():
    """IVON on average and by task, temperature scaling, Laplace: as the text beside the table has it."""
    from ivon_lora_lite import METHODS, Table

    table = Table.from_records(load_records(RUNS / "table1-5-passes"))
    later = {"laplace_kfac_validation", "laplace_diag_validation"}  # added after the recording, as the text says
    later |= {m for m in METHODS if m.partition("@")[0] in ("blob", "tfb", "scalabl", "pac_tuning", "gift_sw")}
    later |= {"temperature@ivon", "temperature@laplace_kfac", "ivon@linearized"}
    assert set(table.tasks) == {"everyday", "arc_easy", "openbookqa"}
    assert table.methods == [m for m in METHODS if m not in later]

    def value(metric, task):
        return {m: table.entries[metric, m, task].mean for m in table.methods}

    acc, ece, nll, brier = (value(metric, "average") for metric in ("acc", "ece", "nll", "brier"))
    assert max(acc, key=acc.get) == "ivon@mean" and acc["ivon"] < acc["adamw"]
    assert all(by["ivon@mean"] < by["adamw"] for by in (nll, ece, brier)) and nll["ivon"] < nll["ivon@mean"]
    assert all(min(by, key=by.get) == "temperature" for by in (nll, ece, brier))
    gains = {task: value("nll", task)["adamw"] - value("nll", task)["ivon"] for task in table.tasks}
    assert gains["openbookqa"] > 0.1 > gains["arc_easy"] > 0.01 > abs(gains["everyday"])
    assert 0.25 < value("acc", "openbookqa")["adamw"] < 0.32 and value("nll", "openbookqa")["adamw"] > 1.387
    for task in ("everyday", "arc_easy"):
        unsure = [value("ece", task)[method] for method in ("laplace_kfac", "laplace_diag")]
        assert min(unsure) > 2.5 * value("ece", task)["adamw"]


def test_what_is_said_of_tau_in_the_demo_is_recorded():
    """With as many draws at every τ: the NLL is best between 0.5 and 1, and beyond it rises while accuracy falls."""
    for seed in (21, 42, 87):
        sweep = TauSweep.load(RUNS / "demo" / f"seed{seed}" / "predictions" / "tau-sweep.safetensors")
        curves = {name: dict(zip(sweep.taus, values.tolist())) for name, values in sweep.curves().items()}
        assert sweep.fewest == 4 and min(curves["nll"], key=curves["nll"].get) in (0.5, 1.0)
        assert curves["nll"][2.0] > curves["nll"][1.0] + 0.1 and curves["acc"][2.0] < curves["acc"][1.0] - 0.05
        assert curves["acc"][4.0] < 0.4 and curves["acc"][0.0] > curves["acc"][1.0]


def test_what_is_said_of_every_method_after_20_passes_is_recorded():
    """Told apart from AdamW in accuracy: IVON alone; the lowest NLL; what repairs AdamW and what does not."""
    by_method = {}
    for record in load_records(RUNS / "table1"):
        by_method.setdefault(record.cell.method, {}).update(dict.fromkeys(record.cell.seeds, record.predictions))
    adamw = by_method.pop("adamw")
    gaps = {m: paired_differences([adamw[s] for s in found], list(found.values())) for m, found in by_method.items()}
    assert {m for m, gap in gaps.items() if gap["acc"]["interval"][0] > 0} <= set(METHODS_OF_IVON)
    assert all(gaps[m]["acc"]["interval"][0] > 0 for m in ("ivon", "ivon@mean", "temperature@ivon"))
    nll = {m: gap["nll"]["difference"] for m, gap in gaps.items()}
    assert min(nll, key=nll.get) == "ivon@linearized"
    second = paired_differences(
        *([by_method[m][s] for s in (21, 42, 87)] for m in ("temperature@ivon", "ivon@linearized"))
    )
    assert second["nll"]["interval"][1] < 0
    repairs = [m for m in nll if m not in METHODS_OF_IVON]
    assert sorted(repairs, key=nll.get)[1:4] == ["laplace_kfac_validation", "laplace_diag_validation", "temperature"]
    best = min(repairs, key=nll.get)
    pairs = [(by_method["ivon"][s], predictions) for s, predictions in by_method[best].items()]
    low, high = paired_differences(*zip(*pairs))["nll"]["interval"]
    assert best == "temperature@laplace_kfac" and low < 0 < high
    for m in ("swa", "swag", "ensemble", "mc_dropout", "tfb"):
        assert abs(nll[m]) < 0.01
    assert by_method["blob"].keys() == by_method["blob@mean"].keys() == {21, 42, 87}
    assert all(abs(d["difference"]) < 0.003 for m in ("blob", "blob@mean") for d in gaps[m].values())
    chosen, trials = (read_json(RUNS / "choice" / f"{name}.json")["everyday@2"] for name in ("chosen", "trials"))
    for m in ("blob", "pac_tuning"):
        for name in ("start", "kl_weight"):  # the edge with the least noise and the smallest weight
            tried = [trial["settings"][name] for trial in trials[m] if name in trial["settings"]]
            assert chosen[m][name] == min(tried)
    assert gaps["scalabl"]["brier"]["interval"][0] > 0 and by_method["scalabl"].keys() == {21}  # as the table says
    worse, said = gaps["pac_tuning"], []
    assert by_method["pac_tuning"].keys() == {21, 42, 87}
    assert min(worse[name]["interval"][0] for name in ("nll", "brier")) > 0
    assert worse["acc"]["interval"][0] < 0 <= worse["acc"]["interval"][1]
    for name in ("nll", "brier"):
        low, high = worse[name]["interval"]
        said.append(f"{worse[name]['difference']:+.3f} [{low:+.3f}, {high:+.3f}]".replace("-", "−"))
    assert f"NLL {said[0]} and Brier score {said[1]} against AdamW; the accuracy cannot be told apart" in README
    assert by_method["gift_sw"].keys() == {21, 42, 87}
    gift = {name: (d["difference"], *d["interval"]) for name, d in gaps["gift_sw"].items()}
    assert gift["acc"][2] < 0 < gift["brier"][1] and all(gift[n][1] < 0 < gift[n][2] for n in ("nll", "ece"))
    said = ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*gift[name]).replace("-", "−") for name in ("acc", "brier")]
    assert f"accuracy {said[0]} and Brier score {said[1]} against AdamW; the NLL cannot be told apart" in README


def test_what_is_said_of_adalora_is_recorded():
    """By |m|/σ and by its own importance: nothing to tell apart, at rank 4 on average and the best learning rate."""
    folder, found = RUNS / "gates", {}
    for name in ("adalora-ivon", "adalora-ivon-signal", "adalora"):
        trials = [read_json(folder / f"everyday@2-{name}-seed{seed}.json") for seed in (21, 42, 87)]
        assert {sum(trial["ranks"].values()) for trial in trials} == {4 * len(trials[0]["ranks"])}
        tried = [read_json(f) for f in folder.glob(f"learning-rate/*/everyday@2-{name}-seed1.json")]
        assert len(tried) >= 4 and {trial["config"]["split"] for trial in tried} == {"validation"}
        rates = {trial["settings"]["lr"]: trial["scores"]["nll"] for trial in tried}
        best = min(rates, key=rates.get)
        assert min(rates) < best < max(rates) and {trial["settings"]["lr"] for trial in trials} == {best}
        found[name] = [Predictions.load(folder / f"everyday@2-{name}-seed{s}.safetensors") for s in (21, 42, 87)]
    gap = paired_differences(found["adalora-ivon"], found["adalora-ivon-signal"])
    assert all(d["interval"][0] < 0 < d["interval"][1] for d in gap.values())
    low, high = gap["nll"]["interval"]
    said = f"{gap['nll']['difference']:+.3f} [{low:+.3f}, {high:+.3f}]".replace("-", "−")
    assert f"the NLL at the mean differs by {said}" in README


def test_what_is_said_of_gates_under_ivon_is_recorded():
    """They save a third of the operations; the NLL of the draws is higher than without gates, on each seed."""
    trials = {
        name: [read_json(RUNS / "gates" / f"everyday@2-{name}-seed{seed}.json") for seed in (21, 42, 87)]
        for name in ("ivon-r8", "ivon-gated-mu0.01")
    }
    plain, gated = trials.values()
    assert all(0.6 < trial["share"] < 0.7 for trial in gated)
    assert all(b["scores"]["nll"] > a["scores"]["nll"] for a, b in zip(plain, gated))
    predictions = (
        [Predictions.load(RUNS / "gates" / f"everyday@2-{name}-seed{s}.safetensors") for s in (21, 42, 87)]
        for name in trials
    )
    gap = paired_differences(*predictions)["nll"]
    said = f"{gap['difference']:+.3f} [{gap['interval'][0]:+.3f}, {gap['interval'][1]:+.3f}]".replace("-", "−")
    assert f"than that of rank 8 without gates, {said}" in README


def test_what_is_said_of_gates_is_recorded():
    """μ = 0.01 saves most at rank 8's accuracy on every seed; so does rounding to four bits, at a lower NLL."""
    methods = read_json(RUNS / "gates" / "everyday-summary.json")["methods"]
    full, gated, rounded = (methods[name] for name in ("lora-r8", "gated-mu0.01", "lora-r8-4bit"))
    readme = " ".join((ROOT / "README.md").read_text("utf8").split())
    saved, acc, peer = 100 * (1 - gated["share"]["mean"]), gated["acc"]["mean"], full["acc"]["mean"]
    assert f"save {saved:.0f} % of LoRA's bit operations at rank 8's accuracy ({acc:.3f} against {peer:.3f})" in readme
    assert full["nll"]["mean"] < rounded["nll"]["mean"] < gated["nll"]["mean"]
    assert abs(rounded["share"]["mean"] - gated["share"]["mean"]) < 0.03
    for seed in (21, 42, 87):
        trial, base = (
            read_json(RUNS / "gates" / f"everyday-{name}-seed{seed}.json") for name in ("gated-mu0.01", "lora-r8")
        )
        low, high = base["scores"]["intervals"]["acc"]
        assert low <= trial["scores"]["acc"] <= high and trial["share"] < 0.5


@pytest.mark.parametrize("page", ["docs/compatibility.md", "docs/claims.md"])
def test_every_test_that_backs_a_promise_exists(page):
    text = (ROOT / page).read_text("utf8")
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text) + [
        (file, name)
        for file, more in re.findall(r"`(test_\w+\.py)::test_\w+`((?:, `…::test_\w+`)+)", text)
        for name in re.findall(r"test_\w+", more)
    ]
    assert len(named) > 8
    for file, name in named:
        (path,) = (ROOT / "tests").rglob(file)
        assert f"def {name}(" in path.read_text("utf8"), (file, name)


def test_every_method_has_its_paragraph_with_an_equation_and_a_cost():
    from ivon_lora_lite import METHODS

    sections = re.split(r"^### ", (ROOT / "docs" / "methods.md").read_text("utf8"), flags=re.M)[1:]
    named = [name for section in sections for name in re.findall(r"`([^`]+)`", section.splitlines()[0])]
    assert sorted(named) == sorted(METHODS)
    for section in sections:
        assert "$$" in section and "\nCost: " in section, section.splitlines()[0]
