"""The main job, end to end: AdamW against IVON on the same questions, in the same order, with the same budget."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from .experiment import save_run
from .files import provenance, read_json, write_json
from .linearization import linearized
from .metrics import accuracy
from .models import load_model
from .prediction import METRICS, Predictions, Scores, predict, score
from .sweep import TauSweep, tau_sweep
from .tasks import load_task
from .train import Run, finetune

__all__ = ["DEMO", "METHODS", "run_demo", "summarize"]

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
    out = Path(out)
    if out.exists() and any(out.iterdir()) and not (out / METRICS_FILE).exists():
        raise FileExistsError(f"{out} holds other files: choose another folder with --out.")
    taus = {0.0, 1.0, *taus}
    if not all(0 <= tau < float("inf") for tau in taus):
        raise ValueError(f"taus are {', '.join(f'{tau:g}' for tau in taus)}; expected finite numbers of at least 0.")
    write_report = _report_html() if report else None  # ask for plotly now rather than after all the work
    seconds: dict[str, float] = {}

    @contextmanager
    def phase(name: str):
        say(f"· {name}", flush=True)
        started = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - started, 1)

    with phase("load model and questions"):
        base = load_model(model, dtype=dtype)
        data = load_task(task, hub=hub)
    questions = data.test[:test_size]
    common = {"steps": steps, "train_size": train_size, "batch_size": batch_size, "seed": seed, "format": format}
    options = {"format": format, "progress": progress}
    results: dict[str, Predictions] = {}
    with phase("evaluate before training"):
        results["before training"] = predict(base, questions, **options)
    runs: dict[str, Run] = {}
    for optimizer, title in (("adamw", "AdamW"), ("ivon", "IVON")):
        with phase(f"finetune with {title}"):
            runs[optimizer] = finetune(base, data, optimizer=optimizer, progress=progress, **common)
    with phase("evaluate AdamW"):
        results["AdamW"] = predict(runs["adamw"], questions, progress=progress)
    with phase(f"evaluate IVON at the mean and with {samples} draws"):
        sweep = tau_sweep(runs["ivon"], questions, taus=taus, samples=samples, progress=progress)
    with phase("linearise IVON for every τ"):
        line = linearized(runs["ivon"], questions, progress=progress)
    used = runs["ivon"].config["train_size"]  # there may be fewer than were asked for
    facts = {"task": task, "model": model, "split": data.splits["test"], **common, "train_size": used}
    sweep = TauSweep(sweep.taus, sweep.logits, sweep.labels, line, sweep.metadata | facts)
    results["IVON@mean"] = Predictions(sweep.logits[0, :1], sweep.labels, {**facts, "samples": 0, "tau": 0.0})
    posterior = sweep.logits[sweep.taus.index(1.0)]
    results["IVON"] = Predictions(posterior, sweep.labels, {**facts, "samples": samples, "tau": 1.0})
    scores = {method: score(results[method]) for method in METHODS}
    try:
        with phase("write results"):
            for method, predictions in results.items():
                name = method.lower().replace(" ", "-").replace("@", "-")
                predictions.save(out / "predictions" / f"{name}.safetensors")
            sweep.save(out / "predictions" / "tau-sweep.safetensors")
            if weights:
                for optimizer, run in runs.items():
                    save_run(run, out / optimizer, overwrite=True)
            record = {
                "scores": {method: {**s, "intervals": s.intervals} for method, s in scores.items()},
                "paired": paired_differences(results["AdamW"], results["IVON"]),
                "config": {**facts, "samples": samples, "questions": len(questions), "lora": _lora(base)},
                "settings": {optimizer: run.config["settings"] for optimizer, run in runs.items()},
                "history": {optimizer: run.history for optimizer, run in runs.items()},
                "seconds": seconds,
                "provenance": provenance(),
            }
            write_json(out / METRICS_FILE, record)
            if write_report:
                _write_report(write_report, out / "report.html", scores, results, sweep, record)
    except BaseException:
        if not (out / METRICS_FILE).exists():  # then the folder was empty before: leave nothing half-written
            shutil.rmtree(out, ignore_errors=True)
        raise
    return scores


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


def paired_differences(a: Predictions, b: Predictions, resamples: int = 2000, seed: int = 0) -> dict:
    """IVON − AdamW on the same questions: difference and 95 % bootstrap interval of accuracy and NLL."""
    pa, pb, y = a.ensemble().double(), b.ensemble().double(), a.labels
    rows = torch.arange(len(y))
    difference = torch.stack(
        [
            (pb.argmax(-1) == y).double() - (pa.argmax(-1) == y).double(),
            pa[rows, y].clamp(min=1e-300).log() - pb[rows, y].clamp(min=1e-300).log(),
        ]
    )  # [2, N]
    index = torch.randint(len(y), (resamples, len(y)), generator=torch.Generator().manual_seed(seed))
    means = difference[:, index].mean(-1)  # [2, R]
    spans = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=1).T
    return {
        name: {"difference": float(difference[k].mean()), "interval": spans[k].tolist()}
        for k, name in enumerate(("acc", "nll"))
    }


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


def _lora(model) -> dict:
    settings = model.description["lora"]
    return {**settings, "targets": settings["targets"] or sorted(model.peft_config["default"].target_modules)}


def _report_html():
    try:
        from .report import report_html
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
