"""What the learned variance adds: IVON's draws against draws with noise of one size around the same kind of mean.

    python benchmarks/learned.py --work outputs/passes --out data/runs/learned

Starts from the IVON runs that `benchmarks/passes.py` left in `--work`, and predicts the test questions with ten draws
from three more posteriors:

* `one size`: the same mean, and for every weight the variance that the run's variances have on average;
* `one size a tensor`: the same, averaged over each of LoRA's matrices;
* `h stays`: a run of its own, with the same settings but the paper's β₂ = 1 − 10⁻⁵, with which h hardly moves.

Per seed there are three files of predictions and the σ of every matrix; one JSON has the paired differences to
the learned variance, pooled over seeds. Finished files are not repeated.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ivon_lora_lite import (
    Predictions,
    Run,
    Task,
    finetune,
    load_model,
    load_run,
    load_task,
    paired_differences,
    predict,
)
from ivon_lora_lite.files import keep_options, provenance, read_json, write_json
from ivon_lora_lite.language import full_name
from ivon_lora_lite.plots import sigma_by_tensor
from ivon_lora_lite.studies.table1 import load_record

SEEDS = (21, 42, 87)
PAPER_BETA2 = 1 - 1e-5
KINDS = ("one size", "one size a tensor", "h stays")


def other(kind: str, run: Run, model: nn.Module, task: Task) -> Run:
    """A run of IVON with another variance, by the names above."""
    if kind == "h stays":
        return staying(run, model, task)
    average = {name: v.mean() for name, v in run.posterior.variance.items()}
    if kind == "one size":
        everywhere = torch.cat([v.flatten() for v in run.posterior.variance.values()]).mean()
        average = dict.fromkeys(average, everywhere)
    variance = {name: average[name].expand_as(v).contiguous() for name, v in run.posterior.variance.items()}
    return replace(run, posterior=replace(run.posterior, variance=variance))


def staying(run: Run, model: nn.Module, task: Task) -> Run:
    """The same training with an h that hardly moves."""
    config, settings = run.config, {**run.config["settings"], "beta2": PAPER_BETA2}
    return finetune(
        model, task, optimizer="ivon", steps=config["steps"], train_size=config["train_size"], seed=config["seed"],
        batch_size=config["batch_size"], format=config["format"], eval_every=0, progress=False, **settings,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of benchmarks/passes.py with weights")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", default="everyday")
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--hub", help="folder laid out like the Hub")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    keep_options(args.out, {"model": args.model, "dtype": args.dtype})
    model, task = load_model(args.model, dtype=args.dtype, progress=False), load_task(args.task, hub=args.hub)
    name = f"{full_name(args.task)}-{args.passes}-passes"
    found: dict[str, list[Predictions]] = {}
    sigmas: dict[str, dict] = {}
    for seed in args.seeds:
        place = args.work / f"{args.passes}-passes" / full_name(args.task) / "ivon" / f"seed{seed}"
        learned = load_record(place).predictions
        run = load_run(place, model)
        questions, samples = task.test[: len(learned.labels)], learned.logits.shape[0]
        logged = [entry for entry in run.history if "ivon_variance_drift" in entry]
        sigmas[str(seed)] = {
            "variance_drift": logged[-1]["ivon_variance_drift"],
            "start": (run.config["settings"]["ess"] * run.config["settings"]["hess_init"]) ** -0.5,
            "tensors": sigma_by_tensor(run.posterior),
        }
        found.setdefault("learned", []).append(learned)
        for kind in KINDS:
            file = args.out / f"{name}-seed{seed}-{kind.replace(' ', '-')}.safetensors"
            if not file.exists():
                predict(other(kind, run, model, task), questions, samples=samples).save(file)
                print(f"{file.name} is written", flush=True)
            found.setdefault(kind, []).append(Predictions.load(file))
        summary = {
            "task": full_name(args.task), "passes": args.passes, "seeds": list(sigmas),
            "settings": run.config["settings"],
            "learned_minus": {
                kind: paired_differences(rival, found["learned"]) for kind, rival in found.items() if kind != "learned"
            },
            "sigma": sigmas, "provenance": provenance(),
        }  # fmt: skip
        write_json(args.out / f"{name}.json", summary)
    for kind, differences in read_json(args.out / f"{name}.json")["learned_minus"].items():
        listed = "  ".join(
            f"{m.upper()} {d['difference']:+.3f} [{d['interval'][0]:+.3f}, {d['interval'][1]:+.3f}]"
            for m, d in differences.items()
        )
        print(f"learned − {kind}: {listed}")


if __name__ == "__main__":
    main()
