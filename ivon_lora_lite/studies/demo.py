"""The main job, end to end: AdamW against IVON on the same questions, in the same order, with the same budget."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ..evaluation import (
    METRICS,
    Predictions,
    Scores,
    TauSweep,
    ece_floor,
    linearized,
    paired_differences,
    predict,
    score,
    tau_sweep,
)
from ..files import LOCK, provenance, read_json, reserved, whole_folder, write_json, write_or_keep
from ..language import Question, Task, description_of, full_name, load_model, load_task
from ..methods import KeepBest, temperature
from ..training import Run, finetune, save_run
from .report import RIVAL, report_function, write_report

# 20 passes over few questions: long enough that a point estimate grows too sure of itself
DEMO = {"task": "everyday", "model": "smollm2-135m", "steps": 500, "train_size": 100, "batch_size": 4, "samples": 10}
TAUS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
ELSEWHERE = 4  # draws at temperatures other than 1
EVALUATIONS = 5  # of AdamW on validation questions, for early stopping
METHODS = ("before training", "AdamW", "AdamW, early-stopped", "AdamW + temperature", "IVON@mean", "IVON")
METRICS_FILE = "metrics.json"
OWN = (METRICS_FILE, "report.html", "predictions", "adamw", "ivon")  # files and folders of a demo


def run_demo(
    out: Path,
    *,
    task: str = DEMO["task"],
    model: str = DEMO["model"],
    steps: int = DEMO["steps"],
    train_size: int | None = DEMO["train_size"],
    batch_size: int = DEMO["batch_size"],
    samples: int = DEMO["samples"],
    test_size: int | None = None,
    seed: int = 21,
    format: str = "text",
    dtype: str = "auto",
    hub: str | None = None,
    taus: Sequence[float] = TAUS,
    elsewhere: int = ELSEWHERE,
    linear: bool = False,
    weights: bool = True,
    report: bool = True,
    progress: bool = True,
    say=print,
) -> dict[str, Scores]:
    """Finetune with AdamW and with IVON, evaluate six ways, and write everything to a folder.

    Args:
        out: gets ``metrics.json``, ``adamw/`` and ``ivon/`` (adapters, posterior), ``predictions/`` (logits [S, N, C])
            and ``report.html``. A former demo there is replaced; other files and folders stay.
        taus: temperatures at which IVON is sampled besides 0 (the mean) and 1 (the posterior).
        elsewhere: draws at temperatures other than 1.
        linear: also linearise the model, so that the report has every τ between.
        weights: keep the adapters and the posterior.
        report: write ``report.html``.

    Returns:
        method → :class:`Scores` on the test split.
    """
    asked = {
        "task": full_name(task), "model": model, "steps": steps, "train_size": train_size, "batch_size": batch_size,
        "samples": samples, "test_size": test_size, "format": format, "dtype": dtype, "taus": sorted(taus),
        "elsewhere": elsewhere, "linear": linear,
    }  # fmt: skip
    out, taus, elsewhere = Path(out), _checked(Path(out), taus), min(elsewhere, samples)
    page = report_function() if report else None  # ask for plotly now rather than after all the work
    with reserved(out):  # what cannot be written is found out before training
        clock = Clock(say)
        with clock.phase("load model and questions"):
            base, data = load_model(model, dtype=dtype, progress=progress), load_task(task, hub=hub)
        questions = data.test[:test_size]
        common = {"steps": steps, "train_size": train_size, "batch_size": batch_size, "seed": seed, "format": format}
        results, runs, facts = _rivals(base, data, questions, common, clock, progress)
        runs["ivon"], sweep = _ivon(base, data, questions, common, samples, elsewhere, taus, linear, clock, progress)
        used = runs["ivon"].config["train_size"]  # there may be fewer than were asked for
        about = {"task": data.name, "model": model, "split": data.splits["test"], **common, "train_size": used}
        sweep = replace(sweep, metadata=sweep.metadata | about)
        for method, tau in (("IVON@mean", 0.0), ("IVON", 1.0)):
            drawn = sweep.predictions(tau)
            results[method] = replace(drawn, metadata={**about, "samples": samples if tau else 0, "tau": tau})
        scores = {method: score(results[method]) for method in METHODS}
        record = {
            "scores": {method: {**s, "intervals": s.intervals, "floor": s.floor} for method, s in scores.items()},
            "paired": {
                method: paired_differences(results[RIVAL], results[method])
                for method in METHODS[METHODS.index(RIVAL) + 1 :]
            },
            "facts": facts,
            "options": asked,
            "config": {**about, "samples": samples, "questions": len(questions), "lora": _lora(base)},
            "settings": {optimizer: run.config["settings"] for optimizer, run in runs.items()},
            "history": {optimizer: run.history for optimizer, run in runs.items()},
            "seconds": clock.seconds,
            "provenance": provenance(),
        }
        with clock.phase("write results"):

            def write(folder: Path) -> None:
                with whole_folder(folder, last=METRICS_FILE, own=OWN) as stage:
                    _write(stage, results, runs if weights else {}, sweep, record)
                    if page:
                        write_report(page, stage / "report.html", scores, results, sweep, record, questions)

            write_or_keep(write, out)
    return scores


class Clock:
    """Says what happens now, and keeps how long it took.

    Attributes:
        seconds: phase → wall time.
    """

    def __init__(self, say):
        self.say, self.seconds = say, {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.say(f"· {name}", flush=True)
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 1)


def _checked(out: Path, taus: Sequence[float]) -> set[float]:
    """The temperatures to sample at; refuses a folder with other files and a τ outside its range."""
    others = [path for path in out.iterdir() if path.name != LOCK] if out.exists() else []
    if others and not (out / METRICS_FILE).exists():
        raise FileExistsError(f"{out} holds other files: choose another folder with --out.")
    taus = {0.0, 1.0, *taus}
    if not all(0 <= tau < float("inf") for tau in taus):
        raise ValueError(f"taus are {', '.join(f'{tau:g}' for tau in taus)}; expected finite numbers of at least 0.")
    return taus


def _rivals(
    base: nn.Module, data: Task, questions: list[Question], common: dict, clock: Clock, progress: bool
) -> tuple[dict[str, Predictions], dict[str, Run], dict]:
    """Predictions before training and of AdamW's three rows, AdamW's run, and what was chosen on validation."""
    results: dict[str, Predictions] = {}
    with clock.phase("evaluate before training"):
        results["before training"] = predict(base, questions, format=common["format"], progress=progress)
    best = KeepBest(data.validation, common["format"], max(1, common["steps"] // EVALUATIONS))
    with clock.phase("finetune with AdamW"):
        run = finetune(base, data, optimizer="adamw", progress=progress, callbacks=[best], **common)
    with clock.phase("evaluate AdamW"):
        results["AdamW"] = predict(run, questions, progress=progress)
        early = replace(run, weights=best.weights)
        stopped = best.step < run.config["steps"]
        results["AdamW, early-stopped"] = predict(early, questions, progress=progress) if stopped else results["AdamW"]
        held_out = predict(run, data.validation, progress=progress)
        results["AdamW + temperature"], chosen = temperature(held_out, results["AdamW"])
    run = replace(run, history=sorted([*run.history, *best.history], key=lambda entry: entry["step"]))
    return results, {"adamw": run}, {"early_stopped_at": best.step, "temperature": chosen}


def _ivon(
    base: nn.Module, data: Task, questions: list[Question], common: dict, samples: int, elsewhere: int,
    taus: set[float], linear: bool, clock: Clock, progress: bool,
) -> tuple[Run, TauSweep]:  # fmt: skip
    """IVON's run, and its sweep over τ."""
    with clock.phase("finetune with IVON"):
        run = finetune(base, data, optimizer="ivon", progress=progress, **common)
    with clock.phase(f"evaluate IVON at the mean and with {samples} draws"):
        sweep = tau_sweep(run, questions, taus=taus, samples=samples, elsewhere=elsewhere, progress=progress)
    if linear:
        with clock.phase("linearise IVON for every τ"):
            sweep = replace(sweep, linear=linearized(run, questions, progress=progress))
    return run, sweep


def _write(out: Path, results: dict, runs: dict[str, Run], sweep: TauSweep, record: dict) -> None:
    for method, predictions in results.items():
        predictions.save(_predictions(out, method))
    sweep.save(out / "predictions" / "tau-sweep.safetensors")
    for optimizer, run in runs.items():
        save_run(run, out / optimizer)
    write_json(out / METRICS_FILE, record)


def _predictions(out: Path, method: str) -> Path:
    """Where a row's logits are."""
    return out / "predictions" / f"{'-'.join(re.findall(r'[a-z]+', method.lower()))}.safetensors"


def table(scores: dict[str, Scores]) -> str:
    """The results as a plain-text table with 95 % intervals, and ECE's floor."""
    lines = [f"{'':20}" + "".join(f"{name.upper():>24}" for name in METRICS) + f"{'ECE floor':>12}"]
    for method, values in scores.items():
        cells = []
        for name in METRICS:
            low, high = values.intervals[name]
            cells.append(f"{values[name]:.3f} [{low:.3f}, {high:.3f}]".rjust(24))
        lines.append(f"{method:20}" + "".join(cells) + f"{values.floor:12.3f}")
    return "\n".join(lines)


def summarize(folders: Sequence[Path]) -> dict:
    """Mean and standard error over the seeds of several demo folders, per method and metric."""
    records = [read_json(Path(folder) / METRICS_FILE) for folder in folders]
    kept = [{k: v for k, v in r["config"].items() if k != "seed"} for r in records]
    if any(k != kept[0] for k in kept) or any(r["settings"] != records[0]["settings"] for r in records):
        raise ValueError("These runs differ in more than the seed, so they do not belong in one summary.")
    out: dict = {"seeds": [r["config"]["seed"] for r in records], "config": kept[0], "scores": {}}
    methods = list(records[0]["scores"])  # a former edition had fewer
    for method in methods:
        out["scores"][method] = {}
        for name in METRICS:
            values = torch.tensor([r["scores"][method][name] for r in records], dtype=torch.float64)
            error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
            out["scores"][method][name] = {"mean": float(values.mean()), "se": error, "values": values.tolist()}
    for name in METRICS:
        values = [r["scores"]["IVON"][name] - r["scores"][RIVAL][name] for r in records]
        out.setdefault("ivon_minus_adamw", {})[name] = {"mean": sum(values) / len(values), "values": values}
    found = {m: [Predictions.load(_predictions(Path(folder), m)) for folder in folders] for m in methods}
    floors = {m: [ece_floor(p.ensemble())[0] for p in kept] for m, kept in found.items()}
    out["floor"] = {m: sum(values) / len(values) for m, values in floors.items()}
    after = methods[methods.index(RIVAL) + 1 :]
    out["paired"] = {m: paired_differences(found[RIVAL], found[m]) for m in after}
    out["settings"] = records[0]["settings"]
    out["seconds"] = [r["seconds"] for r in records]
    out["provenance"] = records[-1]["provenance"]
    return out


def _lora(model: nn.Module) -> dict:
    settings = description_of(model)["lora"]
    return {**settings, "targets": settings["targets"] or sorted(model.peft_config["default"].target_modules)}
