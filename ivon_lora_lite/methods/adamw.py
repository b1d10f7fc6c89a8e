"""AdamW: one point, no uncertainty over weights; at the end of training, or where validation was best."""

import shutil
from dataclasses import replace

from ..evaluation import predict
from ..training import finetune
from .base import Bench, Method, Result, training_options
from .keep_best import BEST, KeepBest


def trained(bench: Bench, optimizer: str, samples: int = 0) -> Result:
    """Finetune with an optimizer, also keep the weights with the lowest validation NLL, and predict."""
    s, own = bench.settings, bench.training()
    best = KeepBest(bench.validation, own["format"], max(1, own["steps"] // s.evaluations))
    checkpoints = {}
    if s.checkpoint_every:
        checkpoints = {"output_dir": bench.checkpoints, "save_every": s.checkpoint_every, "resume": True}
    run = finetune(bench.model, bench.task, optimizer=optimizer, callbacks=[best], **checkpoints, **own)
    history = sorted([*run.history, *best.history], key=lambda record: record["step"])
    run = replace(run, history=history, seconds=run.seconds - best.seconds)  # without the evaluations
    best.save(bench.folder)
    shutil.rmtree(bench.checkpoints, ignore_errors=True)
    predictions = predict(run, bench.questions, samples=samples, progress=bench.progress)
    seconds = {"train": run.seconds}
    return Result(predictions, run, seconds, 2.0 if samples else 1.0, samples or 1, {"best_step": best.step})


def _early(bench: Bench) -> Result:
    best = KeepBest.load(bench.finished("adamw") / BEST)
    run = replace(bench.run, weights=best.weights)
    return Result(predict(run, bench.questions, progress=bench.progress), facts={"best_step": best.step})


ADAMW = Method(
    "adamw",
    "AdamW",
    "AdamW: one point, no uncertainty over weights",
    lambda bench: trained(bench, "adamw"),
    settings=training_options("adamw"),
)
EARLY = Method(
    "adamw@early",
    "AdamW, early-stopped",
    "AdamW, early-stopped: its weights at the lowest validation NLL",
    _early,
    stands_on="adamw",
)
