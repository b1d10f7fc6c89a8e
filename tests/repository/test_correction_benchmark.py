"""benchmarks/correction.py on a tiny model: what is compared, and that nothing is made twice."""

import pytest
from conftest import load_script

from ivon_lora_lite import run_table
from ivon_lora_lite.evaluation import Predictions
from ivon_lora_lite.files import read_json
from ivon_lora_lite.methods import Settings


@pytest.mark.slow
def test_every_seed_is_compared_once(tiny_folder, tmp_path, monkeypatch):
    settings = Settings(model=str(tiny_folder), steps=4, train_size=8, test_size=6, validation_size=6, dtype="fp32")
    run_table(tmp_path / "work" / "2-passes", ["everyday"], ["adamw"], [21, 42], settings)
    script = load_script("benchmarks/correction.py")
    command = ["correction.py", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--passes", "2"]
    command += ["--seeds", "21", "42", "--rank", "1", "--test-size", "10", "--model", str(tiny_folder)]
    monkeypatch.setattr("sys.argv", [*command, "--dtype", "fp32"])
    script.main()
    summary = read_json(tmp_path / "out" / "summary.json")
    assert summary["seeds"] == [21, 42] and all(after <= before for before, after in summary["objective"])
    name = "everyday@2-2-passes-diag-seed{}"
    nll = {"laplace": 0.0, "corrected": 0.0}
    for seed in (21, 42):
        record = read_json(tmp_path / "out" / f"{name.format(seed)}.json")
        assert record["relative_shift"] > 0
        for part in nll:
            nll[part] += record["scores"][part]["nll"] / 2
            made = Predictions.load(tmp_path / "out" / f"{name.format(seed)}-{part}.safetensors")
            assert made.logits.shape == (1, 10, 4)
    found = summary["corrected_minus_laplace"]["nll"]["difference"]
    assert found == pytest.approx(nll["corrected"] - nll["laplace"], abs=1e-6)

    monkeypatch.setattr(script, "compare", lambda *_: 1 / 0)
    script.main()
