"""Do the settings of `suggest_hyperparameters` transfer better than borrowed ones? And does IVON's learned h matter?

    python benchmarks/suggest.py --out data/runs/suggest --hub DIR     # DIR/allenai/ai2_arc; without --hub: the Hub

The preset `small` of runs of 5 passes, as it was when this was recorded, was tuned on `everyday@1` with LoRA of rank 8:
its λ and β₂ are what one *borrows*. The other settings:

* `equal-cost`: the λ whose noise costs as much as the preset's does at home; β₂ borrowed;
* `fast`: the borrowed λ with β₂ = 0.999, so h is learned a hundred times faster;
* `suggested`: what `suggest_hyperparameters` gives, both together: λ as in `equal-cost` unless that means more noise
  than the preset's, β₂ as in `fast`. Where λ comes out as the borrowed one, `fast` is the same run and stands for it.

Part by part (seconds are of two idle CPU cores; all of it together about two hours):

* `cost` (400 s): curves of cost over σ for SmolLM2-135M on `everyday` with LoRA of rank 8, of rank 32 and on all linear
  layers, and on ARC-Easy. The cost at the σ of the preset is the *target* of all that follows (mean over seeds).
* `transfer` (125 s a trial, 12 trials): ARC-Easy: borrowed, the paper's λ for ARC-Easy, equal-cost, fast.
* `rank` (80 s a trial, 12 trials): `everyday` with LoRA of rank 32, α 64, which is another model to the optimizer.
* `isotropic` (100 s a trial, 9 trials): `everyday` with the preset: h learned as usual; h fixed at h₀ (β₂ → 1); h
  learned a hundred times faster (β₂ = 0.999). Learned variances are also replaced by their mean before predicting.
* `task` and `shape` (about 150 s a trial, 9 trials each): OpenBookQA, and `everyday` with LoRA on all linear layers.
  The rule for `suggested` was made after the parts above had been seen, and before these two were run: they test it.

All trials of a part share learning rate, steps, seeds and questions, so they can be compared question by question.
Scores are on the *validation* split, at the mean and with draws. Each trial is one JSON file; finished ones are not
repeated, so a recording may be stopped and continued, and seeds are the outer loop. `summary.json` is made at the end.
"""

import argparse
import math
import random
import statistics
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch

from ivon_lora_lite import (
    GaussianPosterior,
    LoraSettings,
    Run,
    answer_logits,
    answer_loss,
    collate,
    finetune,
    hyperparameters,
    load_model,
    load_task,
    lora_parameters,
    noise_cost,
    predict,
    reset_lora,
    score,
    suggest_hyperparameters,
)
from ivon_lora_lite.evaluation import METRICS
from ivon_lora_lite.files import keep_options, provenance, read_json, write_json
from ivon_lora_lite.training import prediction_shift

PARTS = ("cost", "transfer", "rank", "isotropic", "task", "shape")
GRID = (0.01, 0.02, 0.035, 0.05, 0.08)
PRESET = {"lr": 0.2, "ess": 8.16e5, "beta2": 1 - 1e-5, "clip_radius": 1e-3}
SIGMA, RULES_BETA2 = 0.035, 0.999  # of that preset; of the rule when it was tested
COSTLY = (0.035, 0.071)  # of today's preset at 5 and at 20 passes: what it costs on today's questions is its target
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA = {"r8": LoraSettings(), "r32": LoraSettings(r=32, alpha=64), "all": LoraSettings(targets=LINEAR)}
PLACES = (("everyday@1", "r8"), ("everyday@1", "r32"), ("everyday@1", "all"), ("arc_easy", "r8"), ("openbookqa", "r8"))


def main() -> None:
    args = arguments()
    own = ("out", "hub", "part", "seeds")
    keep_options(args.out, {name: value for name, value in vars(args).items() if name not in own})
    model = cache(lambda lora: load_model(lora=LORA[lora]))
    task = cache(lambda name: load_task(name, hub=args.hub))
    target = costs(args, model, task)  # whatever parts are asked for: they all need the target
    for seed in args.seeds:
        for part, place, name, settings in trials(args, target):
            file = args.out / f"{part}-{name}-seed{seed}.json"
            if part not in args.part or file.exists():
                continue
            run = finetune(
                model(place[1]), task(place[0]), steps=args.steps, train_size=args.train_size, seed=seed,
                progress=False, **settings,
            )  # fmt: skip
            record = evaluated(run, task(place[0]).validation[: args.eval_size], args.samples, part == "isotropic")
            facts = {"part": part, "setting": name, "lora": place[1], "target": target, "config": run.config}
            facts |= {"history": run.history, "train_seconds": run.seconds, "provenance": provenance()}
            write_json(file, record | facts)
            print(
                file.stem, {k: {m: round(v, 3) for m, v in s.items()} for k, s in record["scores"].items()}, flush=True
            )
    summarise(args.out, target)


def trials(args: argparse.Namespace, target: float) -> list[tuple[str, tuple[str, str], str, dict]]:
    """Part, (task, LoRA), name and IVON's settings of each trial; the first of a part is what others compare with."""
    home, wide, all_linear, arc, openbook = PLACES
    paper = hyperparameters("ivon", "paper", "arc_easy")
    fast = {"beta2": 0.999}
    found = lambda rule, place: read_json(args.out / f"{rule}-{short(place[0])}-{place[1]}.json")["settings"]  # noqa: E731
    listed = [
        ("transfer", arc, "borrowed", {}),
        ("transfer", arc, "equal-cost", found("equal-cost", arc)),
        ("rank", wide, "borrowed", {}),
        ("rank", wide, "equal-cost", found("equal-cost", wide)),
        ("isotropic", home, "learned", {}),
        ("isotropic", home, "fixed", {"beta2": 1 - 1e-12}),
        ("isotropic", home, "fast", fast),
        ("transfer", arc, "paper", {"ess": paper["ess"], "hess_init": paper["hess_init"]}),
        ("transfer", arc, "fast", fast),
        ("rank", wide, "fast", fast),
        ("task", openbook, "borrowed", {}),
        ("task", openbook, "fast", fast),
        ("shape", all_linear, "borrowed", {}),
        ("shape", all_linear, "fast", fast),
    ]
    listed = [(part, place, name, {**PRESET, **settings}) for part, place, name, settings in listed]
    for part, place in (("transfer", arc), ("rank", wide), ("task", openbook), ("shape", all_linear)):
        settings = found("suggested", place)
        if abs(settings["ess"] / PRESET["ess"] - 1) > 0.01:  # else it is `fast`
            listed.append((part, place, "suggested", {**PRESET, **settings}))
    return listed


def costs(args: argparse.Namespace, model, task) -> float:
    """Record the cost curves and the σ found for the target; returns the target."""
    questions = task("everyday@1").train[: args.train_size]
    today = task("everyday").train[: args.train_size]
    for seed in args.seeds:
        if "cost" in args.part:
            once(
                args.out / f"today-seed{seed}.json",
                lambda seed=seed: {"costs": at_start(args, model("r8"), today, COSTLY, seed)},
            )
        once(
            args.out / f"calibrate-seed{seed}.json",
            lambda seed=seed: {"sigma": SIGMA} | at_start(args, model("r8"), questions, [SIGMA], seed)[0],
        )
    records = [read_json(args.out / f"calibrate-seed{seed}.json") for seed in args.seeds]
    mean = float(f"{statistics.mean(r['cost'] for r in records):.3g}")
    once(args.out / "target.json", lambda: {"target": mean, "seeds": args.seeds})  # it stays if seeds are added later
    target = read_json(args.out / "target.json")["target"]
    for name, lora in PLACES:
        where, seed = task(name).train[: args.train_size], args.seeds[0]
        if "cost" in args.part:
            once(
                args.out / f"curve-{short(name)}-{lora}.json",
                lambda lora=lora, where=where, seed=seed: {"curve": at_start(args, model(lora), where, GRID, seed)},
            )
        options = {"train_size": args.train_size, "seed": seed, "target": target, "steps": args.steps}
        options |= {"questions": args.cost_questions, "draws": args.cost_draws}
        for rule, limit in (("equal-cost", math.inf), ("suggested", SIGMA)):
            once(
                args.out / f"{rule}-{short(name)}-{lora}.json",
                lambda name=name, lora=lora, limit=limit, options=options: described(
                    suggest_hyperparameters(model(lora), task(name), sigma_max=limit, **options), limit
                ),
            )
    if "cost" in args.part:  # what speaks for the measure: other losses and weights, same questions and noise
        for kind, steps in (("cross-entropy", 0), ("cross-entropy", args.pilot_steps), ("shift", args.pilot_steps)):
            once(
                args.out / f"curve-{kind}-after{steps}.json",
                lambda kind=kind, steps=steps: {
                    "steps": steps,
                    "curve": at_start(args, model("r8"), questions, GRID, args.seeds[0], kind, steps),
                },
            )
    return target


def short(task: str) -> str:
    """Without the edition, as files have it."""
    return task.partition("@")[0]


def once(file: Path, record) -> None:
    if not file.exists():
        write_json(file, record() | {"provenance": provenance()})
        print(file.stem, flush=True)


def at_start(args, model, questions, sigmas, seed: int, kind: str = "shift", steps: int = 0) -> list[dict]:
    """Cost of noise at LoRA's start, or after a few steps of AdamW, measured as `suggest_hyperparameters` does."""
    if steps:
        finetune(model, questions, optimizer="adamw", steps=steps, seed=seed, progress=False)
    else:
        reset_lora(model, seed)
    model.eval()
    chosen = random.Random(seed).sample(questions, args.cost_questions)
    loss = prediction_shift(model, chosen) if kind == "shift" else cross_entropy(model, chosen)
    rows = []
    for sigma in sigmas:
        cost, error = noise_cost(loss, lora_parameters(model), sigma, args.cost_draws, seed)
        rows.append({"sigma": sigma, "cost": cost, "error": error})
    return rows


def cross_entropy(model, questions, size: int = 4):
    batches = [collate(questions[i : i + size], model.tokenizer, "text") for i in range(0, len(questions), size)]
    return lambda: sum(
        float(answer_loss(answer_logits(model, b), b["answers"])) * len(b["answers"]) for b in batches
    ) / len(questions)  # fmt: skip


def described(suggestion, limit: float) -> dict:
    """With its settings: `equal-cost`, which has no limit on σ, is about λ alone and borrows β₂."""
    settings = suggestion.settings() | {"beta2": PRESET["beta2"] if limit == math.inf else RULES_BETA2}
    return asdict(suggestion) | {"settings": settings}


def evaluated(run: Run, questions: list, samples: int, with_isotropic: bool) -> dict:
    """Scores at the mean, with draws, and with draws of one variance for all; and each question's p(right)."""
    predictions = {"mean": predict(run, questions), "draws": predict(run, questions, samples=samples)}
    v = torch.cat([v.flatten() for v in run.posterior.variance.values()])
    if with_isotropic:
        flat = {name: torch.full_like(v_i, float(v.mean())) for name, v_i in run.posterior.variance.items()}
        same = GaussianPosterior(run.posterior.mean, flat)
        predictions["draws, one variance"] = predict(run, questions, samples=samples, posterior=same)
    right = {k: p.ensemble()[torch.arange(len(questions)), p.labels] for k, p in predictions.items()}
    relative = v / v.median()
    return {
        "scores": {k: dict(score(p, intervals=False)) for k, p in predictions.items()},
        "p_right": {k: [round(x, 5) for x in p.tolist()] for k, p in right.items()},
        "variance": {"mean": float(v.mean())} | {f"p{q}": float(relative.quantile(q / 100)) for q in (1, 10, 90, 99)},
        "samples": samples,
        "questions": len(questions),
    }


def summarise(out: Path, target: float) -> None:
    """Scores of each setting over its seeds."""
    summary: dict = {"target": target, "parts": {}}
    for file in sorted(out.glob("*-seed*.json")):
        record = read_json(file)
        if "part" not in record:
            continue
        setting = summary["parts"].setdefault(record["part"], {}).setdefault(record["setting"], {"seeds": []})
        setting["seeds"].append(record["config"]["seed"])
        setting["ess"] = record["config"]["settings"]["ess"]
        for kind, scores in record["scores"].items():
            for metric in METRICS:
                setting.setdefault(kind, {}).setdefault(metric, []).append(scores[metric])
    write_json(out / "summary.json", summary)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hub", help="folder laid out like the Hub (default: $IVON_LORA_HUB, else the Hub)")
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[21, 42, 87])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--pilot-steps", type=int, default=25, help="of AdamW, for two curves of the part `cost`")
    parser.add_argument("--cost-questions", type=int, default=16, help="on which the cost is measured")
    parser.add_argument("--cost-draws", type=int, default=6, help="pairs of draws with which the cost is measured")
    parser.add_argument("--train-size", type=int, default=160)
    parser.add_argument("--eval-size", type=int, default=100, help="validation questions")
    parser.add_argument("--samples", type=int, default=10, help="draws")
    return parser.parse_args()


if __name__ == "__main__":
    main()
