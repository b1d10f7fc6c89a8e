"""benchmarks/merging.py on a tiny model: what is merged how, and that nothing is made twice."""

import pytest
import torch
from conftest import load_script

from ivon_lora_lite import finetune, load_model, load_task, merge_runs
from ivon_lora_lite.files import read_json


@pytest.mark.slow
def test_every_seed_is_recorded_once(tiny_folder, tmp_path, monkeypatch):
    script = load_script("benchmarks/merging.py")
    command = ["merging.py", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    command += ["--tasks", "everyday", "everyday@1", "--seeds", "21", "42", "--passes", "2", "--train-size", "8"]
    command += ["--validation-size", "4", "--test-size", "6", "--model", str(tiny_folder), "--dtype", "fp32"]
    monkeypatch.setattr("sys.argv", command)
    script.main()
    records = [read_json(tmp_path / "out" / f"seed{seed}.json") for seed in (21, 42)]
    kinds = {"precision", "precision, scaled", "average", "average, scaled", "only everyday@2", "only everyday@1"}
    assert records[0]["test"].keys() == kinds
    chosen = records[0]["chosen"]["precision"]
    assert float(min(chosen["validation_nll"], key=chosen["validation_nll"].get)) == chosen["scale"]
    summed = read_json(tmp_path / "out" / "summary.json")["average"]
    values = [[r["test"]["average"][task]["nll"] for r in records] for task in ("everyday@2", "everyday@1")]
    assert summed["everyday@2"]["nll"] == {"mean": pytest.approx(sum(values[0]) / 2), "values": values[0]}
    assert summed["all"]["nll"]["mean"] == pytest.approx(sum(map(sum, values)) / 4)

    monkeypatch.setattr(script, "finetune", lambda *_: 1 / 0)
    monkeypatch.setattr(script, "record", lambda *_: 1 / 0)
    script.main()
    monkeypatch.setattr("sys.argv", [*command, "--passes", "3"])
    with pytest.raises(ValueError, match="made with passes=2, and now passes=3"):
        script.main()


def test_moves_lead_to_the_average_and_to_what_merge_runs_gives(tiny_folder):
    script = load_script("benchmarks/merging.py")
    model = load_model(str(tiny_folder), dtype="fp32", progress=False)
    options = {"steps": 3, "train_size": 6, "seed": 21, "eval_every": 0, "progress": False, "beta2": 0.9}
    runs = [finetune(model, load_task(name), **options) for name in ("everyday", "everyday@1")]
    start, moves, merged = script.started_from(runs[0]), script.moves(runs), merge_runs(runs).weights
    for name, m0 in start.items():
        torch.testing.assert_close(m0 + moves["average"][name], (runs[0].weights[name] + runs[1].weights[name]) / 2)
        torch.testing.assert_close(m0 + moves["precision"][name], merged[name])
    assert any(not torch.allclose(moves["average"][n], moves["precision"][n], atol=1e-6) for n in start)
