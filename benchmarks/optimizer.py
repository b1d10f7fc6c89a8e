"""Sample + restore + step of IVON against ivon-opt, AdamW and the memory bandwidth, in one run.

    python benchmarks/optimizer.py [--device cuda] [--json FILE]

Shapes are LoRA's on Llama-2-7B: rank 8 on q and v of 32 layers, 128 tensors, 4.2 M parameters. Gradients are given, so
only the optimizers' own work is timed. Candidates take turns; medians over rounds are reported.

Memory may lie well or badly for a whole process, so `--repeats` measures in several fresh processes: the medians over
them are reported, and the range of each ratio.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import ivon as ivon_opt
import torch

from ivon_lora_lite import IVON
from ivon_lora_lite.files import provenance, write_json

SHAPES = [(8, 4096), (4096, 8)] * 64
SETTINGS = {"lr": 0.03, "ess": 1e6, "hess_init": 1e-3, "clip_radius": 1e-3, "weight_decay": 0.0, "rescale_lr": False}
# the least that IVON must move, in floats per parameter: draw (read m, h; write θ and the saved mean, write the noise),
# restore (read, write), step (read g, noise, h, momentum, m; write h, momentum, m)
TRAFFIC = 5 + 2 + 8


def candidate(name: str, device: str):
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(s, generator=generator).mul_(0.02).to(device)) for s in SHAPES]
    grads = [torch.randn(s, generator=generator).mul_(0.01).to(device) for s in SHAPES]
    if name.startswith("AdamW"):
        optimizer = torch.optim.AdamW(params, lr=1e-4, fused=name.endswith("fused"))

        def step():
            for p, g in zip(params, grads):
                p.grad = g
            optimizer.step()

        return step
    optimizer = (IVON if name == "IVON" else ivon_opt.IVON)(params, **SETTINGS)

    def step():
        with optimizer.sampled_params(train=True):
            for p, g in zip(params, grads):
                p.grad = g
        optimizer.step()

    return step


def bandwidth(device: str) -> float:
    """Bytes per second of a large copy (read and write counted)."""
    a = torch.zeros(64 * 2**20, device=device)
    b = torch.empty_like(a)
    times = [timed(lambda: b.copy_(a), device) for _ in range(7)]
    return 2 * a.numel() * 4 / statistics.median(times[2:])


def timed(work, device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(device: str, rounds: int) -> dict[str, float]:
    """Seconds of each candidate, of the random draw alone, and of moving the bytes that must be moved."""
    names = ["IVON", "ivon-opt", "AdamW", "AdamW fused"]
    steps = {name: candidate(name, device) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds + 5):
        for name in names:
            took = timed(steps[name], device)
            if index >= 5:
                times[name].append(took)
    floats = sum(a * b for a, b in SHAPES)
    median = {name: statistics.median(values) for name, values in times.items()}
    noise = torch.empty(floats, device=device)
    median["the random draw alone"] = statistics.median([timed(noise.normal_, device) for _ in range(20)])
    median["bandwidth bound"] = TRAFFIC * floats * 4 / bandwidth(device)
    return median


def in_a_fresh_process(device: str, rounds: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--device", device, "--rounds", str(rounds), "--repeats", "0"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def summary(results: list[dict[str, float]]) -> dict:
    """Medians over processes, and the range of each ratio."""
    ratios = {name: [result[name] / result["IVON"] for result in results] for name in results[0]}
    return {
        "milliseconds": {name: 1e3 * statistics.median(result[name] for result in results) for name in results[0]},
        "ratio_to_ivon": {name: statistics.median(values) for name, values in ratios.items()},
        "range_of_ratio": {name: [min(values), max(values)] for name, values in ratios.items()},
        "processes": len(results),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3, help="processes (0: measure in this one and print JSON)")
    parser.add_argument("--json", type=Path, help="record the result")
    args = parser.parse_args()
    if not args.repeats:
        print(json.dumps(measure(args.device, args.rounds)))
        return
    results = [in_a_fresh_process(args.device, args.rounds) for _ in range(args.repeats)]
    print(f"{sum(a * b for a, b in SHAPES):,} parameters in {len(SHAPES)} tensors on {provenance()['device']}")
    found = summary(results)
    for name, ratio in found["ratio_to_ivon"].items():
        few, many = found["range_of_ratio"][name]
        own = found["milliseconds"][name]
        print(f"{name:22} {own:8.2f} ms   {ratio:5.2f} × IVON   ({few:.2f} to {many:.2f})")
    if args.json:
        write_json(args.json, found | {"rounds": args.rounds, "provenance": provenance()})


if __name__ == "__main__":
    main()
