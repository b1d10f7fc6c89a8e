"""Which questions should be labelled next? Draws that disagree, an unsure average, or chance.

    python benchmarks/active.py --out data/runs/active --hub DIR

Active learning on ARC-Easy: training starts with 20 labelled questions, and after each round 20 more from a pool get
their labels, until there are 140. They are chosen

* `random`: in a random order;
* `entropy`: where the average over IVON's draws is least sure;
* `bald`: where IVON's draws disagree most (mutual information of answer and weights; Houlsby et al. 2011).

Every round trains anew with IVON and scores the same test questions with draws. All strategies share the first
questions, the pool, the seed and the settings. A round is one JSON file with the ids that it was trained on; finished
ones are not repeated. `summary.json` has accuracy and NLL by number of labels, mean and standard error over seeds.
"""

import argparse
import random
import statistics
from pathlib import Path

from ivon_lora_lite import Predictions, Question, finetune, load_model, load_task, predict, score
from ivon_lora_lite.evaluation import doubts
from ivon_lora_lite.files import finished, provenance, read_json, write_json

DOUBT = {"entropy": "entropy", "bald": "mutual_information"}
STRATEGIES = ("random", *DOUBT)
SEEDS = (21, 42, 87)


def chosen(strategy: str, predictions: Predictions | None, candidates: list[Question], count: int) -> list[Question]:
    """The next questions to label; candidates are in a random order."""
    if strategy == "random":
        return candidates[:count]
    order = doubts(predictions)[DOUBT[strategy]].argsort(descending=True, stable=True).tolist()
    return [candidates[i] for i in order[:count]]


def rounds(strategy: str, seed: int, model, task, args: argparse.Namespace, first: dict) -> None:
    """One strategy with one seed, round after round; ``first`` keeps the round that all strategies begin with."""
    options = {k: v for k, v in vars(args).items() if k not in ("out", "hub", "strategies", "seeds")}
    pool = list(task.train)
    random.Random(seed).shuffle(pool)
    pool = pool[: args.pool]
    by_id = {q.id: q for q in pool}
    labelled = pool[: args.batch]
    while True:
        file = args.out / f"{strategy}-seed{seed}-{len(labelled)}.json"
        if not finished(file, options):
            candidates = [q for q in pool if q.id not in {own.id for own in labelled}]
            begins, last = len(labelled) == args.batch, len(labelled) + args.batch > args.labels
            asked = [] if last or (strategy == "random" and not begins) else candidates
            made = first.get(seed) if begins else None
            made = made or one_round(model, task, labelled, asked, seed, args)
            if begins:
                first[seed] = made
            record, drawn = made
            following = [] if last else chosen(strategy, drawn, candidates, args.batch)
            own = {"strategy": strategy, "next": [q.id for q in following], "options": options}
            write_json(file, {**record, **own})
            print(file.stem, {k: round(v, 3) for k, v in record["scores"].items()}, flush=True)
        record = read_json(file)
        if not record["next"]:
            return
        labelled = [*labelled, *(by_id[i] for i in record["next"])]


def one_round(
    model, task, labelled: list[Question], asked: list[Question], seed: int, args: argparse.Namespace
) -> tuple[dict, Predictions | None]:
    """Train on the labelled questions; the record of that run, and its draws on those that may be labelled next."""
    steps = max(1, args.passes * len(labelled) // 4)
    run = finetune(model, labelled, steps=steps, seed=seed, eval_every=0, progress=False)
    scores = score(predict(run, task.test[: args.test_size], samples=args.samples), intervals=False)
    record = {
        "seed": seed, "labels": len(labelled), "scores": dict(scores), "steps": steps,
        "trained_on": [q.id for q in labelled], "settings": run.config["settings"], "provenance": provenance(),
    }  # fmt: skip
    return record, predict(run, asked, samples=args.samples) if asked else None


def summary(out: Path) -> dict:
    """strategy → number of labels → metric → mean and standard error over seeds, and how many there are."""
    found: dict[str, dict[int, list[dict]]] = {}
    for file in sorted(out.glob("*-seed*-*.json")):
        record = read_json(file)
        found.setdefault(record["strategy"], {}).setdefault(record["labels"], []).append(record["scores"])

    def of(values: list[float]) -> dict:
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        return {"mean": statistics.mean(values), "se": error, "seeds": len(values)}

    return {
        strategy: {
            str(n): {name: of([s[name] for s in scores]) for name in scores[0]}
            for n, scores in sorted(by_count.items())
        }
        for strategy, by_count in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", default="arc_easy")
    parser.add_argument("--hub", help="folder laid out like the Hub")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--pool", type=int, default=400, help="questions to choose from")
    parser.add_argument("--batch", type=int, default=20, help="questions that get labels in a round")
    parser.add_argument("--labels", type=int, default=140, help="labels at the end")
    parser.add_argument("--passes", type=int, default=10, help="over the labelled questions, in every round")
    parser.add_argument("--test-size", type=int, default=500)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    model, task = load_model(args.model, dtype=args.dtype, progress=False), load_task(args.task, hub=args.hub)
    for seed in args.seeds:
        first: dict = {}
        for strategy in args.strategies:
            rounds(strategy, seed, model, task, args, first)
            write_json(args.out / "summary.json", summary(args.out))


if __name__ == "__main__":
    main()
