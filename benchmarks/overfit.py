"""Many epochs on few questions: what AdamW and IVON do to the validation NLL and ECE while the training loss falls.

    python benchmarks/overfit.py --out data/runs/everyday-overfit

SmolLM2-135M on the first 160 training questions of `everyday@1`, 400 steps of 4, so every question is used ten times.
`adamw-high` is AdamW at 5e-4, a common value that nobody tuned here; `adamw` and `ivon` are what was then the small
preset, chosen on the validation split for 200 steps. All are evaluated on 120 validation questions as they go (IVON at
the mean), and on the test split at the end (IVON at the mean and with 10 draws).

One run is one folder `METHOD-seedS/` that is whole or absent; finished ones are not repeated, so the script can be
stopped and started again. `summary.json` has mean and standard error over seeds. Its early-stopped rows are AdamW at
the step with the lowest validation NLL: weights are not kept on the way, so only validation scores are known for it.
"""

import argparse
import os
import shutil
import statistics
import time
from pathlib import Path

from ivon_lora_lite import (
    Predictions,
    Run,
    Task,
    finetune,
    load_model,
    load_task,
    predict,
    save_run,
    score,
)  # fmt: skip
from ivon_lora_lite.evaluation import METRICS
from ivon_lora_lite.files import provenance, read_json, write_json

# the small preset as it was then, chosen on `everyday@1` for 200 steps (data/runs/everyday-search)
METHODS = {
    "adamw-high": ("adamw", {"lr": 5e-4}),
    "adamw": ("adamw", {"lr": 2e-4, "weight_decay": 0.0}),
    "ivon": ("ivon", {"lr": 0.2, "ess": 8.16e5, "beta2": 1 - 1e-5, "clip_radius": 1e-3}),
}
HISTORY = "history.json"
# the files of a run's test predictions, and the row of the summary that each becomes
ROWS = {"predictions": "", "predictions-mean": "@mean"}
EARLY = (
    "The step with the lowest validation NLL, chosen and scored on the same validation questions (so it looks a little "
    "better than it is). Its weights were not kept, so its test scores are not known: compare it with `validation`."
)


def record(run: Run, task: Task, args: argparse.Namespace, config: dict, folder: Path) -> None:
    """Evaluate a run on the test split and write its folder, all or nothing."""
    started = time.perf_counter()
    questions = task.test[: args.test_size]
    results = {"predictions": predict(run, questions, samples=args.samples if run.posterior else 0)}
    if run.posterior:
        results["predictions-mean"] = predict(run, questions)
    seconds = {"train": round(run.seconds, 1), "test": round(time.perf_counter() - started, 1)}
    facts = {"task": task.name, "split": task.splits["test"], "method": config["method"], "run_seed": config["seed"]}
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        for name, result in results.items():
            whole = Predictions(result.logits, result.labels, result.metadata | facts)
            whole.save(temporary / f"{name}.safetensors")
        content = {"config": config, "settings": run.config["settings"], "model": run.config["model"]}
        content |= {"history": run.history, "seconds": seconds, "provenance": provenance()}
        write_json(temporary / HISTORY, content)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def over_seeds(values: list[dict]) -> dict:
    """Mean and standard error of every number; one seed has no standard error."""
    out = {}
    for name in values[0]:
        column = [v[name] for v in values]
        error = statistics.stdev(column) / len(column) ** 0.5 if len(column) > 1 else None
        out[name] = {"mean": statistics.fmean(column), "se": error, "values": column}
    return out


def summarize(out: Path) -> dict:
    """Everything that is finished in a folder: test scores, and validation scores at the last and the best step."""
    content: dict = {"test": {}, "validation": {}, "early_stopped": {"note": EARLY}, "seeds": {}}
    for method in METHODS:
        folders = sorted(file.parent for file in out.glob(f"{method}-seed*/{HISTORY}"))
        if not folders:
            continue
        records = [read_json(folder / HISTORY) for folder in folders]
        content["seeds"][method] = [r["config"]["seed"] for r in records]
        for file, suffix in ROWS.items():
            if all((folder / f"{file}.safetensors").exists() for folder in folders):
                loaded = [Predictions.load(folder / f"{file}.safetensors") for folder in folders]
                content["test"][method + suffix] = over_seeds([dict(score(p, intervals=False)) for p in loaded])
        evaluated = [[row for row in r["history"] if "eval_nll" in row] for r in records]
        scores = [[{k: row[f"eval_{k}"] for k in METRICS} | {"step": row["step"]} for row in e] for e in evaluated]
        content["validation"][method] = over_seeds([rows[-1] for rows in scores])
        if METHODS[method][0] == "adamw":
            best = [min(rows, key=lambda row: row["nll"]) for rows in scores]
            content["early_stopped"][method] = over_seeds(best)
        content["config"] = {k: v for k, v in records[0]["config"].items() if k not in ("seed", "method", "optimizer")}
    return content | {"provenance": provenance()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[21, 42, 87])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--train-size", type=int, default=160)
    parser.add_argument("--eval-every", type=int, default=40)
    parser.add_argument("--eval-size", type=int, default=120, help="validation questions")
    parser.add_argument("--test-size", type=int, default=None, help="default: the whole test split")
    parser.add_argument("--samples", type=int, default=10, help="draws of IVON's test predictions")
    parser.add_argument("--keep", type=Path, help="also save adapters and posteriors, into this folder")
    args = parser.parse_args()
    model, task = load_model(), load_task("everyday@1")
    common = {"steps": args.steps, "train_size": args.train_size, "eval_every": args.eval_every}
    common |= {"eval_size": args.eval_size}
    rest = {"batch_size": 4, "samples": args.samples, "questions": len(task.test[: args.test_size])}
    for seed in args.seeds:  # a stopped script leaves whole seeds rather than whole methods
        for method in args.methods:
            optimizer, settings = METHODS[method]
            folder = args.out / f"{method}-seed{seed}"
            config = {"method": method, "optimizer": optimizer, "seed": seed, **common, **rest}
            if (folder / HISTORY).exists():
                if read_json(folder / HISTORY)["config"] != config:
                    raise SystemExit(f"{folder} was made with other options: choose another --out.")
                continue
            run = finetune(
                model, task, optimizer=optimizer, seed=seed, batch_size=4, progress=False, **common, **settings
            )
            record(run, task, args, config, folder)
            if args.keep:
                save_run(run, args.keep / folder.name, overwrite=True)
            write_json(args.out / "summary.json", summarize(args.out))
            last = [row for row in run.history if "eval_nll" in row][-1]
            shown = {name: round(last[f"eval_{name}"], 3) for name in METRICS}
            print(f"{method} seed {seed}: {run.seconds:.0f} s of training, validation {shown}", flush=True)
    write_json(args.out / "summary.json", summarize(args.out))


if __name__ == "__main__":
    main()
