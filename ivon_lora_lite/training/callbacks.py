"""What happens beside the Trainer's steps: a progress bar, and scores on validation questions."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import ProgressCallback, TrainerCallback

from ..evaluation import predict, score
from ..files import read_json, write_json
from ..language import Question

EVALUATIONS = "evaluations.json"


class Bar(ProgressCallback):
    """A progress bar that shows the loss."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")


class Evaluation(TrainerCallback):
    """Scores on validation questions, at the mean, every few steps.

    Attributes:
        file: what it adds to every checkpoint.
        history: one dict per evaluation.
    """

    file = EVALUATIONS

    def __init__(self, questions: Sequence[Question], format: str, every: int):
        self.questions, self.format, self.every = list(questions), format, every
        self.history: list[dict] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = time.perf_counter()
        file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / EVALUATIONS
        if state.global_step and file.is_file():  # a resumed run keeps what was evaluated before
            self.history = read_json(file)

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            write_json(Path(args.output_dir) / f"checkpoint-{state.global_step}" / EVALUATIONS, self.history)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            with torch.random.fork_rng():  # evaluating must not change training
                scores = score(predict(model, self.questions, format=self.format), intervals=False)
            record = {f"eval_{k}": v for k, v in scores.items()}
            self.history.append({"step": state.global_step, "seconds": time.perf_counter() - self.started, **record})
