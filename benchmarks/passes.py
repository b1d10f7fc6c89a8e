"""Test scores against passes over the data: AdamW and IVON, each with a temperature, and early stopping.

    python benchmarks/passes.py --work outputs/passes --out data/runs/passes

SmolLM2-135M on the first 160 training questions. Every length is a run of its own with its own decay of the learning
rate and the small preset's settings for that length: at 5, 20 and 40 passes they were chosen on validation questions of
`everyday` (`benchmarks/search.py`), at 10 they are interpolated, at 2 and 60 those of the nearest length. Every task is
scored on all its test questions; all but `everyday` need `--hub`. A length is a table of its own (`ivon_lora_lite
table1`): resumable, whole cells only. `--out` gets scores and logits, no weights.

`--show` prints what is finished.
"""

import argparse
from pathlib import Path

from ivon_lora_lite import run_table
from ivon_lora_lite.language import full_name
from ivon_lora_lite.methods import Settings
from ivon_lora_lite.studies import by_length
from ivon_lora_lite.studies.table1 import export

ROWS = ("adamw", "adamw@early", "temperature", "ivon@mean", "temperature@ivon", "ivon")
# task → passes → how many seeds; in this order, so that a stopped run has the lengths that matter most
LENGTHS = {"everyday": {20: 3, 5: 3, 40: 3, 10: 3, 2: 3, 60: 1}, "arc_easy": {20: 3, 5: 3}, "openbookqa": {20: 3}}
SEEDS = (21, 42, 87)
TRAIN_SIZE, BATCH_SIZE = 160, 4


def settings(passes: int, args: argparse.Namespace) -> Settings:
    """What all cells of one length share."""
    return Settings(
        model=args.model, steps=passes * args.train_size // BATCH_SIZE, batch_size=BATCH_SIZE,
        train_size=args.train_size, test_size=args.test_size, validation_size=args.validation_size,
        evaluations=min(10, 2 * passes), samples=args.samples, dtype=args.dtype,
    )  # fmt: skip


def folder(base: Path, passes: int) -> Path:
    return base / f"{passes}-passes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="gets the runs with their weights")
    parser.add_argument("--out", type=Path, required=True, help="gets scores and logits")
    parser.add_argument("--tasks", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--lengths", type=int, nargs="+", help="only these numbers of passes")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="only these, when a machine makes a part")
    parser.add_argument("--hub", help="folder laid out like the Hub")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--train-size", type=int, default=TRAIN_SIZE)
    parser.add_argument("--test-size", type=int, help="default: all")
    parser.add_argument("--validation-size", type=int, help="default: all")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--show", action="store_true", help="print what is finished and stop")
    args = parser.parse_args()
    if not args.show:
        if args.work is None:
            parser.error("--work is needed to train; --show prints what is there")
        for task in args.tasks:
            for passes, count in LENGTHS[task].items():
                if args.lengths and passes not in args.lengths:
                    continue
                seeds = [seed for seed in SEEDS[:count] if seed in args.seeds]
                run_table(folder(args.work, passes), [task], ROWS, seeds, settings(passes, args), hub=args.hub)
                export(folder(args.work, passes), folder(args.out, passes))
    for task in args.tasks:
        if not list(args.out.glob(f"*-passes/{full_name(task)}")):
            continue
        for title, lengths in by_length(args.out, task).items():
            for passes, records in lengths.items():
                scores = [record.scores for record in records]
                means = {name: sum(s[name] for s in scores) / len(scores) for name in scores[0]}
                listed = "  ".join(f"{name.upper()} {value:.3f}" for name, value in means.items())
                print(f"{full_name(task):12} {passes:3} passes  {title:22} {listed}  ({len(scores)} seeds)")


if __name__ == "__main__":
    main()
