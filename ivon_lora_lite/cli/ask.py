"""`ask`: one question to a saved run, or a file of them."""

import argparse
import json
from pathlib import Path

from .options import positive


def add(commands) -> None:
    p = commands.add_parser("ask", help="ask a saved run a question")
    p.add_argument("run", type=Path, help="folder that finetune wrote")
    p.add_argument("question", nargs="?", help="the question, or the text to classify")
    p.add_argument("choice", nargs="*", help="the choices; a run on your own classes has them already")
    p.add_argument("--file", type=Path, help="ask all questions of a csv, jsonl, json or parquet file instead")
    p.add_argument("--json", action="store_true", help="print one JSON object a question")
    p.add_argument("--samples", type=positive, help="draws (default: as for the run's threshold, else 10)")
    p.add_argument("--tau", type=float, help="scale of the posterior variance (default: what the run chose, else 1)")
    p.add_argument("--seed", type=int, default=0, help="of the draws")
    p.add_argument("--quiet", action="store_true", help="no progress bars")
    p.set_defaults(function=run)


def run(args: argparse.Namespace) -> None:
    from ..language import read_stems
    from ..training import ask, load_run, question_for

    if (args.file is None) == (args.question is None):
        raise ValueError("Ask either one question with its choices, or all of a --file.")
    finished = load_run(args.run, progress=not args.quiet)
    like = finished.config.get("data")
    asked = [(args.question, args.choice)] if args.file is None else read_stems(args.file, like)
    questions = [question_for(finished, stem, choices) for stem, choices in asked]
    options = {"samples": args.samples, "tau": args.tau, "seed": args.seed}
    answers = ask(finished, questions, **options, progress=args.file is not None and not args.quiet)
    for answer in answers:
        print(json.dumps(answer.facts(), ensure_ascii=False) if args.json else answer)
