"""The main job, end to end: AdamW against IVON on the same questions, in the same order, with the same budget."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ..evaluation import (
    METRICS,
    Predictions,
    Scores,
    TauSweep,
    accuracy,
    linearized,
    paired_differences,
    predict,
    score,
    tau_sweep,
)
from ..files import LOCK, provenance, read_json, reserved, write_json, write_or_keep
from ..language import Question, Task, description_of, load_model, load_task
from ..training import Run, finetune, save_run

# small data, several epochs: the regime of the paper's tasks
DEMO = {"task": "everyday", "model": "smollm2-135m", "steps": 200, "train_size": 160, "batch_size": 4, "samples": 10}
METHODS = ("before training", "AdamW", "IVON@mean", "IVON")
METRICS_FILE = "metrics.json"


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
    taus: Sequence[float] = (),
    weights: bool = True,
    report: bool = True,
    progress: bool = True,
    say=print,
) -> dict[str, Scores]:
    """Finetune with AdamW and with IVON, evaluate four ways, and write everything to a folder.

    Args:
        out: gets ``metrics.json``, ``adamw/`` and ``ivon/`` (adapters, posterior), ``predictions/`` (logits [S, N, C])
            and ``report.html``. A former demo there is replaced file by file.
        taus: temperatures at which IVON is sampled besides 0 (the mean) and 1 (the posterior); the report draws the
            linearised curve between.
        weights: keep the adapters and the posterior.
        report: write ``report.html``.

    Returns:
        method → :class:`Scores` on the test split.
    """
    out, taus = Path(out), _checked(Path(out), taus)
    write_report = _report_html() if report else None  # ask for plotly now rather than after all the work
    with reserved(out):  # what cannot be written is found out before training
        clock = Clock(say)
        with clock.phase("load model and questions"):
            base, data = load_model(model, dtype=dtype, progress=progress), load_task(task, hub=hub)
        questions = data.test[:test_size]
        common = {"steps": steps, "train_size": train_size, "batch_size": batch_size, "seed": seed, "format": format}
        results, runs, sweep = _compared(base, data, questions, common, samples, taus, clock, progress)
        used = runs["ivon"].config["train_size"]  # there may be fewer than were asked for
        facts = {"task": task, "model": model, "split": data.splits["test"], **common, "train_size": used}
        sweep = TauSweep(sweep.taus, sweep.logits, sweep.labels, sweep.linear, sweep.metadata | facts)
        for method, tau in (("IVON@mean", 0.0), ("IVON", 1.0)):
            drawn = sweep.predictions(tau, samples if tau else 1)
            results[method] = Predictions(
                drawn.logits, drawn.labels, {**facts, "samples": samples if tau else 0, "tau": tau}
            )
        scores = {method: score(results[method]) for method in METHODS}
        record = {
            "scores": {method: {**s, "intervals": s.intervals} for method, s in scores.items()},
            "paired": paired_differences(results["AdamW"], results["IVON"]),
            "config": {**facts, "samples": samples, "questions": len(questions), "lora": _lora(base)},
            "settings": {optimizer: run.config["settings"] for optimizer, run in runs.items()},
            "history": {optimizer: run.history for optimizer, run in runs.items()},
            "seconds": clock.seconds,
            "provenance": provenance(),
        }
        with clock.phase("write results"):

            def write(folder: Path) -> None:
                _write(folder, results, runs if weights else {}, sweep, record)
                if write_report:
                    _write_report(write_report, folder / "report.html", scores, results, sweep, record)

            write_or_keep(lambda folder: _whole_or_absent(write, folder), out)
    return scores


def _whole_or_absent(write, folder: Path) -> None:
    """Write a demo; where there was none, leave nothing half-written."""
    before = (folder / METRICS_FILE).exists()
    try:
        write(folder)
    except BaseException:
        if not before:
            for path in folder.iterdir():
                if path.name != LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


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
    if out.exists() and any(out.iterdir()) and not (out / METRICS_FILE).exists():
        raise FileExistsError(f"{out} holds other files: choose another folder with --out.")
    taus = {0.0, 1.0, *taus}
    if not all(0 <= tau < float("inf") for tau in taus):
        raise ValueError(f"taus are {', '.join(f'{tau:g}' for tau in taus)}; expected finite numbers of at least 0.")
    return taus


def _compared(
    base: nn.Module, data: Task, questions: list[Question], common: dict, samples: int, taus: set[float], clock: Clock,
    progress: bool,
) -> tuple[dict[str, Predictions], dict[str, Run], TauSweep]:  # fmt: skip
    """Predictions before training and of AdamW, the runs of both optimizers, and IVON's sweep over τ."""
    results: dict[str, Predictions] = {}
    runs: dict[str, Run] = {}
    with clock.phase("evaluate before training"):
        results["before training"] = predict(base, questions, format=common["format"], progress=progress)
    for optimizer, title in (("adamw", "AdamW"), ("ivon", "IVON")):
        with clock.phase(f"finetune with {title}"):
            runs[optimizer] = finetune(base, data, optimizer=optimizer, progress=progress, **common)
    with clock.phase("evaluate AdamW"):
        results["AdamW"] = predict(runs["adamw"], questions, progress=progress)
    with clock.phase(f"evaluate IVON at the mean and with {samples} draws"):
        sweep = tau_sweep(runs["ivon"], questions, taus=taus, samples=samples, progress=progress)
    with clock.phase("linearise IVON for every τ"):
        line = linearized(runs["ivon"], questions, progress=progress)
    return results, runs, TauSweep(sweep.taus, sweep.logits, sweep.labels, line, sweep.metadata)


def _write(out: Path, results: dict, runs: dict[str, Run], sweep: TauSweep, record: dict) -> None:
    for method, predictions in results.items():
        name = method.lower().replace(" ", "-").replace("@", "-")
        predictions.save(out / "predictions" / f"{name}.safetensors")
    sweep.save(out / "predictions" / "tau-sweep.safetensors")
    for optimizer, run in runs.items():
        save_run(run, out / optimizer, overwrite=True)
    write_json(out / METRICS_FILE, record)


def table(scores: dict[str, Scores]) -> str:
    """The results as a plain-text table with 95 % intervals."""
    lines = [f"{'':16}" + "".join(f"{name.upper():>24}" for name in METRICS)]
    for method, values in scores.items():
        cells = []
        for name in METRICS:
            low, high = values.intervals[name]
            cells.append(f"{values[name]:.3f} [{low:.3f}, {high:.3f}]".rjust(24))
        lines.append(f"{method:16}" + "".join(cells))
    return "\n".join(lines)


def summarize(folders: Sequence[Path]) -> dict:
    """Mean and standard error over the seeds of several demo folders, per method and metric."""
    records = [read_json(Path(folder) / METRICS_FILE) for folder in folders]
    kept = [{k: v for k, v in r["config"].items() if k != "seed"} for r in records]
    if any(k != kept[0] for k in kept) or any(r["settings"] != records[0]["settings"] for r in records):
        raise ValueError("These runs differ in more than the seed, so they do not belong in one summary.")
    out: dict = {"seeds": [r["config"]["seed"] for r in records], "config": kept[0], "scores": {}}
    for method in METHODS:
        out["scores"][method] = {}
        for name in METRICS:
            values = torch.tensor([r["scores"][method][name] for r in records], dtype=torch.float64)
            error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
            out["scores"][method][name] = {"mean": float(values.mean()), "se": error, "values": values.tolist()}
    for name in METRICS:
        pairs = [(r["scores"]["IVON"][name], r["scores"]["AdamW"][name]) for r in records]
        gap = torch.tensor([ivon - adamw for ivon, adamw in pairs], dtype=torch.float64)
        out.setdefault("ivon_minus_adamw", {})[name] = {"mean": float(gap.mean()), "values": gap.tolist()}
    out["settings"] = records[0]["settings"]
    out["seconds"] = [r["seconds"] for r in records]
    out["provenance"] = records[-1]["provenance"]
    return out


def _lora(model: nn.Module) -> dict:
    settings = description_of(model)["lora"]
    return {**settings, "targets": settings["targets"] or sorted(model.peft_config["default"].target_modules)}


def _report_html():
    try:
        from ..plots import report_html
    except ModuleNotFoundError as error:
        if error.name != "plotly":
            raise
        raise ModuleNotFoundError(
            "The report needs plotly: pip install 'ivon-lora-lite[notebooks]', or pass --no-report."
        ) from error
    return report_html


def _write_report(write, path: Path, scores: dict, results: dict, sweep: TauSweep, record: dict) -> None:
    config, made = record["config"], record["provenance"]
    note = (
        f"{config['model']} on {config['task']} ({config['train_size']} training questions, {config['steps']} steps of "
        f"{config['batch_size']}, {config['questions']} test questions), seed {config['seed']}; {made['device']}, "
        f"{sum(record['seconds'].values()):.0f} s; {made['date']}, commit {made['commit']}, torch "
        f"{made['versions']['torch']}, transformers {made['versions']['transformers']}."
    )
    diagrams = {m: (results[m].ensemble(), results[m].labels) for m in METHODS[1:]}
    right = {m: float(accuracy(p, y)) for m, (p, y) in diagrams.items()}
    titles = {f"{m} (accuracy {right[m]:.2f})": pair for m, pair in diagrams.items()}
    write(path, "IVON-LoRA demo: AdamW against IVON", scores, titles, sweep, note)
