"""What a GPU makes of it: cost per step in Llama-2-7B's shapes, draws against the mean, and long runs of SmolLM2-135M.

    python benchmarks/gpu.py                             every part that is not finished yet
    python benchmarks/gpu.py --parts profile evaluation  some of them
    python benchmarks/gpu.py --dry-run                   every part on a CPU, with a tiny model; nothing is kept

Each part stays below --minutes and becomes one file in data/runs/gpu-DEVICE/; a finished part is not repeated. A part
that ran out of time goes on from its checkpoint in the next call (exit code 3 says that there is one).

    optimizer    draw, restore and step alone, as benchmarks/optimizer.py measures it
    profile      milliseconds of forward+backward, sampling and step for AdamW, ivon-opt and IVON, batches of 4; peak
                 memory of each; the same for IVON with gradient checkpointing
    evaluation   10 draws against the mean, one by one and in one pass, batches of 4 and of 64
    runs         SmolLM2-135M, 2,500 steps of 4 on `everyday` with AdamW and IVON, three seeds each, --jobs of them side
                 by side: scores of all test questions

`profile` and `evaluation` take random weights in Llama-2-7B's shapes, in 8 bits if bitsandbytes is there and else in
bf16, and questions of `everyday` as prompts of the letter format, which are about as long as WinoGrande's. They say
what it costs and nothing about quality. Random weights have few of the outliers that LLM.int8 computes apart, so a
trained model may be somewhat slower. Where time is taken within a step the GPU is waited for; a `whole` step is one of
several in a row, without waiting. CONTRIBUTING.md says how to spend a quarter of an hour on a GPU.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from transformers import TrainerCallback

from ivon_lora_lite import (
    IVON,
    GaussianPosterior,
    answer_logits,
    answer_loss,
    collate,
    finetune,
    hyperparameters,
    load_model,
    load_task,
    lora_parameters,
    predict,
    reset_lora,
    score,
)
from ivon_lora_lite.files import provenance, write_json
from ivon_lora_lite.language import LLAMA_2_7B, TINY, models, random_llama
from ivon_lora_lite.language.hardware import bitsandbytes_found

RUNS = [(optimizer, seed) for seed in (21, 42, 87) for optimizer in ("adamw", "ivon")]
PAPER = {"forward_backward": 316.3, "sampling": 1.8, "step": 1.0}  # ms, Cong et al. (2024), one RTX 6000 Ada


def run_name(optimizer: str, seed: int) -> str:
    return f"{optimizer}-seed{seed}"


PARTS = ["optimizer", "profile", "evaluation", *(run_name(*which) for which in RUNS)]


class Unavailable(Exception):
    """A part cannot run here; the message says what it wants."""


class Unfinished(Exception):
    """A part ran out of time and goes on in the next call."""


@dataclass(frozen=True)
class Sizes:
    """How much is done; a dry run does very little of everything."""

    model: dict
    dtype: torch.dtype
    rounds: int
    block: int
    questions: int
    steps: int
    eval_every: int
    train_size: int | None
    test_size: int | None
    samples: int


REAL = Sizes(LLAMA_2_7B, torch.bfloat16, 20, 10, 64, 2_500, 500, None, None, 10)
DRY = Sizes(TINY, torch.float32, 2, 1, 4, 4, 2, 8, 4, 3)


class Bench:
    """Where things are, and what the parts share."""

    def __init__(self, args: argparse.Namespace, out: Path, work: Path):
        self.dry, self.out, self.work = args.dry_run, out, work
        self.size = DRY if args.dry_run else REAL
        self.device = "cpu" if args.dry_run else "cuda"
        self.quantize = None if args.dry_run else args.quantize or ("8bit" if bitsandbytes_found() else "bf16")
        self.seconds = 60 * args.minutes
        self._model = None

    def begin(self) -> None:
        self.started = time.perf_counter()

    @property
    def late(self) -> bool:
        return time.perf_counter() - self.started > self.seconds

    @property
    def model(self):
        """Random weights in the real shapes, written once as a folder and read back as any model is."""
        if self._model is None:
            folder = self.work / ("tiny" if self.dry else "llama-2-7b-random")
            if not (folder / "config.json").exists():
                unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
                print(f"writing random weights to {folder} …", flush=True)
                try:
                    random_llama(unfinished, questions(), self.size.model, dtype=self.size.dtype, device=self.device)
                    os.replace(unfinished, folder)
                finally:
                    shutil.rmtree(unfinished, ignore_errors=True)
            self._model = load_model(str(folder), quantize=self.quantize, device=self.device)
        return self._model

    def synchronize(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def now(self) -> float:
        self.synchronize()
        return time.perf_counter()

    def peak(self, work: Callable[[], object]) -> float | None:
        """Peak GPU memory of some work, in GiB; None on a CPU."""
        if self.device == "cpu":
            work()
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 2**30


def questions() -> list:
    task = load_task("everyday")
    return [*task.train, *task.validation, *task.test]


# ----------------------------------------------------------------------------------------------------- part: optimizer


def optimizer(bench: Bench) -> dict:
    try:
        import optimizer as own_work  # the benchmark beside this one
    except ModuleNotFoundError as error:
        raise Unavailable(f"it compares with ivon-opt: pip install ivon-opt==0.1.3 ({error})") from error
    if bench.dry:
        results = [own_work.measure("cpu", 1)]
    else:
        results = [own_work.in_a_fresh_process(bench.device, 100) for _ in range(3)]
    return own_work.summary(results)


# ------------------------------------------------------------------------------------------------------- part: profile


def profile(bench: Bench) -> dict:
    model, size = bench.model, bench.size
    batches = [collate(questions()[i : i + 4], model.tokenizer, "letter") for i in range(0, 4 * size.block, 4)]
    lengths = [int(n) for batch in batches for n in batch["attention_mask"].sum(1)]
    reset_lora(model, 0)
    model.train()
    candidates, left_out, memory = makers(), {}, {}
    for name, make in list(candidates.items()):  # alone, so that no other optimizer's state is counted; warms up too
        try:
            optimizer = make(model)  # of all three steps: AdamW makes its state in the first one
            memory[name] = bench.peak(lambda opt=optimizer: [step(model, opt, batch) for batch in batches[:3]])
            del optimizer
        except ModuleNotFoundError as error:
            left_out[name] = str(error)
            del candidates[name]
    optimizers = {name: make(model) for name, make in candidates.items()}
    parts = {name: [] for name in optimizers}  # seconds of each part of a step
    whole = {name: [] for name in optimizers}  # seconds per step, per block of steps
    for _ in range(size.rounds):  # the candidates take turns
        for name, chosen in optimizers.items():
            parts[name] += [step(model, chosen, batch, bench.now) for batch in batches[:2]]
            started = bench.now()
            for batch in batches:
                step(model, chosen, batch)
            whole[name].append((bench.now() - started) / len(batches))
        if bench.late:
            break
    result = {}
    for name in optimizers:
        columns = {key: 1e3 * statistics.median(part[key] for part in parts[name]) for key in PAPER}
        ratios = [a / b for a, b in zip(whole[name], whole["AdamW"])]  # taken one after the other: drift cancels
        result[name] = {
            "milliseconds": columns,
            "whole_step_milliseconds": 1e3 * statistics.median(whole[name]),
            "whole_step_relative_to_AdamW": statistics.median(ratios),
            "range": [min(ratios), max(ratios)],
            "peak_memory_GiB": memory[name],
        }
    optimizers.clear()
    models.checkpoint_gradients(model.base_model.model)
    chosen, times = makers()["IVON"](model), []

    def steps():
        for batch in batches:
            started = bench.now()
            step(model, chosen, batch)
            times.append(bench.now() - started)

    peak = bench.peak(steps)
    model.eval()
    bench._model = None  # it checkpoints now: the next part takes a fresh one
    checkpointed = {"whole_step_milliseconds": 1e3 * statistics.median(times), "peak_memory_GiB": peak}
    return {
        "optimizers": result,
        "with_gradient_checkpointing": checkpointed,
        "left_out": left_out,
        "rounds": len(whole["AdamW"]),
        "batch_size": 4,
        "tokens": {"min": min(lengths), "mean": statistics.mean(lengths), "max": max(lengths)},
        "weights": "random",
        "quantize": bench.quantize,
        "paper": {"milliseconds": PAPER, "device": "RTX 6000 Ada", "source": "Cong et al. (2024)"},
    }


def makers() -> dict[str, Callable]:
    """Optimizers with the paper's settings; ivon-opt is imported only when it is made."""
    settings = hyperparameters("ivon", "paper", "winogrande_s")

    def ivon_opt(model):
        import ivon

        return ivon.IVON(lora_parameters(model), **settings)

    return {
        "AdamW": lambda model: torch.optim.AdamW(lora_parameters(model), lr=5e-5, weight_decay=0.0),
        "ivon-opt": ivon_opt,
        "IVON": lambda model: IVON(lora_parameters(model), **settings, seed=0),
    }


def step(model, optimizer, batch, now: Callable[[], float] | None = None) -> dict[str, float]:
    """One training step; with a clock, seconds of its parts."""
    marks = [now()] if now else []
    context = optimizer.sampled_params(train=True) if hasattr(optimizer, "sampled_params") else nullcontext()
    with context:
        marks += [now()] if now else []
        answer_loss(answer_logits(model, batch, "letter"), batch["answers"]).backward()
        marks += [now()] if now else []
    marks += [now()] if now else []
    optimizer.step()
    optimizer.zero_grad()
    if not now:
        return {}
    start, drawn, computed, restored, end = *marks, now()
    return {
        "forward_backward": computed - drawn,
        "sampling": (drawn - start) + (restored - computed),
        "step": end - restored,
    }


# ---------------------------------------------------------------------------------------------------- part: evaluation


def evaluation(bench: Bench) -> dict:
    model, size = bench.model, bench.size
    asked = load_task("everyday").test[: size.questions]
    reset_lora(model, 0)
    posterior, work = GaussianPosterior.isotropic(model, 3e-4), {}
    for batch in (4, 64):
        options = {"posterior": posterior, "format": "letter", "batch_size": batch}
        work[f"mean, batches of {batch}"] = lambda o=options: predict(model, asked, **o)
        for together in (1, 10):
            work[f"10 draws, {together} per pass, batches of {batch}"] = lambda o=options, n=together: predict(
                model, asked, samples=10, draws_per_pass=n, **o
            )
    peak = {name: bench.peak(job) for name, job in work.items()}  # warms up too
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(max(1, size.rounds // 4)):
        for name, job in work.items():
            started = bench.now()
            job()
            times[name].append(bench.now() - started)
        if bench.late:
            break
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return {
        "seconds": seconds,
        "relative_to_mean": {
            name: value / seconds[f"mean, batches of {name.rsplit(' ', 1)[1]}"] for name, value in seconds.items()
        },
        "peak_memory_GiB": peak,
        "questions": len(asked),
        "rounds": min(map(len, times.values())),
        "weights": "random",
        "quantize": bench.quantize,
    }


# ----------------------------------------------------------------------------------------------------- parts: training


class Deadline(TrainerCallback):
    """Writes a checkpoint and stops when time is up."""

    def __init__(self, bench: Bench):
        self.bench, self.reached = bench, False

    def on_step_end(self, args, state, control, **kwargs):
        if self.bench.late and state.global_step < state.max_steps:
            self.reached = control.should_save = control.should_training_stop = True


def training(bench: Bench, optimizer: str, seed: int) -> dict:
    size, task = bench.size, load_task("everyday")
    try:
        model = bench.model if bench.dry else load_model(device=bench.device)
    except FileNotFoundError as error:
        raise Unavailable(str(error)) from error
    deadline, checkpoints = Deadline(bench), bench.work / run_name(optimizer, seed)
    run = finetune(
        model, task, optimizer=optimizer, steps=size.steps, seed=seed, eval_every=size.eval_every,
        train_size=size.train_size, eval_size=size.test_size, output_dir=checkpoints, save_every=size.eval_every,
        resume=True, callbacks=[deadline], progress=False,
    )  # fmt: skip
    if deadline.reached:
        step = max((record["step"] for record in run.history), default=0)
        raise Unfinished(f"stopped near step {step} of {size.steps}")
    asked, scores = task.test[: size.test_size], {}
    for name, samples in (("mean", 0), *([("draws", size.samples)] if run.posterior else [])):
        predictions = predict(run, asked, samples=samples)
        predictions.save(bench.out / f"{run_name(optimizer, seed)}-{name}.safetensors")
        scores[name] = dict(score(predictions))
    result = {"scores": scores, "config": run.config, "history": run.history, "test_questions": len(asked)}
    shutil.rmtree(checkpoints, ignore_errors=True)
    return result | {"seconds_of_the_last_call": run.seconds}


def side_by_side(parts: list[str], argv: list[str], jobs: int) -> int:
    """Runs as processes of their own on the one GPU, which a small model alone does not fill."""

    def start(part: str) -> int:
        return subprocess.run([sys.executable, __file__, *argv, "--parts", part, "--jobs", "1"]).returncode

    with ThreadPoolExecutor(jobs) as pool:
        return max(pool.map(start, parts))


# ---------------------------------------------------------------------------------------------------------------- main


def device_name(dry: bool) -> str:
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-") if not dry else "dry-run"


def facts(bench: Bench) -> dict:
    """What a reader needs to believe the numbers."""
    found = {"provenance": provenance(), "dry_run": bench.dry}
    with suppress(metadata.PackageNotFoundError):
        found["provenance"]["versions"]["bitsandbytes"] = metadata.version("bitsandbytes")
    if bench.device != "cpu":
        about = torch.cuda.get_device_properties(0)
        found["gpu"] = {"name": about.name, "memory_GiB": about.total_memory / 2**30, "cuda": torch.version.cuda}
    return found


def summary(part: str, result: dict) -> str:
    if part == "optimizer":
        return "  ".join(f"{name} {ms:.2f} ms" for name, ms in result["milliseconds"].items())
    if part == "profile":
        rows = []
        for name, row in result["optimizers"].items():
            ms = row["milliseconds"]
            rows.append(
                f"{name}: forward+backward {ms['forward_backward']:.1f} ms, sampling {ms['sampling']:.2f}, step "
                f"{ms['step']:.2f}; {row['whole_step_relative_to_AdamW']:.3f} × AdamW"
            )
        return "\n  ".join(rows)
    if part == "evaluation":
        return "  ".join(f"{name} {ratio:.2f} × the mean" for name, ratio in result["relative_to_mean"].items())
    return "  ".join(f"{name} ACC {s['acc']:.3f} NLL {s['nll']:.3f}" for name, s in result["scores"].items())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=[*PARTS, "runs"], metavar="PART")
    parser.add_argument("--jobs", type=int, default=len(RUNS), help="runs side by side (default: all; a dry run: 1)")
    parser.add_argument("--out", type=Path, help="default: data/runs/gpu-DEVICE; of a dry run: nothing is kept")
    parser.add_argument("--work", type=Path, help="random weights and checkpoints (default: outputs/gpu)")
    parser.add_argument("--minutes", type=float, default=4, help="limit of a part (default: 4)")
    parser.add_argument("--quantize", choices=["8bit", "4bit", "bf16"], help="default: 8bit with bitsandbytes")
    parser.add_argument("--dry-run", action="store_true", help="tiny model, on the CPU")
    args = parser.parse_args(argv)
    if not args.dry_run and not torch.cuda.is_available():
        print(
            "benchmarks/gpu.py measures a CUDA GPU and none is here: --dry-run tries every part on a CPU.",
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory() as nothing_kept:
        temporary = Path(nothing_kept)
        out = args.out or (temporary / "out" if args.dry_run else Path("data/runs") / f"gpu-{device_name(False)}")
        work = args.work or (temporary / "work" if args.dry_run else Path("outputs/gpu"))
        for folder in (out, work):
            folder.mkdir(parents=True, exist_ok=True)
        parts = [p for name in args.parts for p in ([run_name(*r) for r in RUNS] if name == "runs" else [name])]
        runs = [part for part in parts if part.rpartition("-seed")[0]]
        jobs = 1 if args.dry_run and args.jobs == len(RUNS) else args.jobs
        if jobs == 1 or len(runs) < 2:
            return run_parts(Bench(args, out, work), parts)
        options = ["--out", str(out), "--work", str(work), "--minutes", str(args.minutes)]
        bench = Bench(args, out, work)
        code = run_parts(bench, [part for part in parts if part not in runs])
        if args.dry_run:
            _ = bench.model  # written once, for all processes
        return max(code, side_by_side(runs, options + ["--dry-run"] * args.dry_run, jobs))


def run_parts(bench: Bench, parts: list[str]) -> int:
    """0: all parts are there; 3: one is not finished or could not run."""
    work = {"optimizer": optimizer, "profile": profile, "evaluation": evaluation}
    work |= {run_name(*which): lambda bench, which=which: training(bench, *which) for which in RUNS}
    complete = True
    for part in parts:
        file = bench.out / f"{part}.json"
        if file.exists():
            print(f"{part}: finished already ({file})", flush=True)
            continue
        bench.begin()
        try:
            result = work[part](bench)
        except Unavailable as why:
            print(f"{part}: left out, {why}", flush=True)
            complete = False
            continue
        except Unfinished as where:
            print(f"{part}: {where}; the same command goes on there", flush=True)
            complete = False
            continue
        took = time.perf_counter() - bench.started
        write_json(file, {"part": part, **result, "part_seconds": took, **facts(bench)})
        print(f"{part} ({took:.0f} s)\n  {summary(part, result)}", flush=True)
    return 0 if complete else 3


if __name__ == "__main__":
    sys.exit(main())
