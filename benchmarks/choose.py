"""Choose settings of the table's methods on the validation questions of each task; nothing here reads test questions.

    python benchmarks/choose.py --tasks everyday openbookqa --methods adamw ivon swag --out data/runs/choice

Every method gets four trials. The first has the small preset's settings for this number of steps; the others move what
matters most in that method, and each starts from the best so far; where the size of noise or the weight of a KL is
searched, the trials go on to the better side. Trials are judged by the NLL of what the method predicts (draws, where it
draws). `chosen.json` is for `ivon_lora_lite table1 --chosen`; `trials.json` has all trials.

A trial is a table of its own with one cell, in `--work`; finished ones are not repeated.
"""

import argparse
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ivon_lora_lite import METHODS, hyperparameters, run_table
from ivon_lora_lite.files import read_json, write_json
from ivon_lora_lite.language import full_name
from ivon_lora_lite.methods import Settings
from ivon_lora_lite.studies.table1 import Cell, load_record

Trial = dict[str, float]


def short(value: float) -> float:
    return float(f"{value:.3g}")


def around(name: str, value: float, best) -> Iterator[Trial]:
    """The value, half and double of it, then one step beyond the better end, or between."""
    yield {name: value}
    yield {name: short(value / 2)}
    yield {name: short(value * 2)}
    found = best()[name]
    beyond = {short(value / 2): value / 4, short(value * 2): value * 4}
    yield {name: short(beyond.get(found, value * 2**0.5))}


def downhill(name: str, value: float, factor: float, best, **fixed: float) -> Iterator[Trial]:
    """The value, one step below it, then one more step to the better side."""
    yield {**fixed, name: value}
    yield {**fixed, name: short(value / factor)}
    yield {**fixed, name: short(value * factor if best()[name] == value else value / factor**2)}


def trials(method: str, task: str, steps: int, best) -> Iterator[Trial]:
    """Four trials; ``best()`` is the best so far."""
    adamw = hyperparameters("adamw", "small", task, steps)
    if method == "ivon":
        preset = hyperparameters("ivon", "small", task, steps)
        yield {}
        yield {"ess": short(preset["ess"] / 2)}  # σ larger by √2
        yield {"ess": short(preset["ess"] * 2)}
        yield {**best(), "lr": preset["lr"] / 2}
    elif method == "blob":  # its lr, as that of the three methods below, is AdamW's, which was chosen
        yield from downhill("start", 0.14, 2**0.5, best)  # σ is its square
        yield {**best(), "kl_weight": 1e-4}
    elif method == "scalabl":
        yield from downhill("kl_weight", 0.1, 10, best, start=0.05)
        yield {**best(), "start": 0.025}
    elif method == "pac_tuning":
        yield from downhill("start", 0.03, 2, best, kl_weight=1e-4)
        yield {**best(), "kl_weight": 1e-5}
    elif method == "gift_sw":
        yield from downhill("sigma", 0.03, 3, best)
        yield {**best(), "share": 0.5}
    elif method.partition("@")[0] == "tfb":
        yield from ({"tolerance": tolerance} for tolerance in (0.003, 0.03, 0.1, 0.3))
    elif method in ("adamw", "swag"):
        yield from around("lr", adamw["lr"], best)
    else:
        raise ValueError(f"{method} has no settings to choose here.")


def choose(method: str, task: str, args: argparse.Namespace, chosen: dict) -> list[dict]:
    """All trials of a method on a task, in order, the settings and scores of each."""
    done: list[dict] = []
    task = full_name(task)
    base = METHODS[method].stands_on
    methods = [base, method] if base else [method]

    def best() -> Trial:
        return min(done, key=lambda trial: trial["scores"]["nll"])["settings"]

    for number, settings in enumerate(trials(method, task, args.steps, best)):
        own = {**chosen.get(task, {}), method: settings}
        place = args.work / f"{task}-{method}-{number}"
        if base and number and not place.exists():  # all trials stand on the same run
            run = Cell(task, base, (args.seed,)).folder(Path())
            shutil.copytree(args.work / f"{task}-{method}-0" / run, place / run)
        run_table(
            place, [task], methods, (args.seed,), replace(shared(args), chosen={task: own}), hub=args.hub,
            say=lambda *_, **__: None,
        )  # fmt: skip
        record = load_record(Cell(task, method, (args.seed,)).folder(place))
        done.append({"settings": settings, "scores": record.scores, "provenance": record.content["provenance"]})
        print(task, method, settings, {k: round(v, 3) for k, v in record.scores.items()}, flush=True)
    return done


def shared(args: argparse.Namespace) -> Settings:
    return Settings(
        model=args.model, dtype=args.dtype, steps=args.steps, train_size=args.train_size, split="validation",
        test_size=args.validation_size, validation_size=args.validation_size, evaluations=1, samples=args.samples,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("outputs/choice"))
    parser.add_argument("--tasks", nargs="+", default=["everyday"])
    parser.add_argument("--methods", nargs="+", default=["adamw", "ivon", "swag"], help="base methods before others")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--train-size", type=int, default=160)
    parser.add_argument("--validation-size", type=int, help="default: all")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1, help="of the search; reported runs use others")
    parser.add_argument("--hub", help="folder laid out like the Hub")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    for task in args.tasks:
        for method in args.methods:
            files = args.out / "chosen.json", args.out / "trials.json"
            chosen, listed = (read_json(file) if file.exists() else {} for file in files)
            done = choose(method, task, args, chosen)
            best = min(done, key=lambda trial: trial["scores"]["nll"])["settings"]
            chosen.setdefault(full_name(task), {})[method] = best
            listed.setdefault(full_name(task), {})[method] = done
            for file, content in zip(files, (chosen, listed)):
                write_json(file, content)


if __name__ == "__main__":
    main()
