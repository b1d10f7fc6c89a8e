"""benchmarks/gpu.py without a GPU: every part runs on a tiny model, is kept once, and goes on where it stopped."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import ROOT, load_script

from ivon_lora_lite import TauSweep

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
    assert records["evaluation"]["relative_to_mean"]["mean"] == 1.0 and len(records["evaluation"]["seconds"]) == 4
    assert records["optimizer"]["ratio_to_ivon"]["IVON"] == 1.0
    ivon = records["everyday-ivon"]
    assert set(ivon["scores"]) == {"ivon@mean", "ivon, 3 draws"}
    assert [r["step"] for r in ivon["history"] if "eval_nll" in r] == [2, 4]
    assert TauSweep.load(dry.out / "everyday-ivon-sweep.safetensors").taus == gpu.TAUS
    assert set(records["arc_easy-adamw"]["scores"]) == {"at the point"}

    before = {f.name: f.read_bytes() for f in dry.out.iterdir()}
    code, said = dry()
    assert code == 0 and said.count("finished already") == len(gpu.PARTS)
    assert {f.name: f.read_bytes() for f in dry.out.iterdir()} == before


@pytest.mark.slow
def test_a_part_that_runs_out_of_time_goes_on_from_its_checkpoint(dry):
    part = ("--parts", "everyday-ivon")
    code, said = dry(*part, "--minutes", "0")
    assert code == 3 and "stopped near step" in said and not list(dry.out.glob("*.json"))
    code, said = dry(*part)
    assert code == 0, said
    interrupted = json.loads((dry.out / "everyday-ivon.json").read_text())
    (dry.out / "everyday-ivon.json").unlink()
    assert dry(*part)[0] == 0
    straight = json.loads((dry.out / "everyday-ivon.json").read_text())
    assert interrupted["scores"] == straight["scores"]


def test_what_cannot_run_is_left_out_and_said(gpu, dry, monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError("arc_easy: the Hub is away")

    monkeypatch.setattr(gpu, "load_task", missing)
    code, said = dry("--parts", "arc_easy-adamw")
    assert code == 3 and "left out, arc_easy: the Hub is away" in said
    assert not list(dry.out.glob("*.json"))


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
