"""Record what notebook 10 shows: LoRA with Bayesian gates (our B-LoRA) beside LoRA of fixed rank and AdaLoRA.

    python benchmarks/gates.py --out data/runs/gates

SmolLM2-135M on few training questions, AdamW with the preset `small` for all. A trial is one JSON file
`TASK-METHOD-seedS.json` that is whole or absent, beside its predictions; finished ones are not repeated, so the script
can be stopped and started again. `TASK-summary.json` has mean and standard error over seeds, and paired differences of
the rows with IVON.

    gated-muX    rank 8 and 32 bits at the start; ranks and bit widths are learned at the price X (μ, in nats)
    lora-rR      LoRA of fixed rank R, in 16 bits (α = 2R, so the scale is the same); for the largest R also `rounded`:
                 the trained matrices rounded to 8, 4 and 2 bits with no further training
    adalora      PEFT's AdaLoRA: rank 8 at the start, 4 on average at the end, in 16 bits; its learning rate is
                 --adalora-lr because a product of three matrices that starts at zero needs a larger one
    ivon-rR, ivon-gated-muX    the same with IVON: scores of draws, and `at_mean`; only if they are named in --methods
    adalora-ivon, adalora-ivon-signal    AdaLoRA trained by IVON (learning rate --adalora-ivon-lr), which takes away
                 directions by AdaLoRA's own importance, or by |m|/σ; scores at the mean; only if they are named

Bit operations are those of LoRA's own two products per token, activations in 16 bits; `share` is their ratio to rank 8
in 16 bits.
"""

import argparse
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import peft
import torch

from ivon_lora_lite import (
    IVON,
    LoraSettings,
    Predictions,
    answer_logits,
    answer_loss,
    collate,
    finetune,
    hyperparameters,
    load_model,
    load_task,
    paired_differences,
    predict,
    score,
    trainable,
)
from ivon_lora_lite.applications import rank_by_signal
from ivon_lora_lite.evaluation import METRICS
from ivon_lora_lite.files import finished, provenance, read_json, write_json
from ivon_lora_lite.gates import Decisions, GateSettings, LayerDecision, bit_operations
from ivon_lora_lite.gates.attach import FULL_BITS
from ivon_lora_lite.language import default_targets, full_name
from ivon_lora_lite.posterior import PREFIX, lora_layers

RANK = 8
ROUNDED = (8, 4, 2)
LOGGED = ("step", "loss", "gate_rank", "gate_bits", "gate_share")


def full_cost(model) -> int:
    """BOPs per token of LoRA of rank 8 in 16 bits on the layers that have LoRA."""
    return sum(
        RANK * (d_in + d_out) * FULL_BITS**2 for d_in, d_out, _ in (p.shape for p in lora_layers(model).values())
    )


def lora_trial(task, args, seed: int, rank: int, mu: float | None, optimizer: str = "adamw"):
    """LoRA of a rank, with gates if μ is given: facts and predictions."""
    model = load_model(args.model, lora=LoraSettings(r=rank, alpha=2 * rank))
    gates = False if mu is None else GateSettings(prior=mu, lr=args.gate_lr)
    run = finetune(
        model, task, optimizer=optimizer, steps=args.steps, train_size=args.train_size, seed=seed, format=args.format,
        gates=gates, progress=False,
    )  # fmt: skip
    questions, full = getattr(task, args.split)[: args.test_size], full_cost(model)
    draws = args.samples if optimizer == "ivon" else 0
    predictions = predict(run, questions, samples=draws)
    out = {"scores": scored(predictions)}
    if draws:
        out["at_mean"] = scored(predict(run, questions))
    out["bops"] = bit_operations(model, decisions=run.gates).total
    out |= {"share": out["bops"] / full, "train_seconds": round(run.seconds, 1), "settings": run.config["settings"]}
    if run.gates is not None:
        out |= {"gates": run.gates.facts(), "gate_settings": {**vars(gates)}}
    elif rank == max(args.ranks) and not draws:
        out["rounded"] = {}
        for bits in ROUNDED:
            decisions = rounding(run.weights, model, bits)
            cost = bit_operations(model, decisions=decisions).total
            run.weights = decisions.apply(unrounded := run.weights)
            out["rounded"][str(bits)] = {"scores": scored(predict(run, questions)), "bops": cost, "share": cost / full}
            run.weights = unrounded
    logs = [{name: row[name] for name in LOGGED if name in row} for row in run.history]
    return out | {"history": logs}, predictions


def rounding(weights, model, bits: int) -> Decisions:
    """All directions, one width, and the range that just holds every matrix."""
    found = {}
    for name, pair in lora_layers(model).items():
        ranges = (float(weights[f"{PREFIX}{name}.lora_{which}.weight"].abs().max()) for which in "AB")
        found[name] = LayerDecision(pair.shape[2], bits, bits, *ranges)
    return Decisions(found)


def adalora_trial(task, args, seed: int, ivon: bool = False, signal: bool = False):
    """PEFT's AdaLoRA with the loss, questions per step, steps and schedule of the others: facts and predictions."""
    torch.manual_seed(seed)
    loaded = load_model(args.model)
    tokenizer, full, base = loaded.tokenizer, full_cost(loaded), loaded.unload()
    config = peft.AdaLoraConfig(
        init_r=RANK, target_r=args.target_rank, lora_alpha=2 * RANK, lora_dropout=0.1, task_type="CAUSAL_LM",
        total_step=args.steps, tinit=args.steps // 10, tfinal=args.steps // 3, deltaT=max(1, args.steps // 50),
        target_modules=default_targets(base),
    )  # fmt: skip
    model = peft.get_peft_model(base, config)
    model.tokenizer = tokenizer
    params = trainable(model)
    if ivon:
        settings = {**hyperparameters("ivon", "small", task.name, args.steps), "lr": args.adalora_ivon_lr}
        optimizer = IVON(params.values(), **settings, seed=seed)
    else:
        settings = {"lr": args.adalora_lr, "weight_decay": 0.0}
        optimizer = torch.optim.AdamW(params.values(), **settings)
    if signal:
        rank_by_signal(model, optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / args.steps)
    questions, history, started = task.train[: args.train_size], [], time.perf_counter()
    order: list[int] = []
    model.train()
    for step in range(1, args.steps + 1):
        if len(order) < 4:
            order = [*order, *torch.randperm(len(questions)).tolist()]
        chosen, order = order[:4], order[4:]
        batch = collate([questions[i] for i in chosen], tokenizer, args.format)
        with optimizer.sampled_params(train=True) if ivon else nullcontext():
            loss = answer_loss(answer_logits(model, batch, args.format), batch["answers"])
            (loss + config.orth_reg_weight * orthogonality(params)).backward()
        if not ivon:  # IVON clips by itself
            torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
        optimizer.step()
        schedule.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        if step % 10 == 0:
            history.append({"step": step, "loss": loss.item()})
    seconds, bops, ranks = time.perf_counter() - started, 0, {}
    for name, module in model.named_modules():
        if name and "default" in getattr(module, "lora_E", {}):
            rank = int((module.lora_E["default"] != 0).sum())
            bops += rank * (module.lora_A["default"].shape[1] + module.lora_B["default"].shape[0]) * FULL_BITS**2
            ranks[name.removeprefix(PREFIX)] = rank
    asked = getattr(task, args.split)[: args.test_size]
    predictions = predict(model, asked, format=args.format)
    out = {"scores": scored(predictions), "bops": bops}
    settings |= {"init_r": RANK, "target_r": args.target_rank}
    out |= {"share": bops / full, "ranks": ranks, "train_seconds": round(seconds, 1), "settings": settings}
    return out | {"history": history}, predictions


def orthogonality(params) -> torch.Tensor:
    """AdaLoRA's regulariser: mean over matrices of ‖P Pᵀ − I‖ (rows of A, columns of B)."""
    grams = [p @ p.T if ".lora_A" in n else p.T @ p for n, p in params.items() if ".lora_A" in n or ".lora_B" in n]
    return torch.stack([torch.linalg.norm(g - torch.eye(len(g), device=g.device)) for g in grams]).mean()


def scored(predictions) -> dict:
    scores = score(predictions)
    return {**scores, "intervals": scores.intervals}


def methods(args: argparse.Namespace) -> dict:
    """Name of a method → a function of task and seed."""
    found = {f"lora-r{r}": lambda t, s, r=r: lora_trial(t, args, s, r, None) for r in args.ranks}
    found |= {f"gated-mu{mu:g}": lambda t, s, mu=mu: lora_trial(t, args, s, RANK, mu) for mu in args.mu}
    found |= {f"ivon-r{RANK}": lambda t, s: lora_trial(t, args, s, RANK, None, "ivon")}
    found |= {f"ivon-gated-mu{mu:g}": lambda t, s, mu=mu: lora_trial(t, args, s, RANK, mu, "ivon") for mu in args.mu}
    return found | {
        "adalora": lambda t, s: adalora_trial(t, args, s),
        "adalora-ivon": lambda t, s: adalora_trial(t, args, s, ivon=True),
        "adalora-ivon-signal": lambda t, s: adalora_trial(t, args, s, ivon=True, signal=True),
    }


def summarize(out: Path, name: str) -> dict:
    """Mean and standard error over seeds of every method's scores and share; `rounded` ones are methods too."""
    columns: dict[str, list[dict]] = {}
    for file in sorted(out.glob(f"{name}-*-seed*.json")):
        trial = read_json(file)
        method = trial["config"]["method"]
        rows = {method: trial} | {f"{method}-{bits}bit": row for bits, row in trial.get("rounded", {}).items()}
        if "at_mean" in trial:
            rows[f"{method}@mean"] = {"scores": trial["at_mean"], "share": trial["share"]}
        for title, row in rows.items():
            values = {metric: row["scores"][metric] for metric in METRICS} | {"share": row["share"]}
            columns.setdefault(title, []).append(values | {"seed": trial["config"]["seed"]})
    content: dict = {"methods": {}, "seeds": {}}
    for title, trials in columns.items():
        content["seeds"][title] = [t["seed"] for t in trials]
        content["methods"][title] = {}
        for metric in (*METRICS, "share"):
            values = [t[metric] for t in trials]
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
            content["methods"][title][metric] = {"mean": statistics.fmean(values), "se": error, "values": values}
    return content | {"differences": differences(out, name, columns), "provenance": provenance()}


def differences(out: Path, name: str, methods) -> dict:
    """Paired differences over the seeds that both have: gates under IVON, and |m|/σ for AdaLoRA's own importance."""
    pairs = [(f"ivon-r{RANK}", method) for method in methods if method.startswith("ivon-gated") and "@" not in method]
    found = {}
    for first, second in [("adalora-ivon", "adalora-ivon-signal"), *pairs]:
        files = [
            (f, out / f.name.replace(second, first)) for f in sorted(out.glob(f"{name}-{second}-seed*.safetensors"))
        ]
        if both := [pair for pair in files if pair[1].exists()]:
            theirs, ours = ([Predictions.load(pair[i]) for pair in both] for i in (1, 0))
            found[f"{second} - {first}"] = paired_differences(theirs, ours)
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", default="everyday")
    parser.add_argument("--hub", help="folder laid out like the Hub (default: $IVON_LORA_HUB)")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--format", default="text", choices=["text", "letter"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[21, 42, 87])
    parser.add_argument("--methods", nargs="+", help="only these (default: all)")
    parser.add_argument("--mu", type=float, nargs="+", default=[0.1, 1.0, 10.0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--train-size", type=int, default=160)
    parser.add_argument("--test-size", type=int, help="default: all")
    parser.add_argument("--gate-lr", type=float, default=GateSettings.lr)
    parser.add_argument("--adalora-lr", type=float, default=2e-3)
    parser.add_argument("--adalora-ivon-lr", type=float, default=5.5e-3)
    parser.add_argument("--samples", type=int, default=10, help="draws of IVON's")
    parser.add_argument("--target-rank", type=int, default=RANK // 2, help="of AdaLoRA, on average at the end")
    parser.add_argument("--split", default="test", choices=["validation", "test"])
    args = parser.parse_args(arguments)
    known = methods(args)
    chosen = args.methods or [name for name in known if "ivon" not in name]
    if unknown := set(chosen) - set(known):
        parser.error(f"there is no method {sorted(unknown)[0]!r}; known: {', '.join(known)}")
    task = load_task(args.task, hub=args.hub)
    name = full_name(args.task).replace("/", "-")
    common = {
        "task": full_name(args.task),
        "model": args.model,
        "format": args.format,
        "steps": args.steps,
        "batch_size": 4,
    }
    common |= {"train_size": args.train_size, "questions": len(getattr(task, args.split)[: args.test_size])}
    common |= {name: getattr(args, name) for name in ("split", "samples", "target_rank")}
    common |= {name: value for name, value in vars(args).items() if name.endswith("_lr")}
    for seed in args.seeds:  # a stopped script leaves whole seeds rather than whole methods
        for method in chosen:
            file = args.out / f"{name}-{method}-seed{seed}.json"
            config = {"method": method, "seed": seed, **common}
            if finished(file, config, "config"):
                continue
            trial, predictions = known[method](task, seed)
            predictions.save(file.with_suffix(".safetensors"))
            write_json(file, {"config": config, **trial, "provenance": provenance()})
            write_json(args.out / f"{name}-summary.json", summarize(args.out, name))
            shown = {metric: round(trial["scores"][metric], 3) for metric in METRICS}
            print(f"{method} seed {seed}: share {trial['share']:.3f}, {trial['train_seconds']} s, {shown}", flush=True)
    write_json(args.out / f"{name}-summary.json", summarize(args.out, name))


if __name__ == "__main__":
    main()
