"""The demo on a tiny model: what it promises to write, whether its rows are what was predicted, and its summaries."""

from __future__ import annotations

import copy
import html
import json
import re
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from ivon_lora_lite import (
    Predictions,
    Task,
    TauSweep,
    load_run,
    load_task,
    predict,
    run_demo,
    score,
)
from ivon_lora_lite.cli import main
from ivon_lora_lite.evaluation import METRICS
from ivon_lora_lite.files import LOCK
from ivon_lora_lite.methods import temperature
from ivon_lora_lite.studies import demo as demo_module
from ivon_lora_lite.studies.demo import METHODS, METRICS_FILE, summarize, table
from ivon_lora_lite.studies.report import verdict, verdicts
from ivon_lora_lite.training import finetuning as train

TINY = {"steps": 4, "train_size": 8, "batch_size": 4, "samples": 3, "test_size": 12, "dtype": "fp32"}
FILES = {  # row → where its logits are
    "before training": "before-training",
    "AdamW": "adamw",
    "AdamW, early-stopped": "adamw-early-stopped",
    "AdamW + temperature": "adamw-temperature",
    "IVON@mean": "ivon-mean",
    "IVON": "ivon",
}


def quiet(*_, **__):
    pass


QUIET = {"progress": False, "say": quiet}


@pytest.fixture(autouse=True)
def isolated(monkeypatch):
    monkeypatch.delenv("IVON_LORA_HUB", raising=False)


@pytest.fixture(scope="module")
def model(tiny_folder):
    return str(tiny_folder)


@pytest.fixture(scope="module")
def demo(model, tmp_path_factory):
    """One demo: its folder, the scores it returned, the training batches in order, what it said."""
    out, batches, said = tmp_path_factory.mktemp("demo") / "out", [], []
    collate = train.collate

    def spy(questions, *rest):
        batches.append([q.id for q in questions])
        return collate(questions, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "collate", spy)
        scores = run_demo(
            out,
            model=model,
            taus=[0.5],
            elsewhere=2,
            linear=True,
            progress=False,
            say=lambda *a, **_: said.append(*a),
            **TINY,
        )
    return out, scores, batches, said


@pytest.fixture(scope="module")
def questions():
    return load_task("everyday").test[: TINY["test_size"]]


def predictions(out, method: str) -> Predictions:
    return Predictions.load(out / "predictions" / f"{FILES[method]}.safetensors")


def metrics(out) -> dict:
    return json.loads((out / METRICS_FILE).read_text("utf8"))


# --- what it writes --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_everything_promised_is_written_and_nothing_else(demo):
    out = demo[0]
    assert {p.name for p in out.iterdir()} == {METRICS_FILE, "report.html", "adamw", "ivon", "predictions"}
    adapter = {"adapter_model.safetensors", "adapter_config.json", "run.json", "README.md"}
    assert {p.name for p in (out / "adamw").iterdir()} == adapter
    assert {p.name for p in (out / "ivon").iterdir()} == adapter | {"posterior.safetensors"}
    wanted = {f"{name}.safetensors" for name in (*FILES.values(), "tau-sweep")}
    assert {p.name for p in (out / "predictions").iterdir()} == wanted


def test_metrics_say_what_was_run(demo, model):
    record = metrics(demo[0])
    config = record["config"]
    said = {name: config[name] for name in TINY if name in config}
    assert said == {name: TINY[name] for name in ("steps", "train_size", "batch_size", "samples")}
    assert config["task"] == "everyday@2" and config["split"] == "test" and config["model"] == model
    assert config["seed"] == 21 and config["questions"] == 12 and config["format"] == "text"
    assert config["lora"]["r"] == 8 and set(config["lora"]["targets"]) == {"q_proj", "v_proj"}
    assert record["settings"]["ivon"]["ess"] > 1 and record["settings"]["adamw"]["lr"] > 0
    for optimizer in ("adamw", "ivon"):
        assert [entry["step"] for entry in record["history"][optimizer] if "loss" in entry] == [1, 2, 3, 4]
    made = record["provenance"]
    assert made["versions"]["torch"] == torch.__version__ and re.fullmatch(r"\d{4}-\d\d-\d\d", made["date"])


def test_metrics_have_seconds_of_every_phase_that_was_announced(demo):
    seconds, said = metrics(demo[0])["seconds"], demo[3]
    assert [f"· {name}" for name in seconds] == said[:-1]  # the last one writes this file
    assert len(seconds) >= 6 and all(value >= 0 for value in seconds.values())
    assert sum(seconds.values()) > 0


@pytest.mark.parametrize(("method", "draws"), [("before training", 1), ("AdamW", 1), ("IVON@mean", 1), ("IVON", 3)])
def test_predictions_have_one_row_per_question_and_draw(demo, questions, method, draws):
    saved = predictions(demo[0], method)
    assert saved.logits.shape == (draws, 12, 4)
    assert saved.labels.tolist() == [q.answer for q in questions]
    assert saved.metadata["tau"] == (1.0 if method == "IVON" else 0.0)


def test_the_sweep_holds_the_asked_temperature_between_mean_and_posterior(demo):
    sweep = TauSweep.load(demo[0] / "predictions" / "tau-sweep.safetensors")
    assert sweep.taus == (0.0, 0.5, 1.0) and sweep.drawn == (1, 2, 3)
    assert sweep.logits.shape == (3, 3, 12, 4)
    assert sweep.linear is not None and sweep.linear.mean.shape == (12, 4)
    assert torch.equal(sweep.logits[0, :1], predictions(demo[0], "IVON@mean").logits)
    assert torch.equal(sweep.logits[2], predictions(demo[0], "IVON").logits)
    assert not torch.equal(sweep.logits[1], sweep.logits[2])
    assert torch.equal(sweep.logits[1, 2], sweep.logits[1, 0])  # only two draws were made there


@pytest.mark.parametrize("method", METHODS)
def test_each_row_equals_the_scores_of_the_saved_predictions(demo, method):
    out, returned, *_ = demo
    again, row = score(predictions(out, method)), metrics(out)["scores"][method]
    for name in METRICS:
        assert row[name] == again[name] == returned[method][name]
        assert tuple(row["intervals"][name]) == pytest.approx(again.intervals[name], abs=1e-12)


def test_the_rows_differ(demo):
    rows = metrics(demo[0])["scores"]
    early = metrics(demo[0])["facts"]["early_stopped_at"]
    assert len({rows[method]["nll"] for method in METHODS}) == len(METHODS) - (early == TINY["steps"])


def test_early_stopping_and_temperature_are_chosen_on_validation(demo):
    out = demo[0]
    facts, record = metrics(out)["facts"], metrics(out)
    evaluated = {e["step"]: e["eval_nll"] for e in record["history"]["adamw"] if "eval_nll" in e}
    assert facts["early_stopped_at"] == min(evaluated, key=evaluated.get) and len(evaluated) == 4
    adamw, scaled = predictions(out, "AdamW"), predictions(out, "AdamW + temperature")
    validation = load_task("everyday").validation
    want, chosen = temperature(predict(load_run(out / "adamw"), validation), adamw)
    assert facts["temperature"] == pytest.approx(chosen, rel=1e-6)
    torch.testing.assert_close(scaled.logits, want.logits)
    assert record["scores"]["AdamW"]["acc"] == record["scores"]["AdamW + temperature"]["acc"]


def test_saved_runs_predict_what_was_saved(demo, questions):
    ivon, adamw = (load_run(demo[0] / name) for name in ("ivon", "adamw"))
    assert torch.equal(predict(ivon, questions, samples=3).logits, predictions(demo[0], "IVON").logits)
    assert torch.equal(predict(ivon, questions).logits, predictions(demo[0], "IVON@mean").logits)
    assert torch.equal(predict(adamw, questions).logits, predictions(demo[0], "AdamW").logits)


def test_before_training_is_the_base_model(demo, questions, model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    base.tokenizer = AutoTokenizer.from_pretrained(model)
    saved = predictions(demo[0], "before training").logits
    torch.testing.assert_close(predict(base.eval(), questions).logits, saved, rtol=1e-4, atol=1e-4)


def test_both_optimizers_saw_the_same_questions_in_the_same_order(demo):
    batches = demo[2]
    adamw, ivon = batches[:4], batches[4:]
    assert adamw == ivon
    first, second = adamw[:2], adamw[2:]  # two epochs of two batches of four
    wanted = [q.id for q in load_task("everyday").train[: TINY["train_size"]]]
    for epoch in (first, second):
        assert sorted(sum(epoch, [])) == sorted(wanted)
    assert first != second  # shuffled anew


def test_a_second_demo_leaves_other_files_and_finished_seeds_in_its_folder(model, tmp_path):
    options = {"model": model, "report": False, "weights": False, **TINY, "steps": 1, "test_size": 4, **QUIET}
    run_demo(tmp_path / "out", **options)
    (tmp_path / "out" / "seed1").mkdir()
    (tmp_path / "out" / "seed1" / METRICS_FILE).write_text("{}")
    (tmp_path / "out" / "predictions" / "old.safetensors").write_text("of a former demo")
    run_demo(tmp_path / "out", **options)
    assert (tmp_path / "out" / "seed1" / METRICS_FILE).read_text() == "{}"
    assert not (tmp_path / "out" / "predictions" / "old.safetensors").exists()


def test_paired_differences_in_the_metrics_are_ivon_minus_adamw(demo):
    record = metrics(demo[0])
    assert list(record["paired"]) == list(METHODS[2:])
    rows = record["scores"]
    for method, paired in record["paired"].items():
        for name in METRICS:
            floor = rows[method]["floor"] - rows["AdamW"]["floor"] if name == "ece" else 0.0
            want = rows[method][name] - rows["AdamW"][name] - floor
            assert paired[name]["difference"] == pytest.approx(want, abs=1e-5)
            low, high = paired[name]["interval"]
            assert low <= paired[name]["difference"] + 1e-9 and paired[name]["difference"] <= high + 1e-9


class Links(HTMLParser):
    """What a page names in src and href, and how many scripts it has."""

    def __init__(self):
        super().__init__()
        self.named, self.scripts = [], 0

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        self.named += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]


def test_the_report_needs_no_other_file_and_no_network(demo):
    page = (demo[0] / "report.html").read_text("utf8")
    links = Links()
    links.feed(page)
    assert links.scripts >= 3  # the parser did read it: plotly, a figure, the slider
    assert not [name for name in links.named if re.match(r"\s*(https?:)?//", name or "")]
    assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//", page.split("<script>", 1)[0])  # the style sheet


def test_the_report_shows_the_rows_and_where_they_come_from(demo, model):
    page, record = (demo[0] / "report.html").read_text("utf8"), metrics(demo[0])
    for method in METHODS:
        assert method in page
        assert f"{record['scores'][method]['nll']:.3f}" in page
    for fact in (model, "8 training questions", "4 steps of 4", "12 test questions", "seed 21", torch.__version__):
        assert fact in page


def test_the_table_has_a_line_per_row_with_intervals(demo):
    scores = demo[1]
    head, *lines = table(scores).splitlines()
    assert head.split() == ["ACC", "ECE", "NLL", "BRIER", "ECE", "floor"]
    assert len(lines) == 6
    for line, method in zip(lines, METHODS):
        assert line.startswith(method)
        low, high = scores[method].intervals["nll"]
        assert f"{scores[method]['nll']:.3f} [{low:.3f}, {high:.3f}]" in line
        assert line.endswith(f"{scores[method].floor:.3f}")


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_demo_replaces_the_first(model, tmp_path):
    small = TINY | {"steps": 1, "test_size": 4}
    run_demo(tmp_path / "out", model=model, report=False, **small, **QUIET)
    first, names = metrics(tmp_path / "out"), {p.relative_to(tmp_path) for p in tmp_path.rglob("*")}
    run_demo(tmp_path / "out", model=model, report=False, seed=22, **small, **QUIET)
    second = metrics(tmp_path / "out")
    assert (first["config"]["seed"], second["config"]["seed"]) == (21, 22)
    assert first["scores"]["IVON"] != second["scores"]["IVON"]
    assert score(predictions(tmp_path / "out", "IVON"))["nll"] == second["scores"]["IVON"]["nll"]
    assert load_run(tmp_path / "out" / "ivon").config["seed"] == 22
    assert {p.relative_to(tmp_path) for p in tmp_path.rglob("*")} == names  # nothing temporary is left


def test_a_folder_with_other_files_is_refused_before_any_work(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=re.escape(str(tmp_path))):
        run_demo(tmp_path, model="nobody/nothing", **QUIET)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_an_empty_folder_is_fine_and_weights_and_report_can_be_left_out(model, tmp_path):
    run_demo(tmp_path, model=model, weights=False, report=False, **TINY | {"steps": 1, "test_size": 4}, **QUIET)
    assert {p.name for p in tmp_path.iterdir()} == {METRICS_FILE, "predictions"}


@pytest.mark.slow
def test_the_rows_are_mean_and_posterior_whatever_temperatures_are_asked_for(demo, model, tmp_path):
    # otherwise "IVON@mean" would be a draw at the lowest τ, and "IVON" the prediction at the highest one
    scores = run_demo(tmp_path, model=model, taus=[0.25, 2.0], weights=False, report=False, **TINY, **QUIET)
    assert scores == demo[1]  # and whether the model was linearised
    assert TauSweep.load(tmp_path / "predictions" / "tau-sweep.safetensors").taus == (0.0, 0.25, 1.0, 2.0)


@pytest.mark.parametrize("tau", [-0.5, float("nan"), float("inf")])
def test_impossible_temperatures_are_refused_before_any_work(tau, tmp_path):
    with pytest.raises(ValueError, match="taus"):
        run_demo(tmp_path / "out", model="nobody/nothing", taus=[0.0, tau], **QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_recorded_training_size_is_the_one_that_was_there(model, questions, tmp_path, monkeypatch):
    few = Task("everyday", questions[:5], questions[5:7], questions[7:], {"test": "test"})
    monkeypatch.setattr(demo_module, "load_task", lambda *_, **__: few)
    run_demo(tmp_path, model=model, weights=False, report=False, **TINY | {"train_size": 160}, **QUIET)
    assert metrics(tmp_path)["config"]["train_size"] == 5


@pytest.mark.slow
def test_the_lock_of_a_process_that_is_no_more_is_no_obstacle(tmp_path):
    (tmp_path / LOCK).touch()
    with pytest.raises(FileNotFoundError, match="no model here"):
        run_demo(tmp_path, model="no model here", report=False, **QUIET)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_keeps_the_former_demo_and_nothing_of_a_new_one(model, tmp_path, monkeypatch):
    small = TINY | {"steps": 1, "test_size": 4}
    run_demo(tmp_path / "former", model=model, report=False, **small, **QUIET)
    before = metrics(tmp_path / "former")

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(demo_module, "write_json", full)
    for out in ("former", "new"):
        with pytest.raises(OSError, match="no space"):
            run_demo(tmp_path / out, model=model, report=False, seed=3, **small, **QUIET)
    assert metrics(tmp_path / "former") == before
    assert [p.name for p in tmp_path.iterdir()] == ["former"]


def test_without_plotly_the_report_is_refused_before_any_work(model, tmp_path, monkeypatch):
    class Missing:
        def find_spec(self, name, *_):
            if name == "plotly":
                raise ModuleNotFoundError("No module named 'plotly'", name="plotly")

    for name in list(sys.modules):
        if name.partition(".")[0] == "plotly" or name.startswith("ivon_lora_lite.plots"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(ModuleNotFoundError, match="--no-report"):
        run_demo(tmp_path / "out", model="nobody/nothing", **QUIET)
    run_demo(tmp_path / "out", model=model, report=False, **TINY | {"steps": 1, "test_size": 4}, **QUIET)
    assert (tmp_path / "out" / METRICS_FILE).exists()


# --- several seeds ---------------------------------------------------------------------------------------------------


@pytest.fixture
def two_seeds(demo, tmp_path):
    """Folders of two demos that differ in the seed and the scores."""
    folders, record = [tmp_path / "seed21", tmp_path / "seed22"], metrics(demo[0])
    other = copy.deepcopy(record)
    other["config"]["seed"] = 22
    rng = np.random.default_rng(1)
    for method in METHODS:
        other["scores"][method] |= dict(zip(METRICS, rng.uniform(size=4)))
    for folder, content in zip(folders, (record, other)):
        folder.mkdir()
        shutil.copytree(demo[0] / "predictions", folder / "predictions")
        (folder / METRICS_FILE).write_text(json.dumps(content), "utf8")
    return folders


def change(folder, edit) -> None:
    record = metrics(folder)
    edit(record)
    (folder / METRICS_FILE).write_text(json.dumps(record), "utf8")


def test_a_summary_is_mean_and_standard_error_over_seeds(two_seeds):
    summary, records = summarize(two_seeds), [metrics(folder) for folder in two_seeds]
    assert summary["seeds"] == [21, 22]
    assert "seed" not in summary["config"] and summary["config"]["steps"] == TINY["steps"]
    assert summary["settings"] == records[0]["settings"]
    assert summary["seconds"] == [record["seconds"] for record in records]
    for name in METRICS:
        for method in METHODS:
            values = np.array([record["scores"][method][name] for record in records])
            found = summary["scores"][method][name]
            assert found["values"] == values.tolist()
            assert found["mean"] == pytest.approx(values.mean(), abs=1e-12)
            assert found["se"] == pytest.approx(values.std(ddof=1) / np.sqrt(2), abs=1e-12)
        gap = [record["scores"]["IVON"][name] - record["scores"]["AdamW"][name] for record in records]
        assert summary["ivon_minus_adamw"][name]["values"] == pytest.approx(gap, abs=1e-12)
        assert summary["ivon_minus_adamw"][name]["mean"] == pytest.approx(np.mean(gap), abs=1e-12)
        # both folders hold the same logits, so the pooled differences are those of one
        pooled, one = summary["paired"]["IVON"][name], records[0]["paired"]["IVON"][name]
        assert [pooled["difference"], *pooled["interval"]] == pytest.approx([one["difference"], *one["interval"]])


def test_a_verdict_says_only_what_the_interval_allows():
    def said(difference, low, high, name="nll"):
        paired = {name: {"difference": difference, "interval": [low, high]}}
        return verdict(paired, "AdamW", "IVON", [name])[0]

    assert said(-0.12, -0.18, -0.06) == "IVON has a lower NLL than AdamW (−0.120 [−0.180, −0.060])."
    assert said(0.02, 0.01, 0.03, "acc") == "IVON has a higher accuracy than AdamW (+0.020 [+0.010, +0.030])."
    assert said(0.02, -0.01, 0.05) == "IVON and AdamW cannot be told apart in NLL (+0.020 [−0.010, +0.050])."
    assert said(0.0, 0.0, 0.0).startswith("IVON and AdamW cannot be told apart")


def test_the_demo_prints_and_shows_its_verdict(demo):
    sentences = verdicts(metrics(demo[0]))
    assert len(sentences) == 6
    page = html.unescape((demo[0] / "report.html").read_text("utf8"))
    assert all(f"<li>{sentence}</li>" in page for sentence in sentences)


def test_the_report_shows_the_question_on_which_the_draws_disagree_most(demo, questions):
    page = html.unescape((demo[0] / "report.html").read_text("utf8"))
    ivon = predictions(demo[0], "IVON")
    question = questions[int(ivon.mutual_information().argmax())]
    table = page[page.index(f"<b>{question.stem}</b>") :].split("</table>")[0]
    assert table.count("<tr>") == 1 + len(question.choices)
    assert all(title in table for title in ("before training", "AdamW", "IVON's mean", "draw 1", "draw 3", "average"))


def test_one_seed_has_no_standard_error(two_seeds):
    summary = summarize(two_seeds[:1])
    assert summary["scores"]["IVON"]["nll"]["se"] is None
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: record["config"].update(steps=5),
        lambda record: record["config"].update(model="another"),
        lambda record: record["config"]["lora"].update(r=4),
        lambda record: record["settings"]["ivon"].update(ess=1.0),
        lambda record: record["settings"]["adamw"].update(lr=1.0),
    ],
    ids=["steps", "model", "rank", "ess", "lr"],
)
def test_runs_that_differ_in_more_than_the_seed_are_not_summarised(two_seeds, edit):
    change(two_seeds[1], edit)
    with pytest.raises(ValueError, match="more than the seed"):
        summarize(two_seeds)


def test_runs_of_other_machines_and_days_are_summarised(two_seeds):
    change(two_seeds[1], lambda record: record["provenance"].update(date="2031-01-01", device="another"))
    assert summarize(two_seeds)["seeds"] == [21, 22]


@pytest.mark.slow
def test_seeds_that_are_finished_are_not_run_again(model, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    options = "--quiet --steps 1 --batch-size 2 --train-size 4 --test-size 4 --samples 2 --no-report --no-weights"
    command = ["demo", "--model", model, "--out", str(out), *options.split()]
    assert main([*command, "--seeds", "1"]) == 0
    first = (out / "seed1" / METRICS_FILE).read_bytes()
    run, seeds = run_demo, []
    monkeypatch.setattr(demo_module, "run_demo", lambda *a, **k: seeds.append(k["seed"]) or run(*a, **k))
    capsys.readouterr()
    assert main([*command, "--seeds", "1", "2", "2"]) == 0
    assert seeds == [2]  # once, although it was named twice
    assert f"{out / 'seed1'} is finished already." in capsys.readouterr().out
    assert main([*command, "--seeds", "1", "--seed", "2"]) == 2
    assert "leave one of them out" in capsys.readouterr().err
    assert main([*command, "--seeds", "1", "--steps", "2"]) == 2
    assert "was made with steps=1, and now steps=2 is asked for" in capsys.readouterr().err
    assert main([*command, "--seeds", "1", "--test-size", "6", "--linear"]) == 2
    assert "was made with test_size=4, and now test_size=6 is asked for" in capsys.readouterr().err
    assert (out / "seed1" / METRICS_FILE).read_bytes() == first
    summary = json.loads((out / "summary.json").read_text("utf8"))
    assert summary["seeds"] == [1, 2]
    nll = [metrics(out / f"seed{seed}")["scores"]["IVON"]["nll"] for seed in (1, 2)]
    assert summary["scores"]["IVON"]["nll"]["values"] == nll and nll[0] != nll[1]
