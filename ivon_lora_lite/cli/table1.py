"""`table1`: all methods × tasks × seeds, resumable, as a table."""

import argparse
from pathlib import Path

from ..files import read_json, write_text
from .options import HUB, bins_option, count, model_options, own_columns, own_data_options, positive, some_or_all


def add(commands) -> None:
    parents = [model_options(), own_data_options(file=False)]
    p = commands.add_parser("table1", parents=parents, help="all methods × tasks × seeds, as a table")
    p.add_argument("--tasks", nargs="+", default=["everyday"], help="(default: everyday)")
    p.add_argument("--methods", nargs="+", help="(default: all; an unknown one makes the command list them)")
    p.add_argument("--seeds", type=int, nargs="+", default=[21, 42, 87], help="(default: 21 42 87)")
    p.add_argument("--hub", help=HUB)
    p.add_argument("--preset", default="small", help="small (measured on SmolLM2-135M) or paper (Llama-2-7B)")
    p.add_argument("--quantize", help="8bit or 4bit (on a GPU), or bf16")
    p.add_argument("--rank", type=positive, default=8, help="LoRA rank (default: 8)")
    p.add_argument("--steps", type=positive, default=200, help="optimizer steps (default: 200)")
    p.add_argument("--batch-size", type=positive, default=4, help="questions per step (default: 4)")
    p.add_argument("--train-size", type=positive, help="use only this many training questions, from the start")
    p.add_argument("--split", default="test", help="report on test, or on validation to choose settings")
    p.add_argument("--test-size", type=positive, help="report on only this many questions")
    p.add_argument("--shift", nargs="+", default=[], metavar="TASK", help="also test what was trained on these tasks")
    p.add_argument("--shift-size", type=positive, default=500, help="their test questions (default: 500)")
    p.add_argument(
        "--validation-size", type=some_or_all, default=100, help="for early stopping and temperature; a number or all"
    )
    p.add_argument("--evaluations", type=positive, default=5, help="on them, along training (default: 5)")
    p.add_argument("--samples", type=positive, default=10, help="draws (default: 10)")
    p.add_argument("--further-steps", type=positive, default=50, help="of SWA and SWAG (default: 50)")
    p.add_argument(
        "--collect-every", type=positive, default=5, help="steps between the weights that they average (default: 5)"
    )
    p.add_argument("--checkpoint-every", type=count, default=0, help="steps, to resume within a run (default: never)")
    p.add_argument(
        "--chosen", type=Path, metavar="FILE", help="JSON of settings per task and method that replace the defaults"
    )
    p.add_argument("--jobs", type=positive, default=1, help="processes side by side (default: 1)")
    p.add_argument("--engine", default="local", help="local, or ray to spread the runs over a cluster")
    p.add_argument("--no-weights", action="store_true", help="keep weights only where other methods stand on them")
    p.add_argument("--show", action="store_true", help="run nothing: write the table of what is finished in --out")
    p.add_argument("--average", action="store_true", help="add the average over tasks, as the paper has it")
    p.add_argument("--partial", action="store_true", help="show a table although cells are missing")
    p.add_argument(
        "--decisions", action="store_true", help="also print abstaining and the detection of errors and shift"
    )
    p.add_argument("--compare", choices=["paper"], help="show the published figures of Llama-2-7B under each row")
    bins_option(p)
    p.add_argument("--export", type=Path, metavar="FOLDER", help="copy scores and predictions, without weights")
    p.add_argument("--quiet", action="store_true", help="no line per finished cell")
    p.add_argument("--out", type=Path, default=Path("outputs/table1"), help="(default: outputs/table1)")
    p.set_defaults(function=run)


def run(args: argparse.Namespace) -> None:
    from dataclasses import fields

    from ..methods import METHODS, Settings
    from ..studies.table1 import Table, decision_table, export, load_records, paper_table, run_table

    if not args.show:
        args.shift, args.columns = tuple(args.shift), own_columns(args)
        args.chosen = read_json(args.chosen) if args.chosen else {}
        settings = Settings(**{f.name: getattr(args, f.name) for f in fields(Settings)})
        run_table(
            args.out, args.tasks, args.methods or list(METHODS), args.seeds, settings, hub=args.hub, jobs=args.jobs,
            engine=args.engine, keep_weights=not args.no_weights,
            **({"say": lambda *_, **__: None} if args.quiet else {}),
        )  # fmt: skip
    table = Table.from_records(load_records(args.out, args.bins), partial=args.partial, average=args.average)
    paper = paper_table() if args.compare else None
    for name, text in (("md", table.markdown(paper)), ("html", table.html(paper)), ("tex", table.latex(paper))):
        write_text(args.out / f"table.{name}", text + "\n")
    print(table.markdown(paper))
    if args.decisions:
        records = load_records(args.out, args.bins)
        for task in dict.fromkeys(r.cell.task for r in records):
            print(f"\n{decision_table(records, task)}")
    print(f"\nECE with {args.bins} bins. The table is in {args.out}/table.md, table.html and table.tex.")
    if args.export:
        print(f"{export(args.out, args.export)} cells were copied to {args.export}/")
