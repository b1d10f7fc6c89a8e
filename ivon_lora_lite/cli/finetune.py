"""`finetune`: train, save and evaluate one run."""

import argparse
import os
from contextlib import nullcontext
from pathlib import Path

from ..files import reserved, write_or_keep
from .options import (
    bins_option,
    count,
    data_options,
    model_options,
    own_data_options,
    positive,
    task_of,
    training_options,
)

MOST_HELD_OUT = 100  # validation questions on which τ and the threshold of `ask` are chosen


def add(commands) -> None:
    parents = [data_options(), own_data_options(), model_options(by_preset=True), training_options(by_preset=True)]
    p = commands.add_parser("finetune", parents=parents, help="finetune and evaluate")
    p.add_argument("--optimizer", default="ivon", help="ivon or adamw")
    p.add_argument("--preset", default="small", help="small (measured on SmolLM2-135M) or paper (Llama-2-7B)")
    p.add_argument("--quantize", help="8bit or 4bit (on a GPU), or bf16")
    p.add_argument("--train-size", type=positive, help="use only this many training questions, from the start")
    p.add_argument(
        "--test-size",
        type=positive,
        default=500,
        help="evaluate on only this many test questions (default: 500)",
    )
    p.add_argument("--accumulation", type=positive, default=1, help="forward passes per step")
    p.add_argument("--lr", type=float, help="learning rate (default: the preset's)")
    p.add_argument("--ess", type=float, help="IVON's λ, effective sample size (default: the preset's)")
    p.add_argument("--hess-init", type=float, help="IVON's h₀ (default: the preset's)")
    p.add_argument("--suggest", action="store_true", help="let a measurement choose λ, and the steps β₂ (IVON)")
    p.add_argument("--rank", type=positive, default=8, help="LoRA rank (default: 8)")
    p.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    p.add_argument("--gates", action="store_true", help="learn ranks and bit widths (B-LoRA); --rank is the largest")
    p.add_argument("--gate-prior", type=float, help="their price μ in nats: more is smaller (default: 0.01)")
    p.add_argument("--eval-every", type=count, help="steps between evaluations (default: never; paper: 1000)")
    p.add_argument("--checkpoint-every", type=count, help="steps (default: as --eval-every)")
    p.add_argument("--checkpoints", type=Path, help="folder to continue from (default: beside the folder of --out)")
    p.add_argument("--samples", type=count, default=10, help="draws for the evaluation with IVON (default: 10)")
    p.add_argument(
        "--coverage", type=float, default=0.8,
        help="share of validation questions that `ask` should answer, the rest is for a person (default: 0.8; 0: none)",
    )  # fmt: skip
    p.add_argument(
        "--choose-tau", nargs="?", const="nll", choices=("nll", "ece", "brier", "acc"), metavar="METRIC",
        help="choose τ on validation questions by this metric (without a name: nll)",
    )  # fmt: skip
    bins_option(p)
    p.add_argument("--targets", nargs="+", metavar="NAME", help="layers that LoRA goes on (default: query and value)")
    p.add_argument("--out", type=Path, help="folder for adapter and posterior (default: outputs/TASK-OPTIMIZER)")
    p.set_defaults(function=run)


def run(args: argparse.Namespace) -> None:
    from ..language import LoraSettings, check_model
    from ..training import check_choices, check_free, hyperparameters, run_options

    usual = run_options(args.preset, steps=args.steps, format=args.format, eval_every=args.eval_every)
    check_choices(args.optimizer, usual["format"])
    if args.suggest and (args.optimizer != "ivon" or args.ess is not None):
        raise ValueError("--suggest chooses IVON's λ: leave it, or --ess and --optimizer, out.")
    if args.choose_tau and (args.optimizer != "ivon" or not args.samples):
        raise ValueError("--choose-tau is about the draws of IVON: leave it, or --optimizer and --samples 0, out.")
    if not 0 <= args.coverage <= 1:
        raise ValueError(f"--coverage is {args.coverage:g}; expected a share from 0 to 1.")
    name = args.data or args.task
    hyperparameters(args.optimizer, args.preset, name)  # refuse an unknown one before anything is loaded
    gates, lora = _gates(args), LoraSettings(r=args.rank, targets=tuple(args.targets) if args.targets else None)
    check_model(args.model, quantize=args.quantize, dtype=args.dtype, lora=lora)
    out = check_free(args.out or Path("outputs") / f"{Path(name).stem}-{args.optimizer}")
    first = os.environ.get("RANK", "0") == "0"  # of the processes that `accelerate launch` started
    with reserved(out) if first else nullcontext():  # what cannot be written is found out before training
        _run(args, usual, lora, gates, out, first)


def _run(args: argparse.Namespace, usual: dict, lora, gates, out: Path, first: bool) -> None:
    from ..language import check_askable, load_model
    from ..training import finetune as run_finetune, save_run, write_card

    task = task_of(args)
    model = load_model(
        args.model, quantize=args.quantize, dtype=args.dtype, lora=lora,
        labels=len(task.train[0].choices) if usual["format"] == "class" else None,
        gradient_checkpointing=args.gradient_checkpointing, progress=not args.quiet,
    )  # fmt: skip
    check_askable(model, [*task.validation[:MOST_HELD_OUT], *task.test[: args.test_size]], usual["format"])
    say = print if first else lambda *args, **kwargs: None
    say(f"{task} · {args.model} · {args.optimizer}", flush=True)
    if task.about:
        say(task.about, flush=True)
    finished = run_finetune(
        model, task, optimizer=args.optimizer, seed=args.seed, batch_size=args.batch_size,
        accumulation=args.accumulation, train_size=args.train_size, preset=args.preset, gates=gates,
        progress=first and not args.quiet, **usual, **_checkpoints(args, out, usual, say),
        **_settings(args, model, task, usual, say),
    )  # fmt: skip
    if first:  # all processes have the same weights: one writes and evaluates
        write_or_keep(lambda folder: save_run(finished, folder), out)
        finished = _with_choices(args, finished, task)
        save_run(finished, out, overwrite=True)
        write_card(out, finished.config, _report(args, finished, task), posterior=finished.posterior is not None)
        written = "adapter and its posterior are" if finished.posterior else "adapter is"
        print(f"{finished.seconds:.0f} s of training. The {written} in {out}/")


def _with_choices(args: argparse.Namespace, finished, task):
    """The run with its τ and a confidence below which it abstains, if there are validation questions to choose on."""
    from ..training import with_tau, with_threshold

    held_out, options = task.validation[:MOST_HELD_OUT], {"samples": args.samples, "progress": not args.quiet}
    if not held_out:
        return finished
    if args.choose_tau:
        finished = with_tau(finished, held_out, args.choose_tau, **options)
        print(finished.config["tau"]["why"], flush=True)
    return with_threshold(finished, held_out, args.coverage, **options) if args.coverage else finished


def _gates(args: argparse.Namespace):
    """The settings of --gates and --gate-prior; None without gates."""
    if not args.gates:
        if args.gate_prior is not None:
            raise ValueError("--gate-prior needs --gates.")
        return None
    from ..gates import GateSettings

    return GateSettings() if args.gate_prior is None else GateSettings(prior=args.gate_prior)


def _checkpoints(args: argparse.Namespace, out: Path, usual: dict, say) -> dict:
    every = 0 if args.gates else usual["eval_every"]  # gates are in no checkpoint
    every = every if args.checkpoint_every is None else args.checkpoint_every
    if not 0 < every < usual["steps"]:
        if args.checkpoints:
            raise ValueError("--checkpoints: none would be written, so give --checkpoint-every, below --steps.")
        return {}
    beside = out if out.name else out.resolve()
    folder = args.checkpoints or beside.with_name(f"{beside.name}-checkpoints")
    say(f"Checkpoints go to {folder}/: the same command continues from the last one.", flush=True)
    return {"output_dir": folder, "save_every": every, "resume": True}


def _settings(args: argparse.Namespace, model, task, usual: dict, say) -> dict:
    """Hyperparameters that were given, or that --suggest finds."""
    given = {"lr": args.lr, "ess": args.ess, "hess_init": args.hess_init}
    if args.suggest:
        from ..training import suggest_hyperparameters

        suggestion = suggest_hyperparameters(
            model, task, steps=usual["steps"], format=usual["format"], batch_size=args.batch_size,
            train_size=args.train_size, seed=args.seed, progress=not args.quiet,
            **{} if args.hess_init is None else {"hess_init": args.hess_init},
        )  # fmt: skip
        say(suggestion, flush=True)
        given |= suggestion.settings()
    return {name: value for name, value in given.items() if value is not None}


def _report(args: argparse.Namespace, finished, task) -> dict:
    """Print scores on validation along training, and on test questions; returns the latter, by how they were made."""
    from ..evaluation import METRICS, predict, score
    from ..training import tau_of

    for record in finished.history:
        if "eval_nll" in record:
            shown = " · ".join(f"{m.upper()} {record[f'eval_{m}']:.3f}" for m in METRICS)
            print(f"validation at step {record['step']}: {shown}")
    questions = task.test[: args.test_size]
    title = "IVON@mean" if args.optimizer == "ivon" else "AdamW"
    found = {title: score(predict(finished, questions, progress=not args.quiet), bins=args.bins)}
    print(f"{title}: {found[title]}", flush=True)
    for tau in sorted({1.0, tau_of(finished)} - {0.0}) if args.optimizer == "ivon" and args.samples else ():
        draws = predict(finished, questions, samples=args.samples, tau=tau, progress=not args.quiet)
        title = f"IVON, {args.samples} draws" + ("" if tau == 1 else f", τ = {tau:g}")
        found[title] = score(draws, bins=args.bins)
        print(f"{title}: {found[title]}")
    if finished.gates is not None:
        from ..gates import summary

        print(summary(finished.gates, finished.model))
    return found
