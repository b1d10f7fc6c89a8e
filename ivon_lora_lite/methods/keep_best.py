"""Validation scores along training, and the weights where they were best."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..files import read_tensors, write_tensors
from ..language import Question
from ..posterior import read_weights
from ..training import Evaluation

BEST = "best.safetensors"
FORMAT = "ivon_lora_lite.KeepBest/1"


class KeepBest(Evaluation):
    """Evaluate every few steps, and keep the weights at the lowest validation NLL (early stopping).

    A step's ``seconds`` in ``history`` are those of training alone: evaluating does not count. The state goes into
    checkpoints, so a resumed run ends with the same history and the same weights.

    Attributes:
        history: one dict per evaluation.
        weights: name → weights at the best evaluation.
        step: its step.
        seconds: spent on evaluating.
    """

    file, reads_weights = BEST, True

    def __init__(self, questions: Sequence[Question], format: str, every: int):
        super().__init__(questions, format, every)
        self.weights: dict[str, Tensor] = {}
        self.step, self.seconds, self._before = 0, 0.0, 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / BEST
        if state.global_step and file.is_file():
            former = KeepBest.load(file)
            self.history, self.weights, self.step = former.history, former.weights, former.step
            self._before = self.history[-1]["seconds"] if self.history else 0.0

    def on_step_end(self, args, state, control, model=None, **kwargs):
        started, count = time.perf_counter(), len(self.history)
        super().on_step_end(args, state, control, model=model, **kwargs)
        if len(self.history) == count:
            return
        record = self.history[-1]
        record["seconds"] = self._before + started - self.started - self.seconds
        self.seconds += time.perf_counter() - started
        if all(record["eval_nll"] < other["eval_nll"] for other in self.history[:-1]):
            self.step = state.global_step
            self.weights = read_weights(model)

    def on_save(self, args, state, control, **kwargs):
        self.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def save(self, folder: str | os.PathLike) -> Path:
        """Write ``best.safetensors`` into a folder."""
        return write_tensors(Path(folder) / BEST, FORMAT, self.weights, {"step": self.step, "history": self.history})

    @classmethod
    def load(cls, path: str | os.PathLike) -> KeepBest:
        """Read a file of :meth:`save`: weights, step and history."""
        weights, facts = read_tensors(path, FORMAT, "early-stopped weights")
        out = cls([], "text", 1)
        out.weights, out.step, out.history = weights, facts["step"], facts["history"]
        return out
