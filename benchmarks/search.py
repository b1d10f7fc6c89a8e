"""Choose the small preset on the validation questions of `everyday`; nothing here reads its test questions.

    python benchmarks/search.py adamw --out data/runs/search
    python benchmarks/search.py ivon --out data/runs/search

SmolLM2-135M on the first 160 training questions. Both optimizers get the same number of trials: eleven at 20 passes
over the data, four each at 5 and at 40. AdamW varies its learning rate, then its weight decay; IVON its noise
σ = 1/√(λ h₀), its learning rate, how far h moves (β₂ = 1 − move/steps) and its clip radius. Each stage starts from the
best trial so far. `--demo` makes four trials more for each at the demo's size, 20 passes over 100 questions, that start
from the best at 20 passes over 160. IVON is judged by ten draws, AdamW by its point, on all validation questions; a
trial records both.

Every trial is one JSON file; finished ones are not repeated. `summary.json` lists them by length and optimizer.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

from ivon_lora_lite import finetune, load_model, load_task, predict, score
from ivon_lora_lite.files import keep_options, provenance, read_json, write_json

TRAIN_SIZE, BATCH_SIZE, OF_DEMO = 160, 4, 100
HESS_INIT = 1e-3
LENGTHS = (20, 5, 40)  # passes over the training questions; the first is searched most closely
JUDGED_BY = {"adamw": "mean", "ivon": "draws"}
Trial = dict  # {"passes": …, settings}


def adamw_trials(best) -> Iterator[Trial]:
    """Eleven trials at 20 passes, then four each at 5 and 40."""
    yield from ({"passes": 20, "lr": lr} for lr in (1.25e-5, 2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4))
    lr = best(20)["lr"]
    yield from ({"passes": 20, "lr": near} for near in (lr / 2**0.5, lr * 2**0.5))
    lr = best(20)["lr"]
    yield from ({"passes": 20, "lr": lr, "weight_decay": decay} for decay in (1.0, 10.0, 100.0))
    for passes, rates in ((5, (1e-4, 2e-4, 4e-4)), (40, (1.25e-5, 2.5e-5, 5e-5))):
        yield from ({"passes": passes, "lr": lr} for lr in rates)
        lr = best(passes)["lr"]
        yield {"passes": passes, "lr": _beyond(lr, rates)}


def ivon_trials(best) -> Iterator[Trial]:
    """The same numbers."""
    first = {"passes": 20, "lr": 0.2, "move": 0.32}
    yield from ({**first, "sigma": sigma} for sigma in (0.035, 0.05, 0.071, 0.1))
    start = best(20)
    yield from ({**start, "lr": start["lr"] * factor} for factor in (0.5, 2))
    start = best(20)
    yield from ({**start, "move": move} for move in (0.008, 1.6))  # 0.008 is the paper's β₂ at 800 steps
    # with a radius of 1e-3 nearly every coordinate is clipped, which makes IVON a sign-momentum method under noise;
    # here is a radius that clips a tenth of them, with steps of the same average size, and of half of it
    start = best(20)
    typical = [start["update"][f"ivon_update_p{q}"] for q in (10, 50, 90)]
    radius = float(f"{typical[2]:.2g}")
    same = float(f"{start['lr'] * 1e-3 * 3 / sum(typical):.2g}")
    yield from ({**start, "clip_radius": radius, "lr": lr} for lr in (same, same / 2))
    start, tried = best(20), (0.035, 0.05, 0.071, 0.1)
    yield {**start, "sigma": _beyond(start["sigma"], tried, 2**0.25)}
    best20 = best(20)
    for passes, factors, lr in ((5, (0.5, 0.71, 1), 2), (40, (0.71, 1, 1.41), 0.5)):
        sigmas = [float(f"{best20['sigma'] * factor:.2g}") for factor in factors]
        yield from ({**best20, "passes": passes, "sigma": sigma} for sigma in sigmas)
        yield {**best(passes), "lr": best20["lr"] * lr}


def demo_trials(optimizer: str, best) -> Iterator[Trial]:
    """Four at the demo's size."""
    start = {"passes": 20, "questions": OF_DEMO}
    if optimizer == "adamw":
        rates = (5e-5, 1e-4, 2e-4)
        yield from ({**start, "lr": lr} for lr in rates)
        yield {**start, "lr": _beyond(best(20, OF_DEMO)["lr"], rates)}
        return
    start = {**best(20), **start}
    yield start
    yield {**start, "sigma": 0.05}
    yield {**best(20, OF_DEMO), "lr": 2 * start["lr"]}
    tried = (0.05, start["sigma"])
    sigma = best(20, OF_DEMO)["sigma"]
    yield {**best(20, OF_DEMO), "sigma": _beyond(sigma, tried, 2**0.25) if sigma == 0.05 else 0.1}


def _beyond(value: float, tried: tuple[float, ...], between: float = 2**0.5) -> float:
    """One step further if the best value lies at the edge of those that were tried, else a value beside it."""
    factor = 2 if value == max(tried) else 0.5 if value == min(tried) else between
    return float(f"{value * factor:.2g}")


def settings_of(optimizer: str, trial: Trial) -> dict:
    """A trial's settings as `finetune` takes them."""
    settings = {k: v for k, v in trial.items() if k in ("lr", "weight_decay", "clip_radius")}
    if optimizer == "ivon":
        settings["ess"] = float(f"{1 / (trial['sigma'] ** 2 * HESS_INIT):.3g}")
        settings |= {"hess_init": HESS_INIT, "beta2": 1 - trial["move"] / steps_of(trial)}
    return settings


def questions_of(trial: Trial) -> int:
    return trial.get("questions", TRAIN_SIZE)


def steps_of(trial: Trial) -> int:
    return trial["passes"] * questions_of(trial) // BATCH_SIZE


def length_of(trial: Trial) -> str:
    """Under which name the summary has it."""
    return f"{trial['passes']}" + (f" of {trial['questions']}" if "questions" in trial else "")


def name_of(optimizer: str, trial: Trial) -> str:
    parts = [f"{k}{trial[k]:.3g}" for k in ("lr", "weight_decay", "sigma", "move", "clip_radius") if k in trial]
    size = [f"{trial['questions']}-questions"] if "questions" in trial else []
    return "-".join([f"{trial['passes']}-passes", *size, optimizer, *parts])


class Search:
    """The trials of one optimizer, on disk."""

    def __init__(self, optimizer: str, out: Path, seed: int, samples: int):
        self.optimizer, self.out, self.seed, self.samples = optimizer, out, seed, samples
        self.done: list[tuple[float, Trial]] = []
        self._made: tuple | None = None

    def best(self, passes: int, questions: int = TRAIN_SIZE) -> Trial:
        mine = [(nll, t) for nll, t in self.done if (t["passes"], questions_of(t)) == (passes, questions)]
        return min(mine, key=lambda pair: pair[0])[1]

    def run(self, trial: Trial) -> None:
        trial = {k: v for k, v in trial.items() if k != "update"}
        file = self.out / f"{name_of(self.optimizer, trial)}.json"
        record = read_json(file) if file.exists() else self.make(trial, file)
        nll = record["validation"][JUDGED_BY[self.optimizer]]["nll"]
        self.done.append((nll, trial | {"update": last_logged(record["history"])}))
        scores = {k: {m: round(v, 3) for m, v in s.items()} for k, s in record["validation"].items()}
        print(file.stem, scores, flush=True)

    def make(self, trial: Trial, file: Path) -> dict:
        if self._made is None:
            self._made = load_model(), load_task("everyday")
        model, task = self._made
        try:
            run = finetune(
                model, task, optimizer=self.optimizer, steps=steps_of(trial), train_size=questions_of(trial),
                seed=self.seed, batch_size=BATCH_SIZE, eval_every=0, progress=False,
                **settings_of(self.optimizer, trial),
            )  # fmt: skip
        except FloatingPointError as error:
            config = {"optimizer": self.optimizer, "settings": settings_of(self.optimizer, trial)}
            nothing = {"mean": {"nll": 1e9}, "draws": {"nll": 1e9}}
            record = {"trial": trial, "failed": str(error), "validation": nothing, "config": config, "history": []}
            write_json(file, record | {"provenance": provenance()})
            return record
        started = time.perf_counter()
        scores = {"mean": dict(score(predict(run, task.validation), intervals=False))}
        if self.optimizer == "ivon":
            scores["draws"] = dict(score(predict(run, task.validation, samples=self.samples), intervals=False))
        record = {"trial": trial, "validation": scores, "config": run.config, "history": run.history}
        record |= {"seconds": {"train": run.seconds, "evaluate": time.perf_counter() - started}}
        write_json(file, record | {"questions": len(task.validation), "provenance": provenance()})
        return record


def last_logged(history: list[dict]) -> dict:
    """The optimizer's diagnostics at the last log before the learning rate is 0."""
    logged = [entry for entry in history if "ivon_update_p50" in entry]
    return logged[-1] if logged else {}


def summary(out: Path) -> dict:
    """length → optimizer → trials, the best first."""
    found: dict[str, dict[str, list]] = {}
    for file in sorted(out.glob("*-passes-*.json")):
        record = read_json(file)
        optimizer = record["config"]["optimizer"]
        nll = record["validation"][JUDGED_BY[optimizer]]["nll"]
        entry = {"nll": nll, "trial": record["trial"], "settings": record["config"]["settings"], "file": file.stem}
        found.setdefault(length_of(record["trial"]), {}).setdefault(optimizer, []).append(entry)
    return {
        passes: {optimizer: sorted(trials, key=lambda t: t["nll"]) for optimizer, trials in sorted(kinds.items())}
        for passes, kinds in sorted(found.items(), key=lambda item: (int(item[0].split()[0]), item[0]))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("optimizer", choices=("adamw", "ivon"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1, help="of the search; reported runs use others")
    parser.add_argument("--samples", type=int, default=10, help="draws of IVON's validation predictions")
    parser.add_argument("--demo", action="store_true", help="the four trials at the demo's size")
    args = parser.parse_args()
    keep_options(args.out, {"seed": args.seed, "samples": args.samples})
    search = Search(args.optimizer, args.out, args.seed, args.samples)
    if args.demo:  # it starts from what the search at 160 questions found
        for record in map(read_json, sorted(args.out.glob(f"20-passes-{args.optimizer}-*.json"))):
            nll = record["validation"][JUDGED_BY[args.optimizer]]["nll"]
            search.done.append((nll, record["trial"]))
        trials = demo_trials(args.optimizer, search.best)
    else:
        trials = {"adamw": adamw_trials, "ivon": ivon_trials}[args.optimizer](search.best)
    for trial in trials:
        search.run(trial)
        write_json(args.out / "summary.json", summary(args.out))


if __name__ == "__main__":
    main()
