"""Table 1: cells that are whole or absent, a table that follows from them, and one sentence for what does not fit."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from transformers import TrainerCallback

from ivon_lora_lite import (
    METHODS,
    Predictions,
    Table,
    error_detection,
    finetune,
    hyperparameters,
    load_run,
    load_task,
    paper_table,
    predict,
    run_table,
    score,
    trainable,
)
from ivon_lora_lite.cli import main
from ivon_lora_lite.methods import KeepBest, Method, Settings
from ivon_lora_lite.methods.adamw import BEST
from ivon_lora_lite.studies import load_records
from ivon_lora_lite.studies.table1 import Cell, decision_scores, decision_table, export, runner
from ivon_lora_lite.studies.table1.layout import AVERAGE, DIGITS, SCALE, Entry
from ivon_lora_lite.studies.table1.records import METRICS_FILE, load_record
from ivon_lora_lite.studies.table1.runner import plan

SMOKE = {"steps": 6, "train_size": 8, "test_size": 10, "validation_size": 6, "evaluations": 2, "samples": 2}
SMOKE |= {"further_steps": 4, "collect_every": 2}
FLAGS = [word for name, value in SMOKE.items() for word in (f"--{name.replace('_', '-')}", str(value))]
CELLS = 2 * (len(METHODS) - 1) + 1  # two seeds of everything, and one ensemble


def quiet(*_, **__):
    pass


def command(model, out, *more) -> list[str]:
    return ["table1", "--model", str(model), "--dtype", "fp32", "--seeds", "21", "42", *FLAGS, "--out", str(out), *more]


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory):
    """All methods, two seeds, in one go."""
    out = tmp_path_factory.mktemp("table")
    settings = Settings(model=str(tiny_folder), dtype="fp32", **SMOKE)
    run_table(out, ["everyday"], seeds=(21, 42), settings=settings, say=lambda *a, **k: None)
    return out


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copy")


def files(out) -> dict[str, int]:
    return {str(f.relative_to(out)): f.stat().st_mtime_ns for f in out.rglob("*") if f.is_file()}


def edit(folder, change) -> None:
    content = json.loads((folder / METRICS_FILE).read_text())
    change(content)
    (folder / METRICS_FILE).write_text(json.dumps(content))


# ------------------------------------------------------------------------------------------------ making cells


@pytest.mark.slow
def test_every_method_fills_its_cells(made):
    records = load_records(made)
    assert len(records) == CELLS
    assert {r.cell.method for r in records} == set(METHODS)
    for r in records:
        assert r.content["provenance"]["versions"]["torch"]
        assert r.predictions.logits.shape[1:] == (10, 4)
        draws = {"ivon", "mc_dropout", "swag", "ensemble", "blob", "scalabl", "tfb", "tfb@blob", "tfb@ivon"}
        assert r.predictions.samples == (2 if r.cell.method in draws else 1), r.cell.method


def test_a_record_has_all_settings_that_were_applied(made):
    def content(method):
        return load_record(made / "everyday@2" / method / "seed21").content

    assert content("adamw")["settings"].keys() == {"lr", "weight_decay"} and content("adamw")["posterior"] == {}
    assert {"lr", "kl_weight", "noise_lr", "prior_sigma", "start"} <= content("blob")["settings"].keys()
    assert {"sigma", "share"} <= content("gift_sw")["settings"].keys()
    assert content("tfb")["posterior"]["tolerance"] == 0.003 and "points" not in content("tfb")["posterior"]
    assert content("laplace_kfac")["posterior"]["prior_mean"] == "zero"


def test_early_stopping_keeps_its_rhythm_when_the_length_was_chosen(tiny_folder, tmp_path):
    settings = Settings(
        model=str(tiny_folder), dtype="fp32", **SMOKE | {"steps": 100}, chosen={"everyday": {"adamw": {"steps": 6}}}
    )
    run_table(tmp_path, ["everyday"], ["adamw"], (21,), settings, say=quiet)
    history = load_record(tmp_path / "everyday@2" / "adamw" / "seed21").content["history"]
    assert [r["step"] for r in history if "eval_nll" in r] == [3, 6]


def test_of_ensembles_that_share_members_the_largest_counts(copy):
    whole = next((copy / "everyday@2" / "ensemble").iterdir())
    records = load_records(copy)
    larger = shutil.copytree(whole, whole.with_name("seed21-42-87"))
    edit(larger, lambda content: content["config"].update(seeds=[21, 42, 87]))
    predictions = Predictions.load(larger / "predictions.safetensors")
    predictions.metadata["seeds"] = [21, 42, 87]
    predictions.save(larger / "predictions.safetensors")
    found = [r.cell.seeds for r in load_records(copy) if r.cell.method == "ensemble"]
    assert found == [(21, 42, 87)] and len(load_records(copy)) == len(records)


def test_methods_that_stand_on_adamw_share_its_weights(made):
    from safetensors.torch import load_file

    def weights(method):
        return load_file(made / "everyday@2" / method / "seed21" / "adapter_model.safetensors")

    adamw = weights("adamw")
    for method in ("laplace_kfac", "laplace_diag"):
        assert all(torch.equal(w, adamw[name]) for name, w in weights(method).items())
    assert all(torch.equal(w, weights("swag")[name]) for name, w in weights("swa").items())
    assert not all(torch.equal(w, adamw[name]) for name, w in weights("swa").items())


def test_accuracy_stays_where_only_the_temperature_changes(made):
    scores = {r.cell.method: r.scores for r in load_records(made) if r.cell.seed == 21}
    assert scores["temperature"]["acc"] == scores["adamw"]["acc"]


def test_laplace_cells_hold_the_average_of_their_linearised_draws(made):
    from ivon_lora_lite import linearized_laplace, load_run

    folder = made / "everyday@2" / "laplace_kfac" / "seed21"
    line = linearized_laplace(load_run(folder), load_task("everyday").test[:10])
    assert torch.allclose(load_record(folder).predictions.ensemble(), line.probabilities(1.0), atol=1e-5)


def test_ivons_linearised_row_takes_the_tau_of_the_smallest_validation_loss(made):
    """Among the ten that there are, and never by test questions."""
    from ivon_lora_lite import linearized
    from ivon_lora_lite.evaluation import nll
    from ivon_lora_lite.methods.ivon import TAUS

    record = load_record(made / "everyday@2/ivon@linearized/seed21")
    task, run = load_task("everyday"), load_run(made / "everyday@2/ivon/seed21")
    held_out, test = linearized(run, task.validation[:6]), linearized(run, task.test[:10])
    losses = {tau: float(nll(held_out.probabilities(tau), held_out.labels)) for tau in TAUS}
    tau = record.content["facts"]["tau"]
    assert losses[tau] == min(losses.values()) < max(losses.values())
    torch.testing.assert_close(record.predictions.ensemble(), test.probabilities(tau), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_an_interrupted_table_repeats_nothing_and_ends_the_same(made, tiny_folder, tmp_path):
    out = tmp_path / "killed"
    run = [sys.executable, "-m", "ivon_lora_lite", *command(tiny_folder, out)]
    process = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 300
        while len(list(out.glob(f"*/*/seed*/{METRICS_FILE}"))) < 4:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = files(out)
    finished = {name for name in before if "/." not in name}
    assert 0 < len({name.rsplit("/", 1)[0] for name in finished}) < CELLS
    assert main(command(tiny_folder, out)) == 0
    after = files(out)
    assert {name: after[name] for name in finished} == {name: before[name] for name in finished}
    assert not list(out.rglob("*.tmp"))  # what the killed process left is gone
    assert (out / "table.md").read_text() == Table.from_records(load_records(made)).markdown() + "\n"


def same_as(made, out, methods) -> None:
    expected = {r.cell: r.scores for r in load_records(made)}
    records = load_records(out)
    assert {r.cell.method for r in records} == set(methods)
    for r in records:
        assert r.scores == pytest.approx(expected[r.cell], abs=1e-4), r.cell.label


@pytest.mark.slow
def test_two_processes_give_the_same_table_and_keep_quiet(made, tiny_folder, tmp_path, capfd):
    methods = ["adamw", "swa", "ensemble", "ivon@mean", "ivon"]
    assert main([*command(tiny_folder, tmp_path, "--jobs", "2", "--quiet"), "--methods", *methods]) == 0
    assert "seed 21: ACC" not in capfd.readouterr().out
    same_as(made, tmp_path, methods)


def test_other_processes_are_looked_at_while_they_work_and_the_first_failure_cancels_those_that_wait(monkeypatch):
    started, looked = [], threading.Event()

    def work(out, chain, *_):
        started.append(chain)
        yield
        if chain == 1:
            assert looked.wait(60)  # the chain goes on only if somebody looks before it ends
            raise ValueError("a chain fails")
        time.sleep(0.05 * (chain > 1))

    monkeypatch.setattr(runner, "ProcessPoolExecutor", lambda jobs, mp_context: ThreadPoolExecutor(jobs))
    monkeypatch.setattr(runner, "_work", work)
    monkeypatch.setattr(runner, "LOOK", 0.01)
    with pytest.raises(ValueError, match="a chain fails"):
        for _ in runner._with_processes([("out", chain) for chain in range(100)], 1):
            if 1 in started:
                looked.set()
    assert len(started) < 100


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_table(made, tiny_folder, tmp_path, capsys):
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    try:
        assert main([*command(tiny_folder, tmp_path, "--engine", "ray"), "--methods", "adamw", "swa"]) == 0
        assert capsys.readouterr().out.count(": ACC") == 4
    finally:
        ray.shutdown()
    same_as(made, tmp_path, ["adamw", "swa"])


def test_a_finished_table_is_only_read(made, tiny_folder, capsys):
    before = files(made / "everyday@2")
    assert main(command(tiny_folder, made)) == 0
    assert f"{CELLS} cells, {CELLS} of them finished already" in capsys.readouterr().out
    assert files(made / "everyday@2") == before


def test_early_stopping_keeps_the_weights_with_the_lowest_validation_nll(made, tiny_model):
    task = load_task("everyday")
    model = tiny_model(seed=3)
    seen = {}

    class Spy(KeepBest):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            super().on_step_end(args, state, control, model=model, **kwargs)
            seen[state.global_step] = {name: p.detach().clone() for name, p in trainable(model).items()}

    best = Spy(task.validation[:8], "text", 2)
    run = finetune(model, task, optimizer="adamw", lr=0.02, steps=12, train_size=8, callbacks=[best], progress=False)
    lowest = min(best.history, key=lambda record: record["eval_nll"])
    assert [record["step"] for record in best.history] == [2, 4, 6, 8, 10, 12]
    assert best.step == lowest["step"] and 0 < lowest["step"] < 12  # not the last one, or the test could not fail
    assert all(torch.equal(w, seen[best.step][name]) for name, w in best.weights.items())
    assert not all(torch.equal(w, run.weights[name]) for name, w in best.weights.items())
    seconds = [record["seconds"] for record in best.history]
    assert seconds == sorted(seconds) and seconds[-1] + best.seconds <= run.seconds


@pytest.mark.slow
def test_a_run_is_resumed_from_its_checkpoint_with_its_early_stopping(tiny_model, tmp_path):
    task = load_task("everyday")
    options = {"optimizer": "adamw", "lr": 0.02, "train_size": 8, "progress": False, "schedule": "constant"}
    whole = KeepBest(task.validation[:8], "text", 2)
    finetune(tiny_model(seed=3), task, steps=8, callbacks=[whole], **options)
    options |= {"steps": 8, "output_dir": tmp_path, "save_every": 4}

    class Interrupted(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 7:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(
            tiny_model(seed=3), task, callbacks=[KeepBest(task.validation[:8], "text", 2), Interrupted()], **options
        )
    second = KeepBest(task.validation[:8], "text", 2)
    finetune(tiny_model(seed=3), task, callbacks=[second], resume=True, **options)
    pick = [(record["step"], record["eval_nll"]) for record in whole.history]
    assert [(record["step"], record["eval_nll"]) for record in second.history] == pick
    assert second.step == whole.step
    assert all(torch.equal(w, whole.weights[name]) for name, w in second.weights.items())


def test_checkpoints_do_not_change_a_cell_and_are_removed(made, tiny_folder, tmp_path):
    settings = Settings(model=str(tiny_folder), dtype="fp32", checkpoint_every=2, **SMOKE)
    run_table(tmp_path, ["everyday"], ["adamw"], [21], settings, say=lambda *a, **k: None)
    (mine,) = load_records(tmp_path)
    other = load_record(made / "everyday@2" / "adamw" / "seed21")
    assert torch.equal(mine.predictions.logits, other.predictions.logits)
    assert not list(tmp_path.rglob("checkpoint-*"))


@pytest.mark.slow
def test_without_weights_swa_is_trained_on_its_own_and_is_the_same(made, tiny_folder, tmp_path):
    settings = Settings(model=str(tiny_folder), dtype="fp32", **SMOKE)
    methods = ["adamw", "swag", "swa", "laplace_kfac", "temperature@laplace_kfac"]
    run_table(tmp_path, ["everyday"], methods, [21], settings, keep_weights=False, say=lambda *a, **k: None)
    assert not (tmp_path / "everyday@2" / "swag" / "seed21" / "adapter_model.safetensors").exists()
    for method in ("swa", "swag"):
        mine = load_record(tmp_path / "everyday@2" / method / "seed21").predictions.logits
        assert torch.equal(mine, load_record(made / "everyday@2" / method / "seed21").predictions.logits)
    plain, scaled = (load_record(tmp_path / "everyday@2" / method / "seed21") for method in methods[-2:])
    assert (plain.folder / "posterior.safetensors").exists()  # another method stands on it
    p, log_scaled = plain.predictions.ensemble(), scaled.predictions.ensemble().log()
    ratio = (log_scaled[:, :1] - log_scaled) / (p[:, :1] / p).log()
    torch.testing.assert_close(
        ratio[:, 1:], torch.full_like(ratio[:, 1:], 1 / scaled.content["facts"]["temperature"]), atol=1e-3, rtol=1e-3
    )


# ------------------------------------------------------------------------------------------------ bad input


def test_plan_refuses_what_cannot_be_made():
    for arguments, message in (
        ((["everyday"], ["adam"], [21]), "There is no method 'adam'. Known: adamw, adamw@early"),
        ((["everyday"], [], [21]), "at least one task, one method and one seed"),
        ((["everyday"], ["adamw", "ensemble"], [21, 21]), "at least two seeds"),
    ):
        with pytest.raises(ValueError, match=message):
            plan(*arguments)


def test_a_method_of_ones_own_takes_part(monkeypatch):
    """One that trains a run of its own, and one that starts from a method which itself starts from another."""
    for name, base in (("mine", None), ("more", "swag")):
        monkeypatch.setitem(METHODS, name, Method(name, name, "a method that is not in the paper", None, base))
    chains = plan(["everyday"], ["more", "mine", "swag", "adamw"], [21])
    assert [[cell.method for cell in chain] for chain in chains] == [["adamw", "swag", "more"], ["mine"]]


def test_a_method_without_its_adamw_run_is_named(tiny_folder, tmp_path, capsys):
    assert main([*command(tiny_folder, tmp_path), "--methods", "swag"]) == 2
    error = capsys.readouterr().err
    assert "everyday@2 · swag · seed 21 stands on the adamw run of seed 21" in error and "--methods" in error
    assert error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_other_settings_need_another_folder(copy, tiny_folder, capsys):
    assert main([*command(tiny_folder, copy), "--samples", "3"]) == 2
    error = capsys.readouterr().err
    assert "was made with samples=2, and now samples=3 is asked for" in error and error.count("\n") == 1


def test_runs_of_different_models_do_not_share_a_table(copy):
    folder = copy / "everyday@2" / "swag" / "seed42"
    edit(folder, lambda content: content["config"].update(model="another"))
    was = Predictions.load(folder / "predictions.safetensors")
    replace(was, metadata={**was.metadata, "model": "another"}).save(folder / "predictions.safetensors")
    with pytest.raises(ValueError, match=r"seed42 do not belong in one table: model is .* and another"):
        load_records(copy)


def test_runs_on_different_questions_do_not_share_a_table(copy):
    folder = copy / "everyday@2" / "ivon" / "seed42"
    was = Predictions.load(folder / "predictions.safetensors")
    moved = replace(was, labels=was.labels.roll(1))
    moved.save(folder / "predictions.safetensors")
    edit(folder, lambda content: content.update(scores=dict(score(moved, intervals=False))))
    with pytest.raises(ValueError, match="seed42 do not belong in one table: their test questions differ"):
        load_records(copy)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda content: content["scores"].update(acc=0.99), "edited by hand: acc is 0.99 in metrics.json, and its"),
        (lambda content: content["config"].update(steps=999), "edited by hand: steps is 999 in metrics.json and 6 in"),
        (lambda content: content.pop("cost"), "is damaged, or not the record of a cell"),
        (lambda content: content["scores"].pop("nll"), "edited by hand: nll is None"),
    ],
)
def test_a_folder_edited_by_hand_is_named(change, message, copy):
    folder = copy / "everyday@2" / "adamw" / "seed21"
    edit(folder, change)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_records(copy)


def test_a_cell_in_the_wrong_place_is_named(copy):
    os.rename(copy / "everyday@2" / "swag" / "seed21", copy / "everyday@2" / "swag" / "seed99")
    with pytest.raises(ValueError, match="which belongs into everyday@2/swag/seed21"):
        load_records(copy)


def test_the_ece_of_a_table_may_have_other_bins(copy, capsys):
    for record in load_records(copy, bins=15):
        assert record.scores["ece"] == score(record.predictions, intervals=False, bins=15)["ece"]
        assert record.scores["nll"] == pytest.approx(record.content["scores"]["nll"])
    assert main(["table1", "--show", "--partial", "--bins", "15", "--out", str(copy)]) == 0
    assert "ECE with 15 bins" in capsys.readouterr().out


def test_missing_seeds_are_named_and_a_partial_table_can_be_shown(copy, capsys):
    shutil.rmtree(copy / "everyday@2" / "swag" / "seed42")
    assert main(["table1", "--show", "--out", str(copy)]) == 2
    assert "swag on everyday@2 lacks seed 42." in capsys.readouterr().err
    assert main(["table1", "--show", "--partial", "--out", str(copy)]) == 0
    assert "Missing: swag on everyday@2 lacks seed 42." in capsys.readouterr().out


def test_a_task_with_a_slash_in_its_name_has_a_folder_like_the_others(made, tmp_path):
    cell = Cell("glue/rte", "adamw", (21,))
    assert cell.folder(tmp_path) == tmp_path / "glue-rte" / "adamw" / "seed21"
    shutil.copytree(made / "everyday@2" / "adamw" / "seed21", cell.folder(tmp_path))
    edit(cell.folder(tmp_path), lambda content: content["config"].update(task="glue/rte"))
    was = Predictions.load(cell.folder(tmp_path) / "predictions.safetensors")
    replace(was, metadata={**was.metadata, "task": "glue/rte"}).save(cell.folder(tmp_path) / "predictions.safetensors")
    assert [r.cell for r in load_records(tmp_path)] == [cell]


def test_an_empty_folder_has_no_table(tmp_path, capsys):
    assert main(["table1", "--show", "--out", str(tmp_path)]) == 2
    assert "holds no finished cell" in capsys.readouterr().err


def test_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match="steps is 0; expected a whole number of at least 1"):
        Settings(steps=0)
    with pytest.raises(ValueError, match="test_size is 0"):
        Settings(test_size=0)
    with pytest.raises(ValueError, match="no engine 'slurm'"):
        run_table("x", ["everyday"], engine="slurm")
    with pytest.raises(ValueError, match="jobs is 0"):
        run_table("x", ["everyday"], jobs=0)


def test_settings_chosen_for_a_task_reach_its_method_alone(tiny_folder, tmp_path):
    chosen = {"everyday": {"adamw": {"lr": 3e-3}}, "arc_easy": {"adamw": {"lr": 1.0}}}
    (tmp_path / "chosen.json").write_text(json.dumps(chosen))
    asked = command(tiny_folder, tmp_path / "out", "--methods", "adamw", "adamw@early", "ivon")
    main([*asked, "--chosen", str(tmp_path / "chosen.json")])
    records = {r.cell.method: r for r in load_records(tmp_path / "out") if r.cell.seed == 21}
    assert records["adamw"].content["settings"]["lr"] == 3e-3 and records["adamw"].config["chosen"] == {"lr": 3e-3}
    assert "chosen" not in records["ivon"].config and records["ivon"].content["settings"]["lr"] != 3e-3
    if sys.platform == "linux":
        assert 0.1 < records["adamw"].content["cost"]["peak_gb"] < 64
    settings = Settings(model=str(tiny_folder), dtype="fp32", **SMOKE)
    with pytest.raises(ValueError, match="was made with chosen={'lr': 0.003}, and now chosen=None is asked for"):
        run_table(tmp_path / "out", ["everyday"], ["adamw"], (21, 42), settings)
    for wrong, sentence in (({"everyday": {"sgd": {}}}, "no method 'sgd'"), ({"else": {}}, "no task 'else'")):
        with pytest.raises(ValueError, match=sentence):
            run_table(tmp_path / "new", ["everyday"], ["adamw"], settings=replace(settings, chosen=wrong))


@pytest.mark.slow
def test_settings_chosen_for_swa_and_laplace_are_theirs(tiny_folder, tmp_path):
    chosen = {"swa": {"lr": 3e-2}, "laplace_diag": {"centre": "start"}}
    settings = Settings(model=str(tiny_folder), dtype="fp32", chosen={"everyday": chosen}, **SMOKE)
    for out, methods in (("with", ["adamw", "swag", "swa", "laplace_diag"]), ("alone", ["adamw", "swa"])):
        run_table(tmp_path / out, ["everyday"], methods, [21], settings, say=quiet)
    found = {r.cell.method: r for r in load_records(tmp_path / "with")}
    alone = {r.cell.method: r for r in load_records(tmp_path / "alone")}
    assert found["swa"].content["settings"]["lr"] == 3e-2 != found["swag"].content["settings"]["lr"]
    assert torch.equal(found["swa"].predictions.logits, alone["swa"].predictions.logits)
    assert load_run(found["laplace_diag"].folder).posterior.metadata["prior_mean"] == "start"


@pytest.mark.parametrize(
    "chosen, sentence",
    [
        ([], "task → method → name → value; what is chosen is []."),
        ({"everyday": 3}, "what is chosen for everyday is 3."),
        ({"everyday": {"tfb": [0.1]}}, "what is chosen for tfb on everyday is [0.1]."),
        ({"everyday": {"tfb": {"tolerance": None}}}, "tolerance of tfb on everyday is None; expected a number."),
        ({"everyday": {"adamw": {"steps": 3.0}}}, "steps of adamw on everyday is 3.0; expected a whole number."),
        ({"everyday": {"adamw": {"steps": True}}}, "steps of adamw on everyday is True; expected a whole number."),
        ({"everyday": {"adamw": {"lr": True}}}, "lr of adamw on everyday is True; expected a number."),
        ({"everyday": {"adamw": {"lr": "1e-4"}}}, "lr of adamw on everyday is '1e-4'; expected a number."),
        ({"everyday": {"tfb": {"labels": ["own"]}}}, "is ['own']; expected a number or a word."),
        ({"everyday": {"tfb": {"tolerence": 0.1}}}, "tfb has no setting 'tolerence', which is chosen for everyday. It"),
        ({"everyday": {"adamw": {"ess": 1e5}}}, "adamw has no setting 'ess'"),
        ({"everyday": {"ivon": {"params": 1}}}, "ivon has no setting 'params'"),
        (
            {"everyday": {"laplace_diag": {"structure": "kfac"}}},
            "no setting 'structure', which is chosen for everyday.",
        ),
    ],
)
def test_a_mistake_in_what_is_chosen_is_one_sentence_before_anything_is_made(chosen, sentence, tmp_path, capsys):
    (tmp_path / "chosen.json").write_text(json.dumps(chosen))
    assert main(["table1", "--chosen", str(tmp_path / "chosen.json"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_the_settings_of_every_method_are_known():
    tuned = {name: method.settings for name, method in METHODS.items() if method.settings}
    assert tuned["swa"] == {"steps", "lr", "every"} == tuned["swag"] - {"rank"}
    assert all(tuned[name] == {"centre", "batch_size"} for name in tuned if name.startswith("laplace"))
    assert {"lr", "ess", "prior", "clip_radius"} < tuned["ivon"] and "ess" not in tuned["blob"]
    for name, own in (
        ("blob", "prior_sigma"),
        ("scalabl", "kl_weight"),
        ("pac_tuning", "stage"),
        ("gift_sw", "share"),
        ("adamw", "schedule"),
    ):
        assert {"lr", "weight_decay", own} < tuned[name] and not tuned[name] & {"seed", "progress", "optimizer"}
    assert tuned["tfb"] == tuned["tfb@ivon"] and {"tolerance", "criterion"} < tuned["tfb"]


def own_file(path, *rows):
    path.write_text("\n".join(["question,a,b,answer", *rows]) + "\n", "utf8")
    return path


def test_a_table_is_of_one_version_of_a_file(tiny_folder, tmp_path, monkeypatch, capsys):
    path = own_file(tmp_path / "q.csv", *(f"q {i},x{i},y{i},A" for i in range(12)))
    chosen = {str(path): {"adamw": {"lr": 0.5}}}
    (tmp_path / "chosen.json").write_text(json.dumps(chosen))
    monkeypatch.chdir(tmp_path)
    command = ["table1", "--tasks", "./q.csv", "--model", str(tiny_folder), "--seeds", "1", "--steps", "2", "--quiet"]
    command += ["--chosen", "chosen.json", "--out", "table", "--samples", "2", "--methods", "adamw"]
    assert main(command) == 0
    (record,) = load_records("table")
    assert record.content["settings"]["lr"] == 0.5  # the same file under another name
    assert main(command) == 0
    own_file(path, *(f"q {i},other{i},y{i},A" for i in range(12)))
    capsys.readouterr()
    assert main([*command, "ivon"]) == 2
    error = capsys.readouterr().err
    assert "was made with other questions than ./q.csv holds now: choose another --out" in error
    assert not list((tmp_path / "table").rglob("ivon"))


def test_columns_of_a_file_can_be_named(tiny_folder, tmp_path, monkeypatch, capsys):
    rows = ["ask,one,two,best", *(f"q {i},x{i},y{i},y{i}" for i in range(12))]
    (tmp_path / "q.csv").write_text("\n".join(rows) + "\n", "utf8")
    monkeypatch.chdir(tmp_path)
    command = ["table1", "--model", str(tiny_folder), "--seeds", "1", "--steps", "2", "--quiet", "--out", "table"]
    command += ["--methods", "adamw", "--tasks", "q.csv"]
    assert main(command) == 2 and "name it with question=" in capsys.readouterr().err
    columns = ["--question", "ask", "--choices", "one", "two", "--answer", "best"]
    assert main([*command, *columns]) == 0
    (record,) = load_records("table")
    expected = load_task("q.csv", question="ask", choices=["one", "two"], answer="best").test
    assert record.predictions.labels.tolist() == [q.answer for q in expected]
    assert record.content["config"]["columns"] == {"question": "ask", "choices": ["one", "two"], "answer": "best"}
    assert main([*command[:-1], "everyday", *columns]) == 2
    assert "no task is a file of your own" in capsys.readouterr().err


def test_names_that_make_no_folder_of_their_own_are_refused(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    for name in ("a/q.csv", "a-q.csv", "train.csv", "test.csv"):
        own_file(tmp_path / name, *(f"q {i},x,y,A" for i in range(6)))
    monkeypatch.chdir(tmp_path)
    for names, sentence in (["."], "gives a table no name"), ([".."], "no name"), (["a/q.csv", "a-q.csv"], "the same"):
        with pytest.raises(ValueError, match=sentence):
            run_table("out", names, ["adamw"], [1])


@pytest.mark.parametrize("method", ["temperature", "ensemble", "mc_dropout", "adamw@early", "ivon@mean"])
def test_a_method_without_settings_has_none_to_choose(tiny_folder, tmp_path, method):
    settings = Settings(model=str(tiny_folder), dtype="fp32", chosen={"everyday": {method: {"samples": 7}}}, **SMOKE)
    with pytest.raises(ValueError, match=f"{method} has no settings to choose"):
        run_table(tmp_path, ["everyday"], ["adamw"], [21], settings, say=quiet)


def test_a_row_stands_on_a_run_with_the_same_settings(copy, tiny_folder):
    shutil.rmtree(copy / "everyday@2" / "temperature")
    settings = Settings(model=str(tiny_folder), dtype="fp32", **{**SMOKE, "steps": 8})
    with pytest.raises(ValueError, match="adamw/seed21 was made with steps=6, and now steps=8 is asked for"):
        run_table(copy, ["everyday"], ["temperature"], [21], settings, say=quiet)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quiz", "quiz/quiz.jsonl"])
def test_checkpoints_lie_below_the_table_and_not_beside_the_data(tiny_folder, tmp_path, monkeypatch, name):
    data, kept, places = tmp_path / "quiz", tmp_path / "quiz" / "adamw" / "seed21" / "kept.txt", []
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    rows = [json.dumps({"question": q.stem, "choices": q.choices, "answer": q.answer}) for q in load_task().train[:30]]
    split = {"quiz.jsonl": rows} if name.endswith("l") else {"train.jsonl": rows[:20], "test.jsonl": rows[20:]}
    for file, part in split.items():
        (data / file).write_text("\n".join(part))
    before = files(data)
    make = METHODS["adamw"].make
    seen = replace(METHODS["adamw"], make=lambda bench: (places.append(bench.checkpoints), make(bench))[1])
    monkeypatch.setitem(METHODS, "adamw", seen)
    settings = Settings(model=str(tiny_folder), dtype="fp32", checkpoint_every=2, **{**SMOKE, "test_size": 3})
    run_table(tmp_path / "out", [str(tmp_path / name)], ["adamw"], [21], settings, say=quiet)
    assert files(data) == before and len(load_records(tmp_path / "out")) == 1
    assert len(places) == 1 and places[0].is_relative_to(tmp_path / "out" / ".checkpoints")


def test_what_is_trained_on_one_task_is_tested_on_another(tiny_folder, tmp_path):
    """The same logits as predicting these questions alone, under a column of its own."""
    out = tmp_path / "out"
    methods = ("adamw", "temperature", "ivon", "laplace_diag")
    main(command(tiny_folder, out, "--methods", *methods, "--shift", "everyday@1", "everyday", "--shift-size", "7"))
    records = load_records(out)
    for r in records:
        assert len(r.predictions.labels) == 10 and list(r.shifted) == ["everyday@1"]
        assert len(r.shifted["everyday@1"].labels) == 7
    ivon = next(r for r in records if r.cell.method == "ivon")
    run = load_run(ivon.folder)
    for questions, kept in (
        (load_task().test[:10], ivon.predictions),
        (load_task("everyday@1").test[:7], ivon.shifted["everyday@1"]),
    ):
        torch.testing.assert_close(predict(run, questions, samples=2).logits, kept.logits, atol=1e-4, rtol=1e-4)
    table = Table.from_records(records, average=True)
    column = "everyday@2 → everyday@1"
    assert table.columns == ["everyday@2", column]
    expected = [score(r.shifted["everyday@1"], intervals=False)["nll"] for r in records if r.cell.method == "ivon"]
    assert table.entries["nll", "ivon", column].mean == pytest.approx(statistics.mean(expected))
    assert r"everyday@2 $\to$ everyday@1" in table.latex()
    text = decision_table(records)
    points = next(line for line in text.splitlines() if line.startswith("| AdamW |"))
    assert points.count("–") == 2 and "–" not in next(line for line in text.splitlines() if line.startswith("| IVON |"))
    assert "everyday@1, conf. ↑" in text and "ACC at 80 % ↑" in text
    found = [decision_scores(r)["errors, MI ↑"] for r in records if r.cell.method == "ivon"]
    expected = [100 * error_detection(r.predictions)["mutual_information"] for r in records if r.cell.method == "ivon"]
    assert found == expected
    assert export(out, tmp_path / "copy") == len(records)
    assert Table.from_records(load_records(tmp_path / "copy")).entries.items() <= table.entries.items()


# ------------------------------------------------------------------------------------------------ the table


def test_means_and_standard_errors_are_over_seeds(made):
    records = load_records(made)
    table = Table.from_records(records)
    values = [r.scores["nll"] for r in records if r.cell.method == "swag"]
    entry = table.entries["nll", "swag", "everyday@2"]
    assert entry == Entry(statistics.mean(values), abs(values[0] - values[1]) / 2, 2)
    assert table.entries["nll", "ensemble", "everyday@2"].error is None
    assert table.columns == ["everyday@2"] and table.methods == list(METHODS)


def test_the_average_over_tasks_is_taken_per_seed():
    scores = {"acc": 0.5, "ece": 0.1, "brier": 0.4}

    def record(task, seed, nll):
        cell = Cell(task, "adamw", (seed,))
        return type(
            "R", (), {"cell": cell, "scores": {**scores, "nll": nll}, "floor": 0.02, "shifted": {}, "bins": 10}
        )()

    records = [record("a", 1, 1.0), record("a", 2, 2.0), record("b", 1, 3.0), record("b", 2, 6.0)]
    table = Table.from_records(records)
    assert table.entries["nll", "adamw", AVERAGE] == Entry(3.0, 1.0, 2)  # seeds' means over tasks are 2 and 4
    assert table.columns == ["a", "b"]  # unlike tasks have no common average, unless it is asked for
    assert Table.from_records(records, average=True).columns == ["a", "b", AVERAGE]
    assert "| ECE's floor (×100) | AdamW | 2.0 ± 0.0 | 2.0 ± 0.0 |" in table.markdown()


def example() -> Table:
    entries = {
        ("acc", "adamw", "boolq"): Entry(0.5, 0.012, 3), ("acc", "ivon", "boolq"): Entry(0.523, None, 1),
        ("nll", "adamw", "boolq"): Entry(1.0, 0.1, 3), ("nll", "ivon", "boolq"): Entry(1.1, 0.02, 3),
    }  # fmt: skip
    return Table(entries, ["boolq"], ["adamw", "ivon"])


def test_differences_to_adamw_say_whether_they_improve():
    table = example()
    assert table.cell("acc", "adamw", "boolq") == ("50.0", "1.2", "", None)
    assert table.cell("acc", "ivon", "boolq") == ("52.3", "", "+2.3", True)
    assert table.cell("nll", "ivon", "boolq") == ("1.100", "0.020", "+0.100", False)
    assert table.cell("ece", "ivon", "boolq") == ("–", "", "", None)
    assert "| **(+2.3)** 52.3 |" in table.markdown() and "| (+0.100) 1.100 ± 0.020 |" in table.markdown()
    assert "<span class='better'>(+2.3)</span> 52.3" in table.html()
    assert "<span class='worse'>(+0.100)</span> 1.100<sub>0.020</sub>" in table.html()
    assert r"\textcolor{red}{(+0.100)} $1.100_{0.020}$" in table.latex()
    assert "| IVON | **(+2.3)** 52.3 | – | (+0.100) 1.100 ± 0.020 | – |" in table.compact()
    assert r"ACC (\%) $\uparrow$ & AdamW & $50.0_{1.2}$ \\" in table.latex()


def test_latex_has_no_character_that_it_does_not_know():
    entries = {("floor", "adamw", "a & b #1"): Entry(0.5, 0.1, 3)}
    text = Table(entries, ["a & b #1"], list(METHODS)).latex()
    assert text.isascii() and r"Metric & Method & a \& b \#1 \\" in text and r"linearised, $\tau$ on" in text


def test_the_published_figures_stand_beside():
    text = example().markdown(paper_table())
    assert "| AdamW | 50.0 ± 1.2 |" in text and "| *AdamW, paper* | 85.8 ± 0.1 |" in text
    assert "paper" not in Table(example().entries, ["everyday"], ["adamw"]).markdown(paper_table())


def test_the_published_averages_follow_from_the_published_tasks():
    paper = paper_table()
    checked = 0
    for (metric, method, task), entry in paper.entries.items():
        parts = [paper.entries.get((metric, method, t)) for t in paper.tasks]
        if task == AVERAGE and all(parts):
            digits = 1 if metric in ("acc", "ece") else 2
            rounding = 10**-digits / SCALE[metric] * (1.01 if digits == 1 else 1.0)
            assert abs(entry.mean - statistics.mean(p.mean for p in parts)) <= rounding
            checked += 1
    assert checked >= 20 and set(DIGITS) == set(SCALE)


def test_the_presets_are_the_papers_table_2():
    import csv
    from pathlib import Path

    with (Path(__file__).parents[2] / "data" / "paper" / "table2.csv").open() as lines:
        for row in csv.DictReader(lines):
            setting = row.pop("setting")
            for task, value in row.items():
                assert hyperparameters("ivon", "paper", task)[setting] == pytest.approx(float(value), rel=1e-12)


def test_export_keeps_what_the_table_needs(made, tmp_path):
    assert export(made, tmp_path / "small") == CELLS
    assert {f.name for f in (tmp_path / "small").rglob("*") if f.is_file()} == {METRICS_FILE, "predictions.safetensors"}
    small = Table.from_records(load_records(tmp_path / "small"))
    assert small.markdown() == Table.from_records(load_records(made)).markdown()
    assert BEST in {f.name for f in made.rglob("*")}
