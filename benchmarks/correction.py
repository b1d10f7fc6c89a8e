"""Laplace with a corrected mean: does it matter where the mean of a given Gaussian is?

    python benchmarks/correction.py --work outputs/passes --out data/runs/correction

Takes the AdamW runs that `benchmarks/passes.py` left in `--work`, fits Laplace with a prior precision that validation
questions choose, moves its mean along a few directions to where the variational objective on the training questions is
lowest (`correct_mean`), and scores the linearised predictions of both on test questions. One JSON file for each seed;
finished ones are not repeated. `summary.json` has paired differences over all seeds.
"""

import argparse
from pathlib import Path

from ivon_lora_lite import (
    correct_mean,
    laplace,
    linearized_laplace,
    load_model,
    load_run,
    load_task,
    paired_differences,
    score,
)
from ivon_lora_lite.evaluation import Predictions
from ivon_lora_lite.files import finished, provenance, read_json, write_json
from ivon_lora_lite.language import full_name

SEEDS, PARTS = (21, 42, 87), ("laplace", "corrected")


def compare(run, task, args: argparse.Namespace) -> tuple[dict, dict[str, Predictions]]:
    """Facts and scores of one run, and the predictions of both on test questions."""
    train, test = task.train[: run.config["train_size"]], task.test[: args.test_size]
    fitted = laplace(run, task, args.structure, precision="validation")
    moved = correct_mean(fitted, train, args.rank)
    made = {name: linearized_laplace(r, test).predictions() for name, r in zip(PARTS, (fitted, moved))}
    shift = sum(float((moved.weights[name] - w).square().sum()) for name, w in fitted.weights.items()) ** 0.5
    size = sum(float(w.square().sum()) for w in fitted.weights.values()) ** 0.5
    facts = {
        "prior_precision": fitted.posterior.metadata["prior_precision"],
        "objective": moved.posterior.metadata["correction"],
        "relative_shift": shift / size,
        "scores": {name: dict(score(p, intervals=False)) for name, p in made.items()},
    }
    return facts, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of benchmarks/passes.py with weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", default="everyday")
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--structure", choices=("diag", "kfac"), default="diag")
    parser.add_argument("--rank", type=int, default=2)
    parser.add_argument("--test-size", type=int, help="default: all")
    parser.add_argument("--hub", help="folder laid out like the Hub")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    task, model = load_task(args.task, hub=args.hub), None
    where = f"{full_name(args.task)}-{args.passes}-passes-{args.structure}"
    files = {seed: args.out / f"{where}-seed{seed}.json" for seed in args.seeds}
    options = {k: v for k, v in vars(args).items() if k not in ("work", "out", "hub", "seeds")}
    for seed, file in files.items():
        if finished(file, options):
            continue
        model = model or load_model(args.model, dtype=args.dtype)
        source = args.work / f"{args.passes}-passes" / full_name(args.task) / "adamw" / f"seed{seed}"
        facts, made = compare(load_run(source, model), task, args)
        for name, predictions in made.items():
            predictions.save(file.with_name(f"{where}-seed{seed}-{name}.safetensors"))
        write_json(file, {"rank": args.rank, "seed": seed, **facts, "options": options, "provenance": provenance()})
        print(seed, {name: round(s["nll"], 4) for name, s in facts["scores"].items()}, flush=True)
    done = [seed for seed, file in files.items() if file.exists()]
    pooled = [[Predictions.load(args.out / f"{where}-seed{s}-{name}.safetensors") for s in done] for name in PARTS]
    objective = [read_json(files[seed])["objective"] for seed in done]
    found = {"seeds": done, "objective": objective, "corrected_minus_laplace": paired_differences(*pooled)}
    write_json(args.out / "summary.json", found)
    for metric, d in found["corrected_minus_laplace"].items():
        print(f"{metric:6} {d['difference']:+.4f} [{d['interval'][0]:+.4f}, {d['interval'][1]:+.4f}]")


if __name__ == "__main__":
    main()
