"""Record what notebook 07 shows: τ sweeps, many draws and pruning of IVON runs, over seeds.

    python benchmarks/sweeps.py --task everyday --runs outputs/overfit --many 64 --out data/runs/sweeps
    python benchmarks/sweeps.py --task arc_easy --train-size 200 --steps 300 --test-size 200 --out data/runs/sweeps

Each seed finetunes SmolLM2-135M on few questions with AdamW and with IVON (the small preset of both, the same questions
in the same order), or takes these runs from a folder that `benchmarks/overfit.py --keep` filled. It takes 10 to 20
minutes on two cores, and becomes one folder `TASK-seedS/` that is whole or absent; finished ones are not repeated:

    sweep.safetensors        TauSweep on test questions: exact draws on a grid of τ, and the linearised Gaussian
    validation.safetensors   TauSweep at the mean, with the linearised Gaussian, on validation questions: to choose τ
    adamw.safetensors        Predictions of AdamW on the same test questions
    pruned.safetensors       Predictions at the mean with the smallest |m|/σ set to 0, one per share in the metadata
    draws.safetensors        Predictions of many draws at τ = 1 (--many, first seed only)
    run.json                 settings, histories, seconds, provenance
"""

import argparse
import os
import shutil
import time
from pathlib import Path

import torch

from ivon_lora_lite import Predictions, finetune, linearized, load_model, load_run, load_task, predict, score, tau_sweep
from ivon_lora_lite.files import provenance, write_json

PRUNED = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9)


def record(args: argparse.Namespace, seed: int, many: int, folder: Path) -> None:
    model, task = load_model(), load_task(args.task, hub=args.hub)
    test, validation = task.test[: args.test_size], task.validation[: args.validation_size]
    common = {"steps": args.steps, "train_size": args.train_size, "seed": seed}
    if args.runs:
        runs = {o: load_run(args.runs / f"{o}-seed{seed}", model) for o in ("adamw", "ivon")}
    else:
        runs = {o: finetune(model, task, optimizer=o, progress=False, **common) for o in ("adamw", "ivon")}
    ivon, clock = runs["ivon"], {f"train {name}": run.seconds for name, run in runs.items()}

    def timed(name, work):
        started = time.perf_counter()
        result = work()
        clock[name] = time.perf_counter() - started
        print(f"{folder.name}: {name} took {clock[name]:.0f} s", flush=True)
        return result

    facts = {"task": task.name, "split": task.splits["test"], "run_seed": seed, "steps": ivon.config["steps"]}
    adamw = timed("adamw", lambda: predict(runs["adamw"], test))
    line = timed("linearise", lambda: linearized(ivon, test))
    sweep = timed(
        "sweep",
        lambda: tau_sweep(ivon, test, samples=args.samples, taus=args.taus, seed=0, linear=line, metadata=facts),
    )
    line = timed("linearise validation", lambda: linearized(ivon, validation))
    facts |= {"split": task.splits["validation"]}
    chooser = tau_sweep(ivon, validation, samples=1, taus=(0.0,), linear=line, metadata=facts)
    cut = timed(
        "prune",
        lambda: [predict(model, test, posterior=ivon.posterior.prune(f)).logits[0] for f in PRUNED],
    )
    pruned = Predictions(torch.stack(cut), sweep.labels, {**sweep.metadata, "pruned": list(PRUNED)})
    draws = timed("draws", lambda: predict(ivon, test[: args.many_size], samples=many)) if many else None
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        sweep.save(temporary / "sweep.safetensors")
        chooser.save(temporary / "validation.safetensors")
        adamw.save(temporary / "adamw.safetensors")
        pruned.save(temporary / "pruned.safetensors")
        if draws is not None:
            draws.save(temporary / "draws.safetensors")
        write_json(temporary / "run.json", {
            "config": {o: run.config for o, run in runs.items()},
            "history": {o: run.history for o, run in runs.items()},
            "posterior": ivon.posterior.summary(),
            "scores": {"adamw": dict(score(adamw)), **{f"ivon τ={t:g}": dict(sweep.scores(t)) for t in sweep.taus}},
            "seconds": clock, "provenance": provenance(),
        })  # fmt: skip
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", default="everyday")
    parser.add_argument("--hub", help="folder laid out like the Hub (default: $IVON_LORA_HUB)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[21, 42, 87])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--train-size", type=int, default=160)
    parser.add_argument("--test-size", type=int, default=300)
    parser.add_argument("--validation-size", type=int, default=100)
    parser.add_argument("--samples", type=int, default=8, help="draws at every τ of the grid")
    parser.add_argument("--taus", type=float, nargs="+", default=[0.0, 0.25, 1.0, 2.5])
    parser.add_argument("--many", type=int, default=0, help="also this number of draws at τ = 1, for the first seed")
    parser.add_argument("--many-size", type=int, default=150, help="on only this many test questions")
    parser.add_argument("--runs", type=Path, help="folder with finished runs adamw-seedS and ivon-seedS")
    args = parser.parse_args()
    for seed in args.seeds:
        folder = args.out / f"{args.task}-seed{seed}"
        if not (folder / "run.json").exists():
            record(args, seed, args.many if seed == args.seeds[0] else 0, folder)


if __name__ == "__main__":
    main()
