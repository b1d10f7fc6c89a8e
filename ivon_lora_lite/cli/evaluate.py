"""`evaluate`: score a saved run."""

import argparse
from pathlib import Path

from .options import HUB, bins_option, count, positive


def add(commands) -> None:
    p = commands.add_parser("evaluate", help="evaluate a saved run")
    p.add_argument("run", type=Path, help="folder that finetune wrote")
    p.add_argument("--task", nargs="+", help="other tasks than the run's, or it among them")
    p.add_argument("--hub", help=HUB)
    p.add_argument("--test-size", type=positive, help="use only this many test questions (default: all)")
    p.add_argument("--samples", type=count, default=10, help="draws; 0 is the mean (default: 10)")
    p.add_argument("--tau", type=float, help="scale of the posterior variance (default: what the run chose, else 1)")
    p.add_argument("--seed", type=int, default=0, help="of the draws")
    p.add_argument("--save", type=Path, help="write the logits [S, N, C] to this file")
    p.add_argument("--abstain", type=float, metavar="SHARE", help="answer only this share; list what a person should")
    bins_option(p)
    p.add_argument("--quiet", action="store_true", help="no progress bars")
    p.set_defaults(function=run)


def _task(name: str, config: dict, hub: str | None):
    """A task by name. Your own questions are read as the run's were; the run's own must be those it was trained on."""
    from ..language import columns_like, is_own, load_task, name_in_record
    from ..training import fingerprint

    own, data = name_in_record(config["task"]), config.get("data")
    if data is None or (name != own and not is_own(name)):
        return load_task(name, hub=hub)
    if name != own:
        return load_task(name, hub=hub, **columns_like(name, data))
    path, columns = data["path"], {key: value for key, value in data.items() if key != "path"}
    task = load_task(path, hub=hub, **columns)
    trained_on = fingerprint(task.train[: config["train_size"]])
    if config.get("questions", trained_on) != trained_on:
        raise ValueError(
            f"{path} has changed since this run was trained, so its test questions may be among those that it has "
            "seen: restore the file, or finetune again."
        )
    return task


def run(args: argparse.Namespace) -> None:
    from ..evaluation import abstain, predict, score, shift_detection
    from ..language import name_in_record
    from ..training import load_run, tau_of

    if args.abstain is not None and not 0 < args.abstain <= 1:
        raise ValueError(f"--abstain is {args.abstain:g}; expected a share above 0 and at most 1.")
    if args.save and args.task and len(args.task) > 1:
        raise ValueError("--save writes the logits of one task: give one --task.")
    run = load_run(args.run, progress=not args.quiet)
    if "tasks" in run.config and not args.task:
        raise ValueError(
            f"This run was merged from several: name tasks with --task, of {', '.join(run.config['tasks'])}."
        )
    own = name_in_record(run.config["task"])
    samples = args.samples if run.posterior is not None else 0
    tau = tau_of(run) if args.tau is None else args.tau
    how = f"{samples} draws, τ = {tau:g}" if samples else "at the mean" if run.posterior else "one point"
    found = {}
    for name in args.task or [own]:
        task = _task(name, run.config, args.hub)
        if task.about and name != own:
            print(task.about)
        title = own if name == own else task.name
        questions = task.test[: args.test_size]
        predictions = predict(run, questions, samples=samples, tau=tau, seed=args.seed, progress=not args.quiet)
        print(f"{title}, {how}: {score(predictions, bins=args.bins)}")
        found[title] = predictions
        if args.abstain is not None:
            decision = abstain(predictions, args.abstain)
            print(f"  {decision}")
            for q, handed_over, doubt in zip(questions, decision.handed_over, decision.doubt):
                if handed_over:
                    print(f"  {1 - doubt:.3f}  {q.id}  {' '.join(q.stem.split())[:90]}")
    for name, predictions in found.items():
        if own in found and name != own:
            at = ", ".join(f"{d} {v['auroc']:.3f}" for d, v in shift_detection(found[own], predictions).items())
            print(f"{name} told from {own} by doubt, AUROC: {at}")
    if args.save:
        print(f"Logits {tuple(predictions.logits.shape)} are in {predictions.save(args.save)}")
