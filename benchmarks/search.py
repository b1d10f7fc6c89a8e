"""Choose the small preset on the validation split of `everyday`; nothing here reads the test split.

    python benchmarks/search.py --out data/runs/everyday-search

AdamW is searched over its learning rate; IVON over its learning rate and its noise σ = 1/√(λ h₀), at h₀ = 1e-3 and the
paper's other settings. Every trial is one JSON file; finished ones are not repeated. `summary.json` names the settings
with the lowest validation NLL (AdamW and IVON@mean at the point, IVON with draws).
"""

import argparse
import itertools
import time
from pathlib import Path

from ivon_lora_lite import finetune, load_model, load_task, predict, score
from ivon_lora_lite.files import provenance, read_json, write_json

HESS_INIT = 1e-3


def trials(args: argparse.Namespace) -> list[tuple[str, str, dict]]:
    out = [(f"adamw-lr{lr:g}", "adamw", {"lr": lr}) for lr in args.adamw_lr]
    for sigma, lr in itertools.product(args.sigma, args.ivon_lr):
        settings = {"lr": lr, "ess": float(f"{1 / (sigma**2 * HESS_INIT):.3g}"), "hess_init": HESS_INIT}
        out.append((f"ivon-lr{lr:g}-sigma{sigma:g}", "ivon", settings))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--train-size", type=int, default=160)
    parser.add_argument("--seed", type=int, default=1, help="of the search; reported runs use others")
    parser.add_argument("--samples", type=int, default=5, help="draws of IVON's validation predictions")
    parser.add_argument("--adamw-lr", type=float, nargs="*", default=[1e-4, 2e-4, 4e-4])
    parser.add_argument("--ivon-lr", type=float, nargs="*", default=[0.1, 0.2, 0.3, 0.4])
    parser.add_argument("--sigma", type=float, nargs="*", default=[0.025, 0.035, 0.05])
    args = parser.parse_args()
    model, task = load_model(), load_task("everyday")
    for name, optimizer, settings in trials(args):
        file = args.out / f"{name}.json"
        if file.exists():
            continue
        run = finetune(
            model, task, optimizer=optimizer, steps=args.steps, train_size=args.train_size, seed=args.seed,
            eval_every=args.steps // 2, progress=False, **settings,
        )  # fmt: skip
        started = time.perf_counter()
        scores = {"mean": dict(score(predict(run, task.validation), intervals=False))}
        if optimizer == "ivon":
            draws = predict(run, task.validation, samples=args.samples)
            scores[f"draws{args.samples}"] = dict(score(draws, intervals=False))
        record = {"validation": scores, "config": run.config, "history": run.history, "train_seconds": run.seconds}
        record |= {"eval_seconds": time.perf_counter() - started, "provenance": provenance()}
        write_json(file, record)
        print(name, {k: {m: round(v, 3) for m, v in s.items()} for k, s in scores.items()}, flush=True)
    best: dict[str, tuple[float, str]] = {}
    for file in sorted(args.out.glob("*-lr*.json")):
        for kind, scores in read_json(file)["validation"].items():
            method = f"{file.name.split('-')[0]}@{kind}"
            best[method] = min(best.get(method, (float("inf"), "")), (scores["nll"], file.stem))
    write_json(args.out / "summary.json", {m: {"nll": nll, "trial": t} for m, (nll, t) in best.items()})


if __name__ == "__main__":
    main()
