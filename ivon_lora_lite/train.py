"""Finetuning: a thin layer over ``transformers.Trainer``.

:class:`IVONTrainer` is ``Trainer`` with IVON: it runs every forward and backward pass at a draw. :func:`finetune` adds
the multiple-choice tasks, and runs AdamW the same way for comparison.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments

from .checkpoints import last_checkpoint, remember
from .files import read_json, write_json
from .gates.decisions import Decisions, GatedPosterior
from .gates.training import GateSettings, gated
from .models import reset_lora
from .posterior import GaussianPosterior, Posterior, put_weights, trainable
from .prediction import predict, score
from .presets import hyperparameters
from .scoring import FORMATS, answer_logits, answer_loss, collate
from .tasks import Question, Task
from .trainer import IVONTrainer

__all__ = ["OPTIMIZERS", "Run", "finetune"]

OPTIMIZERS = ("ivon", "adamw")
SCHEDULES = ("linear", "constant")
EVALUATIONS = "evaluations.json"


@dataclass
class Run:
    """A finished finetuning run.

    Attributes:
        model: the model it was made with; :func:`predict` puts the run's weights into it and takes them out again.
        weights: name → final LoRA weights (IVON: the mean m).
        posterior: what to draw from (IVON: the Gaussian), or None (AdamW).
        config: all settings.
        history: one dict per log or evaluation.
        seconds: wall time of training.
        gates: what gates decided, if it was trained with them; ``weights`` and draws are gated already.
    """

    model: nn.Module
    weights: dict[str, Tensor]
    posterior: Posterior | None
    config: dict
    history: list[dict] = field(default_factory=list)
    seconds: float = math.nan
    gates: Decisions | None = None

    def save(self, folder):
        """Write a PEFT adapter, ``posterior.safetensors`` and ``run.json``; see :mod:`ivon_lora_lite.experiment`."""
        from .experiment import save_run

        return save_run(self, folder)


def finetune(
    model: nn.Module,
    task: Task | Sequence[Question],
    *,
    optimizer: str = "ivon",
    steps: int = 200,
    seed: int = 21,
    batch_size: int = 4,
    accumulation: int = 1,
    train_size: int | None = None,
    format: str = "text",
    preset: str = "small",
    eval_every: int = 0,
    eval_size: int | None = None,
    output_dir=None,
    save_every: int = 0,
    resume: bool = False,
    start: Mapping[str, Tensor] | None = None,
    schedule: str = "linear",
    gates: bool | GateSettings = False,
    gate_prior: float | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    progress: bool = True,
    **settings: float,
) -> Run:
    """Finetune a model's LoRA weights on multiple-choice questions with IVON or AdamW.

    LoRA starts afresh from ``seed``, so several runs can use one model after another. With the same seed both
    optimizers see the same questions in the same order.

    Args:
        model: from :func:`load_model`.
        task: a task, or training questions.
        optimizer: ``"ivon"`` or ``"adamw"``.
        steps: optimizer steps.
        seed: of LoRA's start, the order of questions, dropout, and IVON's draws.
        batch_size: questions per forward pass.
        accumulation: forward passes per step.
        train_size: use the first so many training questions.
        format: ``"letter"`` (the paper's) or ``"text"`` (for models below about 0.5 B parameters).
        preset: where settings come from that are not given: ``"small"`` (measured on SmolLM2-135M) or ``"paper"``.
        eval_every: evaluate at the mean on the validation split every so many steps (0: never).
        eval_size: … on so many questions.
        output_dir: folder for checkpoints.
        save_every: write a checkpoint every so many steps (0: none).
        resume: continue from the last whole checkpoint in ``output_dir``; start afresh if there is none.
        start: begin from these LoRA weights, such as another run's ``weights``, instead of fresh ones.
        schedule: of the learning rate: ``"linear"`` decays to 0, ``"constant"`` does not.
        gates: learn ranks and bit widths (B-LoRA, :mod:`ivon_lora_lite.gates`): True, or settings. Gates are trained by
            an Adam of their own. With IVON the Gaussian is over the weights before the gates, and draws go through
            them.
        gate_prior: μ, in nats, instead of the settings' own.
        callbacks: more callbacks for the Trainer.
        progress: show progress bars.
        settings: hyperparameters that replace the preset's: ``lr``, and for IVON ``ess, hess_init, beta1, beta2,
            weight_decay, clip_radius, hess_approx, mc_samples, rescale_lr …``.

    Returns:
        A :class:`Run`.

    Raises:
        ValueError: an unknown option, or one outside its range; ``start`` does not fit the model; the checkpoints in
            ``output_dir`` are of a run with other settings.
    """
    check_choices(optimizer, format)
    if schedule not in SCHEDULES:
        raise ValueError(f"There is no schedule {schedule!r}. Known schedules: {', '.join(SCHEDULES)}.")
    for name, value in {"steps": steps, "batch_size": batch_size, "accumulation": accumulation}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1.")
    name = task.name if isinstance(task, Task) else "questions"
    questions = list(task.train if isinstance(task, Task) else task)[:train_size]
    if not questions:
        raise ValueError("There are no training questions.")
    chosen = hyperparameters(optimizer, preset, name) | settings
    gate_settings = gate_options(gates, gate_prior)
    if gate_settings and (save_every or resume):
        raise ValueError("Runs with gates write no checkpoints: leave save_every and resume out.")
    config = {
        "task": name,
        "optimizer": optimizer,
        "steps": steps,
        "seed": seed,
        "batch_size": batch_size,
        "accumulation": accumulation,
        "train_size": len(questions),
        "format": format,
        "schedule": schedule,
        "continued": start is not None,
        "settings": chosen,
        "model": getattr(model, "description", {}),
    }
    with ExitStack() as stack:
        if output_dir is None:
            if save_every or resume:
                raise ValueError("Checkpoints need a folder: give output_dir.")
            output_dir = stack.enter_context(tempfile.TemporaryDirectory())
        last = last_checkpoint(output_dir, config) if resume else None
        if save_every:
            remember(output_dir, config)
        arguments = TrainingArguments(
            output_dir=str(output_dir),
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            learning_rate=chosen["lr"],
            weight_decay=0.0 if optimizer == "ivon" else chosen["weight_decay"],
            max_grad_norm=0.0 if optimizer == "ivon" else 1.0,
            lr_scheduler_type=schedule,
            seed=seed,
            data_seed=seed,
            logging_steps=max(1, min(10, steps // 10)),
            save_strategy="steps" if save_every else "no",
            save_steps=save_every or 500,
            save_total_limit=2,
            eval_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            disable_tqdm=not progress,
            use_cpu=model.device.type == "cpu",
            # fp16 loses small gradients without a scale of the loss; bf16 and fp32 do not
            fp16=model.device.type == "cuda" and config["model"].get("dtype") == "float16",
            dataloader_pin_memory=model.device.type == "cuda",
            label_names=["answers"],
        )
        reset_lora(model, seed)
        if start is not None:
            put_weights(model, start)
        gating = stack.enter_context(gated(model, gate_settings, seed)) if gate_settings else None
        evaluation = Evaluation(task, format, eval_every, eval_size) if eval_every else None
        trainer = AnswerTrainer(
            model=model,
            args=arguments,
            train_dataset=questions,
            data_collator=lambda batch: collate(batch, model.tokenizer, format),
            callbacks=[*(c for c in (gating, evaluation) if c), *callbacks],
            ivon={**chosen, "seed": seed} if optimizer == "ivon" else None,
        )
        trainer.remove_callback(PrinterCallback)
        if trainer.pop_callback(ProgressCallback):  # a bar, without a line per log: those are in run.history
            trainer.add_callback(Bar)
        started = time.perf_counter()
        try:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        finally:
            model.eval()
        seconds = time.perf_counter() - started
    history = sorted([*trainer.state.log_history, *(evaluation.history if evaluation else [])], key=lambda r: r["step"])
    posterior = None
    if optimizer == "ivon":
        posterior = GaussianPosterior.from_optimizer(trainer.ivon_optimizer, model, task=name, seed=seed)
    weights = {key: p.detach().float().cpu().clone() for key, p in trainable(model).items()}
    if gating is None:
        return Run(model, weights, posterior, config, history, seconds)
    decisions = gating.decisions
    config["gates"] = {**asdict(gate_settings), "decided": decisions.facts()}
    history = sorted([*history, *gating.history], key=lambda r: r["step"])
    if posterior is not None:
        posterior = GatedPosterior(posterior, decisions)
    return Run(model, decisions.apply(weights), posterior, config, history, seconds, decisions)


def gate_options(gates: bool | GateSettings, prior: float | None) -> GateSettings | None:
    """The settings that ``gates`` and ``gate_prior`` stand for; None without gates."""
    if not gates:
        if prior is not None:
            raise ValueError("gate_prior needs gates=True.")
        return None
    settings = GateSettings() if gates is True else gates
    return settings if prior is None else replace(settings, prior=prior)


def check_choices(optimizer: str, format: str) -> None:
    """Refuse an unknown optimizer or answer format."""
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"There is no optimizer {optimizer!r}. Known: {', '.join(OPTIMIZERS)}.")
    if format not in FORMATS:
        raise ValueError(f"There is no answer format {format!r}. Known formats: {', '.join(FORMATS)}.")


class AnswerTrainer(IVONTrainer):
    """Trainer whose loss is the cross-entropy of answer logits."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with parametrize.cached():  # PEFT asks for every weight twice; gates, if there are any, act once
            logits = answer_logits(model, inputs)
        loss = answer_loss(logits, inputs["answers"])
        return (loss, {"logits": logits}) if return_outputs else loss


class Bar(ProgressCallback):
    """A progress bar that shows the loss."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")


class Evaluation(TrainerCallback):
    """Scores on the validation split, at the mean, every so many steps."""

    def __init__(self, task: Task | Sequence[Question], format: str, every: int, size: int | None):
        self.questions = (task.validation if isinstance(task, Task) else list(task))[:size]
        self.format, self.every, self.history = format, every, []

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
