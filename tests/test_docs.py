"""Every number that prose shows comes from a file in data/."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from ivon_lora_lite.demo import DEMO, METRICS_FILE, summarize
from ivon_lora_lite.prediction import Predictions, score
from ivon_lora_lite.presets import hyperparameters

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "data" / "runs"
README = (ROOT / "README.md").read_text("utf8")


def refresh():
    spec = importlib.util.spec_from_file_location("refresh", ROOT / "docs" / "refresh.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_table_is_the_recorded_one():
    assert refresh().readme(README) == README


def test_summary_is_that_of_the_recorded_seeds():
    folder = RUNS / "everyday-demo"
    recorded = json.loads((folder / "summary.json").read_text())
    assert recorded == json.loads(json.dumps(summarize([folder / f"seed{seed}" for seed in recorded["seeds"]])))
    assert len(recorded["seeds"]) >= 3


@pytest.mark.parametrize("seed", [21, 42, 87])
def test_recorded_scores_follow_from_the_recorded_logits(seed):
    folder = RUNS / "everyday-demo" / f"seed{seed}"
    record = json.loads((folder / METRICS_FILE).read_text())
    names = {"before training": "before-training", "AdamW": "adamw", "IVON@mean": "ivon-mean", "IVON": "ivon"}
    for method, name in names.items():
        predictions = Predictions.load(folder / "predictions" / f"{name}.safetensors")
        again = score(predictions, intervals=False)
        assert {k: record["scores"][method][k] for k in again} == pytest.approx(dict(again), abs=1e-6)


def test_the_recorded_demo_used_the_presets_and_the_demos_own_sizes():
    record = json.loads((RUNS / "everyday-demo" / "seed21" / METRICS_FILE).read_text())
    for optimizer in ("ivon", "adamw"):
        assert record["settings"][optimizer] == hyperparameters(optimizer, "small", "everyday")
    assert {k: record["config"][k] for k in ("steps", "train_size", "batch_size", "samples", "task")} == {
        k: DEMO[k] for k in ("steps", "train_size", "batch_size", "samples", "task")
    }


def test_small_preset_is_the_best_trial_of_the_recorded_search():
    folder = RUNS / "everyday-search"
    summary = json.loads((folder / "summary.json").read_text())
    for method, optimizer in (("adamw@mean", "adamw"), ("ivon@draws5", "ivon")):
        trials = {f.stem: json.loads(f.read_text()) for f in folder.glob(f"{optimizer}-*.json")}
        kind = method.split("@")[1]
        best = min(trials, key=lambda name, kind=kind, trials=trials: trials[name]["validation"][kind]["nll"])
        assert summary[method]["trial"] == best
        chosen = hyperparameters(optimizer, "small", "everyday")
        assert trials[best]["config"]["settings"] == chosen


def test_tests_named_in_the_readme_exist():
    for file, name in re.findall(r"`(test_\w+\.py)(?:::(test_\w+))?`", README):
        text = (ROOT / "tests" / file).read_text("utf8")
        assert not name or f"def {name}(" in text


def test_links_of_the_readme_exist():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_what_the_readme_says_of_the_longer_runs_is_what_was_recorded():
    """Lower NLL, ECE and Brier score than AdamW on all six runs, higher accuracy on four."""
    records = [json.loads(file.read_text())["scores"] for file in sorted((RUNS / "sweeps").glob("*/run.json"))]
    assert len(records) == 6
    for name in ("nll", "ece", "brier"):
        assert all(scores["ivon τ=1"][name] < scores["adamw"][name] for scores in records)
    assert sum(scores["ivon τ=1"]["acc"] > scores["adamw"]["acc"] for scores in records) == 4


def test_what_the_readme_says_of_the_recorded_table_is_what_it_says():
    """IVON's draws: lowest ECE, accuracy a point lower. Temperature: lowest NLL, higher ECE. Laplace: too unsure."""
    from ivon_lora_lite.table1 import METHODS, Table, load_records

    table = Table.from_records(load_records(RUNS / "table1"))
    assert table.tasks == ["everyday"] and table.methods == list(METHODS)
    value = {name: {m: table.entries[name, m, "everyday"].mean for m in METHODS} for name in ("acc", "ece", "nll")}
    assert (
        min(value["ece"], key=value["ece"].get) == "ivon" and min(value["nll"], key=value["nll"].get) == "temperature"
    )
    assert 0.005 < value["acc"]["adamw"] - value["acc"]["ivon"] < 0.02
    assert value["ece"]["temperature"] > value["ece"]["adamw"] > value["ece"]["ivon@mean"]
    nll = value["nll"]
    assert all(abs(nll[method] - nll["adamw"]) < 0.005 for method in ("ivon", "ivon@mean"))
    assert min(value["ece"]["laplace_kfac"], value["ece"]["laplace_diag"]) > 3 * value["ece"]["adamw"]
