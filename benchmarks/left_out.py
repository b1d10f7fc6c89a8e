"""What IVON's variance knows about its training questions: a test loss without test questions, and wrong labels found.

    python benchmarks/left_out.py estimate --work outputs/passes --out data/runs/left-out
    python benchmarks/left_out.py labels --out data/runs/left-out
    python benchmarks/left_out.py groups --out data/runs/left-out

`estimate` takes the runs that `benchmarks/passes.py` left in `--work` and compares, at every τ from 0 to 2, the NLL
that the memory-perturbation equation expects of left-out training questions with the NLL on validation and on test
questions, all linearised: how good the estimate is, and which τ each would choose.

`labels` gives a tenth of the 160 training questions a wrong answer, trains IVON and AdamW for as many passes as
`--passes` says, and asks how well the planted ones are found (AUROC) by the loss of a question at the end of training,
by its sensitivity Δℓ, and by their sum, the expected loss had the question been left out.

`groups` really leaves out: it deals the 160 questions into `--groups` groups, trains IVON on all, then without each
group. By how much did the loss of a question at the mean grow when its group was gone? Three guesses from the first
run are judged by how well they order the questions: the loss itself, the sensitivity Δℓ, and what the group does to it.

One JSON file for each run; finished ones are not repeated. `summary.json` has means over seeds.
"""

import argparse
import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ivon_lora_lite import (
    Linearized,
    Predictions,
    Question,
    finetune,
    influence,
    leave_one_out,
    linearized,
    load_model,
    load_run,
    load_task,
    predict,
    sensitivity,
)
from ivon_lora_lite.evaluation import auroc, nll
from ivon_lora_lite.files import finished, provenance, read_json, write_json
from ivon_lora_lite.language import full_name

SEEDS = (21, 42, 87)
TAUS = [k / 10 for k in range(21)]


def curve(line: Linearized) -> list[float]:
    """NLL at every τ."""
    return [float(nll(line.probabilities(tau), line.labels)) for tau in TAUS]


def at_lowest(chooser: list[float]) -> int:
    return min(range(len(TAUS)), key=lambda k: chooser[k])


def estimate(run, train: list[Question], validation: list[Question], test: list[Question]) -> dict:
    """NLL by τ of left-out training questions, of validation and of test questions, and what each would choose."""
    line = linearized(run, train)
    left_out = leave_one_out(run, line)
    curves = {"train": curve(line), "left_out": curve(left_out)}
    curves |= {"validation": curve(linearized(run, validation)), "test": curve(linearized(run, test))}
    chosen = {
        name: {"tau": TAUS[at_lowest(curves[name])], "test_nll": curves["test"][at_lowest(curves[name])]}
        for name in ("left_out", "validation", "test")
    }
    return {"taus": TAUS, "nll": curves, "chosen": chosen}


def planted(questions: list[Question], share: float, seed: int) -> tuple[list[Question], torch.Tensor]:
    """The questions, a share of them with a wrong answer, and which: ``[N]`` of 0 and 1."""
    rng = random.Random(seed)
    wrong = set(rng.sample(range(len(questions)), round(share * len(questions))))
    out = [
        replace(q, answer=rng.choice([c for c in range(len(q.choices)) if c != q.answer])) if k in wrong else q
        for k, q in enumerate(questions)
    ]
    return out, torch.tensor([k in wrong for k in range(len(questions))])


def labels(model, questions: list[Question], seed: int, args: argparse.Namespace) -> dict:
    """AUROC of each measure in finding the questions whose answer is wrong."""
    train, wrong = planted(questions, args.share, seed)
    common = {"steps": args.passes * len(train) // 4, "seed": seed, "eval_every": 0, "progress": False}
    measures = {}
    adamw = predict(finetune(model, train, optimizer="adamw", **common), train)
    measures["AdamW's loss"] = own_losses(adamw)
    run = finetune(model, train, optimizer="ivon", **common)
    found = sensitivity(run, train)
    measures |= {
        "loss": found.loss,
        "loss of draws": own_losses(predict(run, train, samples=args.samples)),
        "sensitivity": found.change,
        "left-out loss": found.loss + found.change,
    }
    return {
        "auroc": {name: auroc(values, wrong) for name, values in measures.items()},
        "measures": {name: [round(float(v), 6) for v in values] for name, values in measures.items()},
        "wrong": wrong.nonzero().flatten().tolist(),
        "settings": run.config["settings"],
    }


def dealt(count: int, groups: int, seed: int) -> list[list[int]]:
    """0 … count − 1 in a random order, dealt into groups."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return [order[k::groups] for k in range(groups)]


def own_losses(predictions: Predictions) -> torch.Tensor:
    """The cross-entropy of each question, ``[N]`` in nats."""
    return -predictions.ensemble().log()[torch.arange(len(predictions.labels)), predictions.labels]


def without(model, questions: list[Question], group: list[int], seed: int, args: argparse.Namespace) -> dict:
    """The loss of every question after training without a group; after training on all, the guesses too."""
    kept = [q for k, q in enumerate(questions) if k not in set(group)]
    run = finetune(
        model, kept, optimizer="ivon", steps=args.passes * len(kept) // 4, seed=seed, eval_every=0, progress=False
    )
    found = {"loss": own_losses(predict(run, questions)), "settings": run.config["settings"]}
    if not group:
        found["sensitivity"], moved = sensitivity(run, questions).change, influence(run, questions, questions)
        found["influence"] = torch.zeros(len(questions))
        for members in dealt(len(questions), args.groups, seed):
            found["influence"][members] = moved[members][:, members].sum(0)
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in found.items()}


def rank_correlation(a: list[float], b: list[float]) -> float:
    """Spearman's, of values without ties."""
    return float(torch.corrcoef(torch.stack([torch.tensor(v).argsort().argsort().double() for v in (a, b)]))[0, 1])


def grouped(out: Path) -> dict[str, list[dict]]:
    """Of every seed that is finished: how the guesses order what really happens, and how large that is."""
    found: dict[str, list[dict]] = {}
    for file in sorted(out.glob("groups-*-all.json")):
        every = read_json(file)
        places = [file.with_name(file.name.replace("-all", f"-without{k}")) for k in range(every["groups"])]
        if not all(place.exists() for place in places):
            continue
        left_out = list(every["loss"])
        for record in map(read_json, places):
            for k in record["group"]:
                left_out[k] = record["loss"][k]
        grown = [after - before for after, before in zip(left_out, every["loss"])]
        row = {"loss": statistics.mean(every["loss"]), "left-out loss": statistics.mean(left_out)}
        for guess in ("loss", "sensitivity", "influence"):
            row |= {f"order by {guess}": rank_correlation(every[guess], grown)}
        row["expected left-out loss"] = row["loss"] + statistics.mean(every["influence"])
        found.setdefault(f"{every['passes']} passes", []).append(row)
    return found


def summary(out: Path) -> dict:
    """Means over seeds of what is finished."""
    found: dict = {"estimate": {}, "labels": {}, "groups": grouped(out)}
    for file in sorted(out.glob("estimate-*.json")):
        record = read_json(file)
        row = {f"{name} at the mean": record["nll"][name][0] for name in ("train", "left_out", "validation", "test")}
        row |= {f"{name} at τ = 1": record["nll"][name][10] for name in ("left_out", "validation", "test")}
        row |= {f"τ by {name}": chosen["tau"] for name, chosen in record["chosen"].items()}
        row |= {f"test with τ by {name}": chosen["test_nll"] for name, chosen in record["chosen"].items()}
        found["estimate"].setdefault(f"{record['passes']} passes", []).append(row)
    for file in sorted(out.glob("labels-*.json")):
        record = read_json(file)
        found["labels"].setdefault(f"{record['passes']} passes", []).append(record["auroc"])
    return {
        part: {
            key: {
                name: {"mean": statistics.mean(row[name] for row in rows), "values": [row[name] for row in rows]}
                for name in rows[0]
            }
            for key, rows in groups.items()
        }
        for part, groups in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("estimate", "labels", "groups"))
    parser.add_argument("--work", type=Path, help="folder of benchmarks/passes.py with weights (estimate)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", default="everyday")
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--share", type=float, default=0.1, help="of wrong answers")
    parser.add_argument("--groups", type=int, default=4, help="one is left out at a time")
    parser.add_argument("--train-size", type=int, default=160)
    parser.add_argument("--test-size", type=int, help="default: all")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--hub", help="folder laid out like the Hub")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    if args.part == "estimate" and args.work is None:
        parser.error("--work is needed: the runs of benchmarks/passes.py")
    model, task = load_model(args.model, dtype=args.dtype, progress=False), load_task(args.task, hub=args.hub)
    train, test = task.train[: args.train_size], task.test[: args.test_size]
    validation = task.validation[: args.test_size]
    options = {k: v for k, v in vars(args).items() if k not in ("part", "work", "out", "hub", "seeds")}
    for seed in args.seeds:
        name = f"{args.part}-{full_name(args.task)}-{args.passes}-passes-seed{seed}"
        parts: dict[str, Callable[[], dict]] = {}
        if args.part == "estimate":
            place = args.work / f"{args.passes}-passes" / full_name(args.task) / "ivon" / f"seed{seed}"
            parts[name] = lambda place=place: estimate(load_run(place, model), train, validation, test)
        elif args.part == "labels":
            parts[name] = lambda seed=seed: labels(model, train, seed, args)
        else:
            groups = {"all": [], **{f"without{k}": g for k, g in enumerate(dealt(len(train), args.groups, seed))}}
            for which, group in groups.items():
                parts[f"{name}-{which}"] = lambda group=group, seed=seed: {
                    "groups": args.groups, "group": group, **without(model, train, group, seed, args)
                }  # fmt: skip
        for stem, make in parts.items():
            if not finished(file := args.out / f"{stem}.json", options):
                facts = {"task": full_name(args.task), "passes": args.passes, "seed": seed}
                write_json(file, {**facts, **make(), "options": options, "provenance": provenance()})
                print(f"{file.name} is written", flush=True)
    write_json(args.out / "summary.json", summary(args.out))


if __name__ == "__main__":
    main()
