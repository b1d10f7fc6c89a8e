"""Sample + restore + step of IVON against ivon-opt, AdamW and the memory bandwidth, in one run.

    python benchmarks/optimizer.py [--device cuda] [--json FILE]

Shapes are LoRA's on Llama-2-7B: rank 8 on q and v of 32 layers, 128 tensors, 4.2 M parameters. Gradients are given, so
only the optimizers' own work is timed. Candidates take turns; medians are reported.
"""

import argparse
import statistics
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", type=Path, help="record the result")
    args = parser.parse_args()
    names = ["IVON", "ivon-opt", "AdamW", "AdamW fused"]
    steps = {name: candidate(name, args.device) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(args.rounds + 5):
        for name in names:
            took = timed(steps[name], args.device)
            if index >= 5:
                times[name].append(took)
    floats = sum(a * b for a, b in SHAPES)
    median = {name: statistics.median(values) for name, values in times.items()}
    noise = torch.empty(floats, device=args.device)
    median["the random draw alone"] = statistics.median([timed(noise.normal_, args.device) for _ in range(20)])
    median["bandwidth bound"] = TRAFFIC * floats * 4 / bandwidth(args.device)
    print(f"{floats:,} parameters in {len(SHAPES)} tensors on {provenance()['device']}")
    for name, value in median.items():
        print(f"{name:22} {1e3 * value:8.2f} ms   {value / median['IVON']:5.2f} × IVON")
    if args.json:
        ratios = {name: value / median["IVON"] for name, value in median.items()}
        write_json(args.json, {"milliseconds": {k: 1e3 * v for k, v in median.items()}, "ratio_to_ivon": ratios,
                               "provenance": provenance()})  # fmt: skip


if __name__ == "__main__":
    main()
