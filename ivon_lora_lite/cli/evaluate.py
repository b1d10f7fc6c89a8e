"""`evaluate`: score a saved run."""

import argparse
from pathlib import Path

from .options import HUB, bins_option, count, positive


def add(commands) -> None:
    p = commands.add_parser("evaluate", help="evaluate a saved run")
    p.add_argument("run", type=Path, help="folder that finetune wrote")
    p.add_argument("--task", help="another task than the run's")
    p.add_argument("--hub", help=HUB)
    p.add_argument("--test-size", type=positive, help="use only this many test questions (default: all)")
    p.add_argument("--samples", type=count, default=10, help="draws; 0 is the mean (default: 10)")
    p.add_argument("--tau", type=float, default=1.0, help="scale of the posterior variance (default: 1)")
    p.add_argument("--seed", type=int, default=0, help="of the draws")
    p.add_argument("--save", type=Path, help="write the logits [S, N, C] to this file")
    bins_option(p)
    p.add_argument("--quiet", action="store_true", help="no progress bars")
    p.set_defaults(function=run)


def run(args: argparse.Namespace) -> None:
    from ..evaluation import predict, score
    from ..language import load_task, name_in_record
    from ..training import load_run

    run = load_run(args.run, progress=not args.quiet)
    task = load_task(args.task or name_in_record(run.config["task"]), hub=args.hub)
    samples = args.samples if run.posterior is not None else 0
    questions = task.test[: args.test_size]
    predictions = predict(run, questions, samples=samples, tau=args.tau, seed=args.seed, progress=not args.quiet)
    how = f"{samples} draws, τ = {args.tau:g}" if samples else "at the mean" if run.posterior else "one point"
    print(f"{task.name}, {how}: {score(predictions, bins=args.bins)}")
    if args.save:
        print(f"Logits {tuple(predictions.logits.shape)} are in {predictions.save(args.save)}")
