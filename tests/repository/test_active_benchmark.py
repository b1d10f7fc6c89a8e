"""benchmarks/active.py on a tiny model: what is chosen, that it is trained on, and that no round is made twice."""

import pytest
import torch
from conftest import load_script

from ivon_lora_lite import Predictions, load_task
from ivon_lora_lite.files import read_json


def test_the_least_sure_and_those_on_which_draws_disagree():
    active = load_script("benchmarks/active.py")
    questions = load_task("everyday@1").train[:3]
    sure, unsure = [9.0, 0.0], [0.1, 0.0]
    logits = torch.tensor([[sure, [9.0, 0.0], unsure], [sure, [0.0, 9.0], unsure]])
    drawn = Predictions(logits, torch.zeros(3, dtype=torch.long))
    assert active.chosen("bald", drawn, questions, 1) == [questions[1]]
    assert set(q.id for q in active.chosen("entropy", drawn, questions, 2)) == {questions[1].id, questions[2].id}
    assert active.chosen("random", None, questions, 2) == questions[:2]


@pytest.mark.slow
def test_rounds_are_recorded_once_and_share_their_start(tiny_folder, tmp_path, monkeypatch):
    active = load_script("benchmarks/active.py")
    command = ["active.py", "--out", str(tmp_path), "--task", "everyday", "--seeds", "21", "--pool", "20"]
    command += ["--batch", "4", "--labels", "12", "--passes", "1", "--test-size", "6", "--samples", "2"]
    command += ["--model", str(tiny_folder), "--dtype", "fp32"]
    monkeypatch.setattr("sys.argv", command)
    trained, finetune = [], active.finetune
    monkeypatch.setattr(active, "finetune", lambda *args, **more: trained.append(args[1]) or finetune(*args, **more))
    active.main()
    assert sorted(map(len, trained)) == [4, 8, 8, 8, 12, 12, 12]  # the first round is one for all
    summary = read_json(tmp_path / "summary.json")
    assert {strategy: list(by_count) for strategy, by_count in summary.items()} == {
        strategy: ["4", "8", "12"] for strategy in active.STRATEGIES
    }
    records = {s: [read_json(tmp_path / f"{s}-seed21-{n}.json") for n in (4, 8, 12)] for s in active.STRATEGIES}
    assert len({tuple(r[0]["trained_on"]) for r in records.values()}) == 1
    for first, second, third in records.values():
        assert second["trained_on"] == first["trained_on"] + first["next"] and third["next"] == []
        assert len(set(third["trained_on"])) == 12
    monkeypatch.setattr(active, "finetune", lambda *_, **__: 1 / 0)
    active.main()
