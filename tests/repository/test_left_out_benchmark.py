"""benchmarks/left_out.py on a tiny model: its parts, written once, and wrong labels that are wrong."""

import pytest
import torch
from conftest import load_script

from ivon_lora_lite import finetune, load_model, load_task
from ivon_lora_lite.files import read_json


def test_planted_answers_are_wrong_and_as_many_as_asked():
    questions = load_task("everyday").train[:40]
    planted = load_script("benchmarks/left_out.py").planted
    changed, wrong = planted(questions, 0.1, seed=3)
    assert int(wrong.sum()) == 4
    assert [a.answer != b.answer for a, b in zip(questions, changed)] == wrong.tolist()
    assert [a.choices for a in questions] == [b.choices for b in changed]
    assert not torch.equal(planted(questions, 0.1, seed=4)[1], wrong)


def test_every_question_is_left_out_once():
    dealt = load_script("benchmarks/left_out.py").dealt
    groups = dealt(10, 3, seed=0)
    assert sorted(k for group in groups for k in group) == list(range(10))
    assert {len(group) for group in groups} == {3, 4} and groups != dealt(10, 3, seed=1)


def test_rank_correlation_is_spearmans():
    a, b = torch.randn(2, 20, generator=torch.Generator().manual_seed(0)).tolist()
    apart = sum((sorted(a).index(x) - sorted(b).index(y)) ** 2 for x, y in zip(a, b))
    correlation = load_script("benchmarks/left_out.py").rank_correlation
    assert correlation(a, b) == pytest.approx(1 - 6 * apart / (20 * (20**2 - 1)))


@pytest.mark.slow
def test_groups_are_recorded_once_and_judged_by_what_really_happened(tiny_folder, tmp_path, monkeypatch):
    script = load_script("benchmarks/left_out.py")
    command = ["left_out.py", "groups", "--out", str(tmp_path), "--model", str(tiny_folder), "--dtype", "fp32"]
    command += ["--passes", "2", "--seeds", "21", "--train-size", "8", "--groups", "2"]
    monkeypatch.setattr("sys.argv", command)
    script.main()
    every, *rest = (
        read_json(tmp_path / f"groups-everyday@2-2-passes-seed21-{which}.json")
        for which in ("all", "without0", "without1")
    )
    assert sorted(rest[0]["group"] + rest[1]["group"]) == list(range(8)) and every["group"] == []
    assert all(len(every[name]) == 8 for name in ("loss", "sensitivity", "influence"))
    for record in rest:
        assert record["loss"] != every["loss"] and "sensitivity" not in record
    left_out = [next(r["loss"][k] for r in rest if k in r["group"]) for k in range(8)]
    (row,) = script.grouped(tmp_path)["2 passes"]
    assert row["left-out loss"] == pytest.approx(sum(left_out) / 8)
    grown = [a - b for a, b in zip(left_out, every["loss"])]
    assert row["order by influence"] == pytest.approx(script.rank_correlation(every["influence"], grown))
    assert read_json(tmp_path / "summary.json")["groups"]["2 passes"]["loss"]["values"] == [row["loss"]]
    (tmp_path / "groups-everyday@2-2-passes-seed21-without1.json").unlink()
    assert not script.grouped(tmp_path)  # a seed counts when all of its groups are there
    monkeypatch.setattr(script, "without", lambda *_: {"loss": [0.0] * 8})
    script.main()
    assert read_json(tmp_path / "groups-everyday@2-2-passes-seed21-without0.json") == rest[0]


@pytest.mark.slow
def test_both_parts_are_recorded_once(tiny_folder, tmp_path, monkeypatch):
    script = load_script("benchmarks/left_out.py")
    model = load_model(str(tiny_folder), dtype="fp32", progress=False)
    run = finetune(model, load_task("everyday"), steps=4, train_size=8, seed=21, eval_every=0, progress=False)
    run.save(tmp_path / "work" / "2-passes" / "everyday@2" / "ivon" / "seed21")
    common = ["--out", str(tmp_path / "out"), "--model", str(tiny_folder), "--dtype", "fp32", "--passes", "2"]
    common += ["--seeds", "21", "--train-size", "8", "--test-size", "6", "--samples", "2"]
    estimate = ["left_out.py", "estimate", "--work", str(tmp_path / "work"), *common]
    labels = ["left_out.py", "labels", "--share", "0.25", *common]
    for command in (estimate, labels):
        monkeypatch.setattr("sys.argv", command)
        script.main()
    found = read_json(tmp_path / "out" / "estimate-everyday@2-2-passes-seed21.json")
    assert {name: len(values) for name, values in found["nll"].items()} == dict.fromkeys(
        ("train", "left_out", "validation", "test"), 21
    )
    assert found["nll"]["left_out"][0] > found["nll"]["train"][0]  # without the question it would be answered worse
    best = min(range(21), key=lambda k: found["nll"]["validation"][k])
    assert found["chosen"]["validation"] == {"tau": best / 10, "test_nll": found["nll"]["test"][best]}
    record = read_json(tmp_path / "out" / "labels-everyday@2-2-passes-seed21.json")
    assert len(record["wrong"]) == 2 and all(0 <= value <= 1 for value in record["auroc"].values())
    summed = [a + b for a, b in zip(record["measures"]["loss"], record["measures"]["sensitivity"])]
    assert summed == pytest.approx(record["measures"]["left-out loss"], rel=1e-5, abs=1e-5)
    summary = read_json(tmp_path / "out" / "summary.json")
    assert summary["labels"]["2 passes"]["loss"]["mean"] == record["auroc"]["loss"]
    assert summary["estimate"]["2 passes"]["τ by validation"]["mean"] == best / 10

    monkeypatch.setattr(script, "estimate", lambda *_: 1 / 0)
    monkeypatch.setattr(script, "labels", lambda *_: 1 / 0)
    for command in (estimate, labels):
        monkeypatch.setattr("sys.argv", command)
        script.main()
