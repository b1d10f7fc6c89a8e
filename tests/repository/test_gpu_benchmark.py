"""benchmarks/gpu.py without a GPU: every part runs on a tiny model, is kept once, and goes on where it stopped."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import ROOT, load_script

from ivon_lora_lite import Predictions

FOLDER = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def gpu():
    return load_script("benchmarks/gpu.py")


@pytest.fixture
def dry(gpu, tmp_path, monkeypatch, capsys):
    """Run a dry run with these options; gives the exit code and what was printed."""
    monkeypatch.syspath_prepend(FOLDER)  # as for a script

    def run(*options):
        code = gpu.main(["--dry-run", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), *options])
        return code, capsys.readouterr().out

    run.out = tmp_path / "out"
    return run


@pytest.mark.slow
def test_a_dry_run_goes_through_every_part_and_a_finished_part_is_not_repeated(gpu, dry):
    code, said = dry()
    assert code == 0, said
    records = {part: json.loads((dry.out / f"{part}.json").read_text()) for part in gpu.PARTS}
    for part, record in records.items():
        assert record["part"] == part and record["dry_run"] is True
        assert {"date", "device", "versions", "commit"} <= record["provenance"].keys()
    rows = records["profile"]["optimizers"]
    assert set(rows) == {"AdamW", "ivon-opt", "IVON"} and rows["AdamW"]["whole_step_relative_to_AdamW"] == 1.0
    for row in rows.values():
        assert set(row["milliseconds"]) == set(gpu.PAPER) and row["milliseconds"]["forward_backward"] > 0
        assert row["peak_memory_GiB"] is None  # there is no GPU to ask
    assert rows["IVON"]["milliseconds"]["sampling"] > 0
    assert records["profile"]["with_gradient_checkpointing"]["whole_step_milliseconds"] > 0
    assert records["profile"]["weights"] == records["evaluation"]["weights"] == "random"
    assert len(records["evaluation"]["seconds"]) == 6
    for batch in (4, 64):
        assert records["evaluation"]["relative_to_mean"][f"mean, batches of {batch}"] == 1.0
    assert records["optimizer"]["ratio_to_ivon"]["IVON"] == 1.0
    ivon = records["ivon-seed21"]
    assert set(ivon["scores"]) == {"mean", "draws"}
    assert [r["step"] for r in ivon["history"] if "eval_nll" in r] == [2, 4]
    assert Predictions.load(dry.out / "ivon-seed21-draws.safetensors").logits.shape[:2] == (3, 4)
    assert set(records["adamw-seed87"]["scores"]) == {"mean"}
    assert records["ivon-seed42"]["scores"] != ivon["scores"]

    before = {f.name: f.read_bytes() for f in dry.out.iterdir()}
    code, said = dry()
    assert code == 0 and said.count("finished already") == len(gpu.PARTS)
    assert {f.name: f.read_bytes() for f in dry.out.iterdir()} == before


@pytest.mark.slow
def test_a_part_that_runs_out_of_time_goes_on_from_its_checkpoint(dry):
    part = ("--parts", "ivon-seed21")
    code, said = dry(*part, "--minutes", "0")
    assert code == 3 and "stopped near step" in said and not list(dry.out.glob("*.json"))
    code, said = dry(*part)
    assert code == 0, said
    interrupted = json.loads((dry.out / "ivon-seed21.json").read_text())
    (dry.out / "ivon-seed21.json").unlink()
    assert dry(*part)[0] == 0
    straight = json.loads((dry.out / "ivon-seed21.json").read_text())
    assert interrupted["scores"] == straight["scores"]


def test_what_cannot_run_is_left_out_and_said(gpu, dry, monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError("SmolLM2: the Hub is away")

    monkeypatch.setattr(gpu.Bench, "model", property(missing))
    code, said = dry("--parts", "adamw-seed21")
    assert code == 3 and "left out, SmolLM2: the Hub is away" in said
    assert not list(dry.out.glob("*.json"))


@pytest.mark.slow
def test_runs_side_by_side_are_those_of_one_process(dry):
    assert dry("--parts", "adamw-seed21", "ivon-seed21", "--jobs", "2")[0] == 0
    files = ("adamw-seed21.json", "ivon-seed21.json")
    scores = [json.loads((dry.out / file).read_text())["scores"] for file in files]
    for file in files:
        (dry.out / file).unlink()
    assert dry("--parts", "adamw-seed21", "ivon-seed21")[0] == 0
    assert [json.loads((dry.out / file).read_text())["scores"] for file in files] == scores


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_only_a_dry_run_is_possible(gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert gpu.main([]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "--dry-run" in said.err and len(said.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_times_of_a_step_add_up(gpu, tiny_model, questions):
    """A pretended clock: each look at it takes a second."""
    model = tiny_model("llama")
    batch = gpu.collate(questions[:2], model.tokenizer, "letter")
    for name, make in gpu.makers().items():
        clock = iter(range(10))
        parts = gpu.step(model, make(model), batch, lambda clock=clock: next(clock))
        assert parts == {"forward_backward": 1, "sampling": 2, "step": 1}, name
