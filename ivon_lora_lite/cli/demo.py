"""`demo`: AdamW against IVON, with a report."""

import argparse
from pathlib import Path

from .options import data_options, model_options, positive, training_options


def add(commands) -> None:
    parents = [data_options(), model_options(), training_options(steps=500)]
    p = commands.add_parser("demo", parents=parents, help="AdamW against IVON, with a report")
    p.add_argument("--train-size", type=positive, default=100, help="training questions (default: 100)")
    p.add_argument("--test-size", type=positive, help="evaluate on only this many test questions (default: all)")
    p.add_argument("--samples", type=positive, default=10, help="draws from the posterior (default: 10)")
    p.add_argument("--taus", type=float, nargs="*", help="temperatures to sample at besides 0 and 1")
    p.add_argument("--elsewhere", type=positive, default=4, help="draws at temperatures other than 1 (default: 4)")
    p.add_argument("--linear", action="store_true", help="also linearise the model, for every τ between")
    p.add_argument("--seeds", type=int, nargs="+", help="several seeds: one folder each, and a summary")
    p.add_argument("--no-weights", action="store_true", help="do not keep adapters and posterior")
    p.add_argument("--no-report", action="store_true", help="no report.html")
    p.add_argument("--out", type=Path, default=Path("outputs/demo"))
    p.set_defaults(function=run, seed=None)


def run(args: argparse.Namespace) -> None:
    from ..files import finished, read_json, write_json
    from ..language import full_name
    from ..studies.demo import METRICS_FILE, TAUS, run_demo, summarize, table
    from ..studies.report import verdicts

    if args.seeds and args.seed is not None:
        raise ValueError("--seed is for one run and --seeds for several: leave one of them out.")
    seeds = list(dict.fromkeys(args.seeds or [21 if args.seed is None else args.seed]))
    folders = [args.out / f"seed{seed}" if args.seeds else args.out for seed in seeds]
    names = ("task", "model", "steps", "train_size", "batch_size", "samples", "test_size", "format", "dtype")
    asked = {name: getattr(args, name) for name in (*names, "elsewhere", "linear")}
    asked["taus"] = TAUS if args.taus is None else args.taus
    options = {**asked, "task": full_name(args.task), "taus": sorted(asked["taus"])}
    for seed, folder in zip(seeds, folders):
        if args.seeds and finished(folder / METRICS_FILE, options):
            print(f"{folder} is finished already.")
            continue
        scores = run_demo(
            folder, seed=seed, hub=args.hub, weights=not args.no_weights, report=not args.no_report,
            progress=not args.quiet, **asked,
        )  # fmt: skip
        print(f"\n{table(scores)}\n\n95 % intervals over questions in brackets.")
        print("\n".join(f"• {sentence}" for sentence in verdicts(read_json(folder / METRICS_FILE))))
        print(f"Everything is in {folder}/", end="")
        print("" if args.no_report else f"; open {folder}/report.html in a browser.")
    if args.seeds:
        write_json(args.out / "summary.json", summarize(folders))
        print(f"Summary over seeds: {args.out}/summary.json")
