"""Three adapters in one: merged by IVON's precisions, by a plain average, and by task arithmetic.

    python benchmarks/merging.py --work outputs/merging --out data/runs/merging --hub DIR

IVON is trained on 160 questions of `everyday`, of OpenBookQA and of ARC-Easy, for a seed always from one start of LoRA.
The merged weights are  m₀ + α Σ_k w_k (m_k − m₀)  with

    precision     w_k = H_k / Σ H, the precisions that IVON learned (`merge_runs`)
    average       w_k = 1/K; α K = 1 is the plain average, and any other α is task arithmetic

α K is 1, and for both also the one of five that has the lowest NLL on validation questions, averaged over tasks. Scores
are at the mean, on test questions of every task, beside those of each single run. One JSON file for each seed; finished
runs and files are not repeated. `summary.json` has means over seeds.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

from ivon_lora_lite import finetune, load_model, load_run, load_task, merge_runs, predict, score
from ivon_lora_lite.files import finished, provenance, read_json, write_json
from ivon_lora_lite.language import full_name
from ivon_lora_lite.training import started_from

SEEDS = (21, 42, 87)
TASKS = ("everyday", "openbookqa", "arc_easy")
SCALES = (1.0, 0.5, 1.5, 2.0, 3.0)  # α K; the first is the plain one


def moves(runs: list) -> dict[str, dict]:
    """What each kind of merging adds to m₀ at αK = 1, name of a weight → the move."""
    start, by_precision = started_from(runs[0]), merge_runs(runs).weights
    return {
        "precision": {name: by_precision[name] - m0 for name, m0 in start.items()},
        "average": {name: sum(run.weights[name] for run in runs) / len(runs) - m0 for name, m0 in start.items()},
    }


def scores_of(run, weights: dict, questions: dict) -> dict:
    """Scores at these weights on every task."""
    point = replace(run, weights=weights, posterior=None)
    return {task: dict(score(predict(point, asked), intervals=False)) for task, asked in questions.items()}


def record(runs: dict, validation: dict, test: dict) -> dict:
    """Test scores of the single runs and of the merged ones, and the scales that validation chose."""
    found = {f"only {task}": scores_of(run, run.weights, test) for task, run in runs.items()}
    first, chosen = next(iter(runs.values())), {}
    start = started_from(first)
    for kind, move in moves(list(runs.values())).items():

        def at(scale: float, move: dict = move) -> dict:
            return {name: m0 + scale * move[name] for name, m0 in start.items()}

        losses = {
            scale: statistics.mean(s["nll"] for s in scores_of(first, at(scale), validation).values())
            for scale in SCALES
        }
        best = min(losses, key=losses.get)
        chosen[kind] = {"scale": best, "validation_nll": {f"{scale:g}": value for scale, value in losses.items()}}
        found[kind] = scores_of(first, at(1.0), test)
        found[f"{kind}, scaled"] = found[kind] if best == 1 else scores_of(first, at(best), test)
    return {"test": found, "chosen": chosen}


def summary(out: Path) -> dict:
    """Kind → task (or all of them on average) → metric → mean over seeds, and the values."""
    tests = [read_json(file)["test"] for file in sorted(out.glob("seed*.json"))]
    found: dict = {}
    for kind, tasks in tests[0].items() if tests else ():
        for name, of in (*((task, [task]) for task in tasks), ("all", list(tasks))):
            for metric in ("acc", "nll"):
                values = [statistics.mean(test[kind][task][metric] for task in of) for test in tests]
                row = {"mean": statistics.mean(values), "values": values}
                found.setdefault(kind, {}).setdefault(name, {})[metric] = row
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="gets the runs with their weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--train-size", type=int, default=160)
    parser.add_argument("--validation-size", type=int, default=100)
    parser.add_argument("--test-size", type=int, default=500)
    parser.add_argument("--hub", help="folder laid out like the Hub")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    model = load_model(args.model, dtype=args.dtype, progress=False)
    tasks = {full_name(name): load_task(name, hub=args.hub) for name in args.tasks}
    steps = args.passes * args.train_size // 4
    options = {name: value for name, value in vars(args).items() if name not in ("work", "out", "hub", "seeds")}
    for seed in args.seeds:
        file = args.out / f"seed{seed}.json"
        if finished(file, options):
            continue
        runs = {}
        for name, task in tasks.items():
            place = args.work / f"{name}-{args.passes}-passes-{args.train_size}-questions-seed{seed}"
            if not place.exists():
                training = {"train_size": args.train_size, "steps": steps, "seed": seed}
                finetune(model, task, optimizer="ivon", eval_every=0, progress=False, **training).save(place)
                print(f"{place} is trained", flush=True)
            runs[name] = load_run(place, model)
        found = record(
            runs,
            {name: task.validation[: args.validation_size] for name, task in tasks.items()},
            {name: task.test[: args.test_size] for name, task in tasks.items()},
        )  # fmt: skip
        settings = {name: run.config["settings"] for name, run in runs.items()}
        facts = {
            "seed": seed,
            "passes": args.passes,
            "settings": settings,
            "options": options,
            "provenance": provenance(),
        }
        write_json(file, {**facts, **found})
        print(f"{file} is written", flush=True)
    write_json(args.out / "summary.json", summary(args.out))


if __name__ == "__main__":
    main()
