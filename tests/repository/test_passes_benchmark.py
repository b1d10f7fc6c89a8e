"""passes.py, learned.py, sweeps.py and shift.py on a tiny model: a length is a table, and nothing is made twice."""

import pytest
import torch
from conftest import load_script

from ivon_lora_lite import GaussianPosterior, Predictions, TauSweep
from ivon_lora_lite.evaluation import METRICS
from ivon_lora_lite.files import read_json
from ivon_lora_lite.plots import lengths_figure
from ivon_lora_lite.studies import by_length


@pytest.mark.slow
def test_every_length_is_recorded_once(tiny_folder, tmp_path, monkeypatch, capsys):
    passes = load_script("benchmarks/passes.py")
    monkeypatch.setattr(passes, "LENGTHS", {"everyday": {2: 2, 1: 1}})
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

    sweeps = load_script("benchmarks/sweeps.py")
    again = ["sweeps.py", *shared, "--out", str(tmp_path / "sweeps"), "--passes", "2", "--seeds", "42", "21"]
    again += ["--test-size", "6", "--validation-size", "4", "--samples", "3", "--elsewhere", "2", "--many", "5"]
    monkeypatch.setattr("sys.argv", again)
    sweeps.main()
    seed21, seed42 = (tmp_path / "sweeps" / f"everyday@2-seed{seed}" for seed in (21, 42))
    sweep = TauSweep.load(seed42 / "test.safetensors")
    assert sweep.taus == sweeps.TAUS and sweep.logits.shape == (13, 3, 6, 4) and sweep.linear is not None
    assert set(sweep.drawn) == {1, 2, 3}
    assert set(TauSweep.load(seed42 / "validation.safetensors").drawn) == {1, 3}
    cut, many = (Predictions.load(seed42 / f"{name}.safetensors") for name in ("pruned", "draws"))
    assert many.samples == 5 and not (seed21 / "draws.safetensors").exists()  # of the first seed only
    facts = ("task", "passes", "run_seed", "provenance")
    assert [many.metadata[name] for name in facts] == [cut.metadata[name] for name in facts]
    assert cut.logits.shape == (16, 6, 4) and cut.metadata["rows"][1] == [0.1, "ratio"]
    assert torch.equal(cut.logits[0], sweep.logits[0, 0])
    monkeypatch.setattr(sweeps, "sampled", lambda *_: 1 / 0)
    monkeypatch.setattr(sweeps, "prune", lambda *_: 1 / 0)
    sweeps.main()
    monkeypatch.setattr("sys.argv", [*again, "--elsewhere", "1"])
    with pytest.raises(ValueError, match="is asked for: choose another --out"):
        sweeps.main()

    shift = load_script("benchmarks/shift.py")
    again = ["shift.py", *shared, "--out", str(tmp_path / "shift"), "--passes", "2", "--seeds", "21", "42"]
    again += ["--on", "everyday@1", "--test-size", "5", "--samples", "3"]
    monkeypatch.setattr("sys.argv", again)
    shift.main()
    shapes = {file.stem: Predictions.load(file).logits.shape[0] for file in (tmp_path / "shift").glob("*21-*.saf*")}
    assert shapes == {f"{name}-seed21-everyday@1": s for name, s in (("adamw", 1), ("ivon@mean", 1), ("ivon", 3))}
    rows = read_json(tmp_path / "shift" / "summary.json")["rows"]
    columns = {method: rows[method]["everyday@1"] for method in rows}
    assert columns["adamw"]["acc"]["values"] == columns["temperature"]["acc"]["values"]  # it never changes an answer
    assert columns["adamw"]["nll"]["values"] != columns["temperature"]["nll"]["values"]
    assert "mutual_information, auroc" in columns["ivon"] and "mutual_information, auroc" not in columns["ivon@mean"]
    monkeypatch.setattr(shift, "predict", lambda *_, **__: 1 / 0)
    shift.main()
    monkeypatch.setattr("sys.argv", [*again, "--test-size", "4"])
    with pytest.raises(ValueError, match="is asked for: choose another --out"):
        shift.main()

    monkeypatch.setattr("sys.argv", command)
    records = by_length(out, "everyday")
    assert list(records) == [
        "AdamW",
        "AdamW, early-stopped",
        "AdamW + temperature",
        "IVON@mean",
        "IVON@mean + temperature",
        "IVON",
    ]
    assert all({n: len(seeds) for n, seeds in lengths.items()} == {1: 1, 2: 2} for lengths in records.values())
    assert [r.cell.seeds for r in records["IVON"][2]] == [(21,), (42,)]
    with pytest.raises(FileNotFoundError, match="no finished run on arc_easy"):
        by_length(out, "arc_easy")
    found = {title: {n: [r.scores for r in rs] for n, rs in lengths.items()} for title, lengths in records.items()}
    assert found["AdamW"][2][0].keys() == set(METRICS)
    assert len(lengths_figure(found).data) == 4 * 6
    printed = capsys.readouterr().out
    assert "everyday@2     2 passes  IVON  " in printed and "(2 seeds)" in printed

    monkeypatch.setattr("ivon_lora_lite.studies.table1.runner.fill", lambda *_: 1 / 0)
    passes.main()  # nothing is repeated
    monkeypatch.setattr("sys.argv", ["passes.py", "--out", str(out), "--show", "--tasks", "everyday"])
    passes.main()


def test_what_is_pruned_is_smallest_by_its_own_measure():
    mean = {"a": torch.tensor([3.0, -1.0, 2.0, 0.5]), "b": torch.tensor([-4.0, 0.1])}
    variance = {"a": torch.tensor([100.0, 0.01, 100.0, 1e-4]), "b": torch.tensor([1.0, 1e-4])}
    posterior = GaussianPosterior(mean, variance)
    pruned = load_script("benchmarks/sweeps.py").pruned

    def gone(order, seed=0):
        cut = pruned(posterior, 0.5, order, seed).mean
        return {(n, i) for n, t in cut.items() for i, value in enumerate(t) if value == 0}

    assert gone("ratio") == {("a", 0), ("a", 2), ("b", 0)}  # |m|/σ of .3, .2 and 4, against 10, 50 and 10
    assert gone("size") == {("a", 1), ("a", 3), ("b", 1)}
    assert all(len(gone("random", seed)) == 3 for seed in range(20))
    assert len({frozenset(gone("random", seed)) for seed in range(20)}) > 5
