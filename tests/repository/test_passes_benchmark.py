"""benchmarks/passes.py and learned.py on a tiny model: every length a table of its own, and nothing is made twice."""

import pytest
import torch
from conftest import load_script

from ivon_lora_lite import Predictions, TauSweep
from ivon_lora_lite.evaluation import METRICS
from ivon_lora_lite.files import read_json
from ivon_lora_lite.plots import lengths_figure
from ivon_lora_lite.studies import by_length


@pytest.mark.slow
def test_every_length_is_recorded_once(tiny_folder, tmp_path, monkeypatch, capsys):
    passes = load_script("benchmarks/passes.py")
    monkeypatch.setattr(passes, "LENGTHS", {"everyday": {2: 2, 1: 1}})
    monkeypatch.setattr(passes, "SWEPT", 2)
    out = tmp_path / "out"
    command = ["passes.py", "--work", str(tmp_path / "work"), "--out", str(out), "--model", str(tiny_folder)]
    command += ["--tasks", "everyday", "--train-size", "8", "--test-size", "6", "--validation-size", "4"]
    command += ["--samples", "2", "--dtype", "fp32"]
    monkeypatch.setattr("sys.argv", command)
    passes.main()
    learned = load_script("benchmarks/learned.py")
    shared = ["--work", str(tmp_path / "work"), "--model", str(tiny_folder), "--dtype", "fp32"]
    again = ["learned.py", *shared, "--out", str(tmp_path / "learned"), "--passes", "2", "--seeds", "21", "42"]
    monkeypatch.setattr("sys.argv", again)
    learned.main()
    record = read_json(tmp_path / "learned" / "everyday@2-2-passes.json")
    assert record["learned_minus"].keys() == set(learned.KINDS) and record["sigma"].keys() == {"21", "42"}
    kept = {
        kind: Predictions.load(next(tmp_path.glob(f"learned/*seed21-{kind}*"))) for kind in ("one-size.", "h-stays")
    }
    assert {p.logits.shape for p in kept.values()} == {(2, 6, 4)}
    assert not torch.equal(*(p.logits for p in kept.values()))
    monkeypatch.setattr(learned, "other", lambda *_: 1 / 0)
    learned.main()

    monkeypatch.setattr("sys.argv", command)
    records = by_length(out, "everyday")
    assert list(records) == ["AdamW", "AdamW, early-stopped", "AdamW + temperature", "IVON@mean", "IVON"]
    assert all({n: len(seeds) for n, seeds in lengths.items()} == {1: 1, 2: 2} for lengths in records.values())
    assert [r.cell.seeds for r in records["IVON"][2]] == [(21,), (42,)]
    with pytest.raises(FileNotFoundError, match="no finished run on arc_easy"):
        by_length(out, "arc_easy")
    found = {title: {n: [r.scores for r in rs] for n, rs in lengths.items()} for title, lengths in records.items()}
    assert found["AdamW"][2][0].keys() == set(METRICS)
    assert len(lengths_figure(found).data) == 4 * 5
    sweep = TauSweep.load(out / "everyday@2-2-passes-seed42-sweep.safetensors")
    assert sweep.taus == passes.TAUS and sweep.logits.shape == (13, 2, 6, 4)
    printed = capsys.readouterr().out
    assert "everyday@2     2 passes  IVON  " in printed and "(2 seeds)" in printed

    monkeypatch.setattr("ivon_lora_lite.studies.table1.runner.fill", lambda *_: 1 / 0)
    monkeypatch.setattr(passes, "load_run", lambda *_: 1 / 0)
    passes.main()  # nothing is repeated
    monkeypatch.setattr("sys.argv", ["passes.py", "--out", str(out), "--show", "--tasks", "everyday"])
    passes.main()
