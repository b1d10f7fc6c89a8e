"""Record what notebook 07 shows of IVON's runs: τ on test and on validation questions, many draws, pruning.

    python benchmarks/sweeps.py --work outputs/passes --out data/runs/sweeps

Starts from the runs that `benchmarks/passes.py` left in `--work` at 20 passes. A run gets a folder `TASK-seedS` with

    test.safetensors        TauSweep on all test questions: draws at 13 τ, and the linearised Gaussian
    validation.safetensors  the same on all validation questions, to choose τ
    pruned.safetensors      Predictions at the mean with a share of the weights at 0: those of the smallest |m|/σ, those
                            of the smallest |m|, or any
    draws.safetensors       Predictions of many draws at τ = 1 on the first test questions (the first of --seeds only)

Files are whole or absent, and what is there is not made again. About an hour for each seed on one core.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from ivon_lora_lite import (
    GaussianPosterior,
    Predictions,
    linearized,
    load_model,
    load_run,
    load_task,
    predict,
    tau_sweep as sampled,
)
from ivon_lora_lite.files import keep_options, provenance
from ivon_lora_lite.language import full_name

SEEDS = (21, 42, 87)
TAUS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
PRUNED = (0.1, 0.25, 0.5, 0.75, 0.9)
ORDERS = ("ratio", "size", "random")


def pruned(posterior: GaussianPosterior, share: float, order: str, seed: int) -> GaussianPosterior:
    """A share of the weights set to 0: those of the smallest |m|/σ (Graves 2011), of the smallest |m|, or any."""
    generator = torch.Generator().manual_seed(seed)
    if order == "size":
        variance = {name: torch.ones_like(v) for name, v in posterior.variance.items()}
    elif order == "random":  # a σ with which |m|/σ is a random number
        variance = {
            name: (posterior.mean[name] / torch.rand(v.shape, generator=generator).clamp(min=1e-6))
            .square()
            .clamp(1e-30)
            for name, v in posterior.variance.items()
        }
    else:
        variance = posterior.variance
    return GaussianPosterior(posterior.mean, variance).prune(share)


def prune(run, test, seed: int, facts: dict) -> Predictions:
    """Predictions at the mean, a row for each share and order; the first row is unpruned."""
    rows = [(0.0, "none"), *((share, order) for order in ORDERS for share in PRUNED)]
    made = []
    for share, order in rows:
        posterior = pruned(run.posterior, share, order, seed) if share else run.posterior
        made.append(predict(run, test, posterior=posterior))
    logits = torch.stack([one.logits[0] for one in made])
    return Predictions(logits, made[0].labels, {**facts, "rows": [list(row) for row in rows]})


def many(run, questions, samples: int, facts: dict) -> Predictions:
    """Predictions of many draws at τ = 1."""
    found = predict(run, questions, samples=samples)
    return replace(found, metadata={**found.metadata, **facts})


def record(args: argparse.Namespace, seed: int) -> None:
    task = load_task(args.task, hub=args.hub)
    test, validation = task.test[: args.test_size], task.validation[: args.validation_size]
    source = args.work / f"{args.passes}-passes" / full_name(args.task) / "ivon" / f"seed{seed}"
    run = load_run(source, load_model(args.model, dtype=args.dtype, progress=False))
    folder = args.out / f"{full_name(args.task)}-seed{seed}"
    facts = {"task": full_name(args.task), "passes": args.passes, "run_seed": seed, "provenance": provenance()}

    def both(questions, elsewhere: int, **more):
        line = linearized(run, questions)
        options = {"taus": args.taus, "samples": args.samples, "elsewhere": min(elsewhere, args.samples)}
        return sampled(run, questions, linear=line, metadata={**facts, **more}, **options)

    parts = {
        "validation": lambda: both(validation, args.samples, split="validation"),
        "pruned": lambda: prune(run, test, seed, facts),
        "test": lambda: both(test, args.elsewhere, split="test"),
    }
    if seed == args.seeds[0]:
        parts["draws"] = lambda: many(run, test[: args.many_size], args.many, facts)
    for name, make in parts.items():
        file = folder / f"{name}.safetensors"
        if not file.exists():
            started = time.perf_counter()
            make().save(file)
            print(f"{file} took {time.perf_counter() - started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of benchmarks/passes.py with weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", default="everyday")
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--hub", help="folder laid out like the Hub (default: $IVON_LORA_HUB)")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--test-size", type=int, help="default: all")
    parser.add_argument("--validation-size", type=int, help="default: all")
    parser.add_argument("--taus", type=float, nargs="+", default=TAUS)
    parser.add_argument(
        "--samples", type=int, default=10, help="draws at τ = 1, and at every τ on validation questions"
    )
    parser.add_argument("--elsewhere", type=int, default=4, help="draws at every other τ on test questions")
    parser.add_argument("--many", type=int, default=64, help="this number of draws at τ = 1, for the first seed")
    parser.add_argument("--many-size", type=int, default=300, help="on only this many test questions")
    args = parser.parse_args()
    own = ("work", "out", "hub", "seeds", "task")  # a task has folders of its own
    keep_options(args.out, {name: value for name, value in vars(args).items() if name not in own})
    for seed in args.seeds:
        record(args, seed)


if __name__ == "__main__":
    main()
