"""Gates in two processes: all draw the same gates, their gradients are averaged, the result is that of one process."""

import json
import os
import socket

import pytest
import torch
import torch.multiprocessing as mp

from ivon_lora_lite import LoraSettings, finetune, load_model, load_task
from ivon_lora_lite.gates import GateSettings


def train(rank, ranks, model, folder, port):
    """One process of ``ranks``; the global batch is four questions whatever their number."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(ranks), "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
    run = finetune(
        load_model(model, lora=LoraSettings(dropout=0.0), dtype="fp32", device="cpu"),
        load_task("everyday@1").train[:24],
        optimizer="adamw", steps=6, batch_size=4 // ranks, seed=3, lr=1e-2, progress=False,
        gates=GateSettings(prior=2.0, start=0.5, lr=0.1),
    )  # fmt: skip
    torch.save(run.weights, f"{folder}/weights-{ranks}-{rank}.pt")
    layers = [row["gate_layers"] for row in run.history if "gate_layers" in row]
    with open(f"{folder}/gates-{ranks}-{rank}.json", "w", encoding="utf8") as file:
        json.dump({"layers": layers, "decided": run.gates.facts()}, file)


@pytest.mark.slow
def test_two_processes_learn_the_gates_that_one_learns(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for ranks in (1, 2):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        mp.spawn(train, args=(ranks, str(tiny_folder), str(tmp_path), port), nprocs=ranks)
    alone, first, second = (json.loads((tmp_path / f"gates-{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert first == second
    assert alone["layers"][0] != alone["layers"][-1]  # they moved
    for ours, theirs in zip(alone["layers"], first["layers"], strict=True):
        for name, numbers in ours.items():
            assert theirs[name] == pytest.approx(numbers, abs=0.01)
    assert {name: own["rank"] for name, own in alone["decided"].items()} == {
        name: own["rank"] for name, own in first["decided"].items()
    }
    weights = [torch.load(tmp_path / f"weights-{name}.pt") for name in ("1-0", "2-0", "2-1")]
    for name, w in weights[0].items():
        assert torch.equal(weights[1][name], weights[2][name])
        # AdamW divides by √v, so rounding shows where a gradient is nearly 0
        assert torch.linalg.norm(weights[1][name] - w) < 0.03 * torch.linalg.norm(w)
