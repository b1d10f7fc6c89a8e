"""benchmarks/choose.py on a tiny model: four trials a method, on validation questions, none of them made twice."""

import pytest
from conftest import load_script

from ivon_lora_lite.files import read_json
from ivon_lora_lite.studies import load_records


@pytest.mark.parametrize(("nll", "starts"), [((3, 2, 1), (0.14, 0.099, 0.07)), ((2, 3, 1), (0.14, 0.099, 0.198))])
def test_trials_of_noise_go_on_to_the_better_side(nll, starts):
    choose, done = load_script("benchmarks/choose.py"), []

    def best():
        return min(done, key=lambda trial: trial[0])[1]

    for value, settings in zip((*nll, 0), choose.trials("blob", "everyday", 800, best)):
        done.append((value, settings))
    assert [settings["start"] for _, settings in done[:3]] == list(starts)
    assert done[3][1] == {"start": starts[2], "kl_weight": 1e-4}


@pytest.mark.slow
def test_every_method_gets_four_trials_and_the_best_is_chosen(tiny_folder, tmp_path, monkeypatch):
    choose = load_script("benchmarks/choose.py")
    out, work = tmp_path / "out", tmp_path / "work"
    command = ["choose.py", "--out", str(out), "--work", str(work), "--model", str(tiny_folder), "--dtype", "fp32"]
    command += ["--methods", "adamw", "ivon", "swag", "--steps", "4", "--train-size", "8", "--validation-size", "6"]
    command += ["--samples", "2"]
    monkeypatch.setattr("sys.argv", command)
    choose.main()
    trials, chosen = read_json(out / "trials.json")["everyday@2"], read_json(out / "chosen.json")["everyday@2"]
    assert {method: len(done) for method, done in trials.items()} == {"adamw": 4, "ivon": 4, "swag": 4}
    for method, done in trials.items():
        best = min(done, key=lambda trial: trial["scores"]["nll"])
        assert chosen[method] == best["settings"]
        assert len({tuple(trial["settings"].items()) for trial in done}) == 4
    records = load_records(work / "everyday@2-swag-3")
    assert all(r.config["split"] == "validation" and len(r.predictions.labels) == 6 for r in records)
    assert next(r for r in records if r.cell.method == "adamw").config["chosen"] == chosen["adamw"]

    monkeypatch.setattr("ivon_lora_lite.studies.table1.runner.fill", lambda *_: 1 / 0)
    choose.main()
    assert read_json(out / "trials.json")["everyday@2"].keys() == trials.keys()
