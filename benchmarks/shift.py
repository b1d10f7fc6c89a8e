"""Trained on one task, asked another: scores there, and whether doubt tells foreign questions from one's own.

    python benchmarks/shift.py --work outputs/passes --out data/runs/shift --hub DIR

Starts from the runs that `benchmarks/passes.py` left in `--work` and asks them the first test questions of other tasks.
Per run there are two files of logits for each of these tasks, at the mean and (where there is a posterior) with draws;
finished files are not made again. `summary.json` has, by method and task: scores, and AUROC and FPR95 of telling the
foreign questions from the run's own by confidence, by entropy and by the draws' disagreement. Means over seeds, and the
values. The temperatures are those that `--work` fitted on the run's own validation questions.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

from ivon_lora_lite import Predictions, load_model, load_run, load_task, predict, score
from ivon_lora_lite.evaluation import shift_detection
from ivon_lora_lite.files import keep_options, provenance, write_json
from ivon_lora_lite.language import full_name
from ivon_lora_lite.methods import METHODS
from ivon_lora_lite.studies.table1 import Cell, Record, load_record

SEEDS = (21, 42, 87)
TASKS = ("arc_easy", "openbookqa")
ROWS = {  # method → the run that it stands on, and whether it draws
    "adamw": ("adamw", False),
    "temperature": ("adamw", False),
    "ivon@mean": ("ivon", False),
    "temperature@ivon": ("ivon", False),
    "ivon": ("ivon", True),
}


def file_of(out: Path, base: str, draws: bool, seed: int, task: str) -> Path:
    return out / f"{base}{'' if draws or base == 'adamw' else '@mean'}-seed{seed}-{task}.safetensors"


def ask(args: argparse.Namespace, seed: int) -> None:
    """The files of one seed."""
    model = load_model(args.model, dtype=args.dtype, progress=False)
    for base, draws in dict.fromkeys(ROWS.values()):
        run = load_run(Cell(full_name(args.task), base, (seed,)).folder(args.work / f"{args.passes}-passes"), model)
        for task in args.on:
            if not (file := file_of(args.out, base, draws, seed, task)).exists():
                asked = load_task(task, hub=args.hub).test[: args.test_size]
                found = predict(run, asked, samples=args.samples if draws else 0)
                facts = {"trained_on": full_name(args.task), "task": task, "run_seed": seed, "provenance": provenance()}
                replace(found, metadata={**found.metadata, **facts}).save(file)
                print(f"{file} is written", flush=True)


def foreign(out: Path, record: Record, task: str) -> Predictions:
    """What a row of the table says to the other task's questions."""
    base, draws = ROWS[record.cell.method]
    found = Predictions.load(file_of(out, base, draws, record.cell.seed, task))
    t = record.content["facts"].get("temperature", 1.0)
    return replace(found, logits=found.logits / t)


def numbers(own: Record, other: Predictions) -> dict[str, float]:
    """Column → value."""
    scores = score(other)
    row = {**scores, "floor": scores.floor}
    for doubt, told in shift_detection(own.predictions, other).items():
        row |= {f"{doubt}, {name}": value for name, value in told.items()}
    return row


def summary(args: argparse.Namespace) -> dict:
    """Method → task → column → mean over seeds and values."""
    out: dict = {}
    for method in ROWS:
        cells = [Cell(full_name(args.task), method, (seed,)) for seed in args.seeds]
        records = [load_record(cell.folder(args.work / f"{args.passes}-passes")) for cell in cells]
        for task in args.on:
            rows = [numbers(record, foreign(args.out, record, task)) for record in records]
            values = {name: [row[name] for row in rows] for name in rows[0]}
            out.setdefault(METHODS[method].name, {})[task] = {
                name: {"mean": statistics.mean(v), "values": v} for name, v in values.items()
            }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of benchmarks/passes.py with weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", default="everyday", help="what the runs were trained on")
    parser.add_argument("--on", nargs="+", default=TASKS, help="other tasks")
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--test-size", type=int, default=500, help="questions of each other task")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--hub", help="folder laid out like the Hub (default: $IVON_LORA_HUB)")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    options = {name: getattr(args, name) for name in ("task", "passes", "test_size", "samples", "model", "dtype")}
    keep_options(args.out, options)
    for seed in args.seeds:
        ask(args, seed)
    facts = {"trained_on": full_name(args.task), "passes": args.passes, "seeds": list(args.seeds)}
    write_json(args.out / "summary.json", {**facts, "rows": summary(args), "provenance": provenance()})


if __name__ == "__main__":
    main()
