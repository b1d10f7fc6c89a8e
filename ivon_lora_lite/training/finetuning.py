"""Finetuning: a thin layer over ``transformers.Trainer``, for multiple-choice questions.

:class:`IVONTrainer` is ``Trainer`` with IVON: it runs every forward and backward pass at a draw. :func:`finetune` adds
the questions, and runs AdamW the same way for comparison.
"""

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import reduce
from operator import index
from typing import Any, Protocol

from torch import Tensor, float16, nn
from torch.nn.utils import parametrize
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, trainer as transformers_trainer

from ..checks import check_counts, check_known
from ..language import (
    Question,
    Task,
    answer_logits,
    answer_loss,
    check_askable,
    collate,
    description_of,
    format_named,
    reset_lora,
    tokenizer_of,
)
from ..posterior import GaussianPosterior, check_saveable, put_weights, read_weights, unwrapped
from .callbacks import Bar, Evaluation
from .checkpoints import check_attachments, checkpoints, fingerprint
from .presets import check_settings, completed, hyperparameters, run_options
from .run import Run
from .trainer import IVONTrainer, check_device

OPTIMIZERS = ("ivon", "adamw")
SCHEDULES = ("linear", "constant")


class Attached(Protocol):
    """A callback of the Trainer that belongs to an :class:`Attachment`.

    If it has a method ``see(model, batch, format)``, that is called before every forward pass of training.
    """

    def finish(self, run: Run) -> Run:
        """The run, extended by what was learned besides the weights."""


class Attachment(Protocol):
    """Settings of something that is put on a model for the length of training, such as gates or learned noise."""

    def attach(self, model: nn.Module, seed: int) -> AbstractContextManager[Attached]:
        """Within the context it is on the model; afterwards the model is as it was."""


def finetune(
    model: nn.Module,
    task: Task | Sequence[Question],
    *,
    optimizer: str = "ivon",
    steps: int | None = None,
    seed: int = 21,
    batch_size: int = 4,
    accumulation: int = 1,
    train_size: int | None = None,
    format: str | None = None,
    preset: str = "small",
    validation: Sequence[Question] | None = None,
    eval_every: int | None = None,
    eval_size: int | None = None,
    output_dir: str | os.PathLike | None = None,
    save_every: int = 0,
    resume: bool = False,
    start: Mapping[str, Tensor] | None = None,
    schedule: str = "linear",
    gates: Attachment | None = None,
    attachments: Sequence[Attachment] = (),
    callbacks: Sequence[TrainerCallback] = (),
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Finetune a model's LoRA weights on multiple-choice questions with IVON or AdamW.

    LoRA starts afresh from ``seed``, so several runs can use one model after another; from an adapter that
    ``load_model(adapter=…)`` read, every run continues instead (:func:`reset_lora`). With the same seed both optimizers
    see the same questions in the same order.

    Args:
        model: from :func:`load_model`, or a PEFT model of your own with ``model.tokenizer`` set.
        task: a task, or training questions.
        optimizer: ``"ivon"`` or ``"adamw"``.
        steps: optimizer steps; default: the preset's, 200 or the paper's 10,000.
        seed: of LoRA's start, the order of questions, dropout, and IVON's draws.
        batch_size: questions per forward pass.
        accumulation: forward passes per step.
        train_size: use only this many questions, from the start.
        format: ``"letter"`` (the paper's), ``"text"`` (for models below about 0.5 B parameters) or ``"class"`` (a
            sequence classifier); default: the preset's.
        preset: where settings come from that are not given: ``"small"`` (measured on SmolLM2-135M) or ``"paper"``.
        validation: questions to evaluate on during training; default: the task's own.
        eval_every: steps between evaluations at the mean (0: none); default: the preset's, if there are questions.
        eval_size: evaluate on only this many of them, from the start.
        output_dir: folder for checkpoints.
        save_every: steps between checkpoints (0: none).
        resume: continue from the last whole checkpoint in ``output_dir``; start afresh if there is none.
        start: begin from these LoRA weights, such as another run's ``weights``, instead of fresh ones.
        schedule: of the learning rate: ``"linear"`` decays to 0, ``"constant"`` does not.
        gates: learn ranks and bit widths (B-LoRA): ``ivon_lora_lite.gates.GateSettings()``. Gates are trained by an
            Adam of their own. With IVON the Gaussian is over the weights before the gates, and draws go through them.
        attachments: more that is on the model while it is trained, such as
            ``ivon_lora_lite.methods.BlobSettings()`` (with ``optimizer="adamw"``).
        callbacks: more callbacks for the Trainer.
        progress: show progress bars.
        settings: hyperparameters that replace the preset's: ``lr``, and for IVON ``ess, hess_init, beta1, beta2,
            weight_decay, clip_radius, hess_approx, mc_samples, rescale_lr …``. ``ess="sqrt"`` is λ = 5000 √N, and
            ``prior="per_matrix"`` fits δ to every matrix (Cong et al. 2025).

    Returns:
        A :class:`Run`.

    Raises:
        ValueError: an unknown option, or one outside its range; ``start`` does not fit the model; the checkpoints in
            ``output_dir`` are of a run with other settings.
    """
    if isinstance(model, nn.parallel.DataParallel | nn.parallel.DistributedDataParallel):  # the Trainer's own task
        model = unwrapped(model)
    check_saveable(model)
    name, questions, held_out = _questions(task, train_size, validation, eval_size)
    options = run_options(preset, steps=steps, format=format, eval_every=eval_every if held_out or eval_every else 0)
    steps, format, eval_every = options["steps"], options["format"], options["eval_every"]
    check_choices(optimizer, format, schedule)
    check_settings(optimizer, settings)
    check_counts(steps=steps, batch_size=batch_size, accumulation=accumulation)
    steps, batch_size, accumulation, seed = map(index, (steps, batch_size, accumulation, seed))  # NumPy's too
    if eval_every and not held_out:
        raise ValueError("eval_every needs validation questions: give validation=, which training must not contain.")
    for asked in (questions, held_out if eval_every else []):
        check_askable(model, asked, format)
    attachments = [*([gates] if gates else []), *attachments]
    check_attachments(attachments, optimizer, bool(save_every or resume), callbacks)
    config = {
        "task": name, "optimizer": optimizer, "steps": steps, "seed": seed, "batch_size": batch_size,
        "accumulation": accumulation, "train_size": len(questions), "format": format, "schedule": schedule,
        "continued": start is not None,
        "settings": completed(hyperparameters(optimizer, preset, name, steps) | settings, len(questions)),
        "model": description_of(model),
        "questions": fingerprint(questions),
        **({"data": task.data} if isinstance(task, Task) and task.data else {}),
        **({"classes": list(questions[0].choices)} if format == "class" else {}),
    }  # fmt: skip
    with ExitStack() as stack:
        evaluation = Evaluation(held_out, format, eval_every) if eval_every else None
        callbacks = [*([evaluation] if evaluation else []), *callbacks]
        files, known = [c.file for c in callbacks if hasattr(c, "file")], {**config, "eval_every": eval_every}
        folder, last = stack.enter_context(checkpoints(output_dir, known, files, save_every > 0, resume))
        reset_lora(model, seed)
        if start is not None:
            put_weights(model, start)
        attached = [stack.enter_context(attachment.attach(model, seed)) for attachment in attachments]
        trainer = AnswerTrainer(
            format=format,
            attached=attached,
            model=model,
            args=_arguments(model, config, folder, save_every, progress),
            train_dataset=questions,
            data_collator=lambda batch: collate(batch, tokenizer_of(model), format),
            callbacks=[*attached, *callbacks],
            ivon={**config["settings"], "seed": seed} if optimizer == "ivon" else None,
        )
        started = time.perf_counter()
        try:
            trainer.train(resume_from_checkpoint=last)
        finally:
            model.eval()
        seconds = time.perf_counter() - started
    history = sorted([*trainer.state.log_history, *(evaluation.history if evaluation else [])], key=lambda r: r["step"])
    posterior = None
    if optimizer == "ivon":
        posterior = GaussianPosterior.from_optimizer(trainer.ivon_optimizer, model, task=name, seed=seed)
    run = Run(model, read_weights(model), posterior, config, history, seconds)
    check_finite_run(run, trainer)
    return reduce(lambda run, one: one.finish(run), attached, run)


def check_choices(optimizer: str, format: str, schedule: str = "linear") -> None:
    """Refuse an unknown optimizer, answer format or schedule of the learning rate."""
    check_known("optimizer", optimizer, OPTIMIZERS)
    format_named(format)
    check_known("schedule", schedule, SCHEDULES)


def check_finite_run(run: Run, trainer: IVONTrainer) -> None:
    """Refuse a run that blew up, so that it is neither saved nor scored.

    Raises:
        FloatingPointError: a weight is not finite, or no step had finite gradients.
    """
    broken = [name for name, w in run.weights.items() if not w.isfinite().all()]
    if broken:
        raise FloatingPointError(f"Training diverged: {broken[0]} is not finite. Lower the learning rate.")
    optimizer = trainer.ivon_optimizer
    if optimizer is not None and (
        optimizer.skipped_steps >= run.config["steps"] or not any(state["step"] for state in optimizer.state.values())
    ):
        raise FloatingPointError(
            "No step had finite gradients, so nothing was learned: the loss overflows at every draw. Is the base model "
            "sound, and the noise (1/√(ess · hess_init)) not too large?"
        )


def _questions(
    task: Task | Sequence[Question], train_size: int | None, validation: Sequence[Question] | None, size: int | None
) -> tuple[str, list[Question], list[Question]]:
    """The task's name, training questions and validation questions."""
    name, train, held_out = "questions", task, []
    if isinstance(task, Task):
        name, train, held_out = task.name, task.train, task.validation
    if not (train := list(train)[:train_size]):
        raise ValueError("There are no training questions.")
    return name, train, list(held_out if validation is None else validation)[:size]


def _arguments(model: nn.Module, config: dict, folder: str, save_every: int, progress: bool) -> TrainingArguments:
    """A run's settings as the Trainer wants them."""
    ivon, settings, cuda = config["optimizer"] == "ivon", config["settings"], model.device.type == "cuda"
    args = TrainingArguments(
        output_dir=folder,
        max_steps=config["steps"],
        per_device_train_batch_size=config["batch_size"],
        gradient_accumulation_steps=config["accumulation"],
        learning_rate=settings["lr"],
        weight_decay=0.0 if ivon else settings["weight_decay"],
        max_grad_norm=0.0 if ivon else 1.0,
        lr_scheduler_type=config["schedule"],
        seed=config["seed"],
        data_seed=config["seed"],
        logging_steps=max(1, min(10, config["steps"] // 10)),
        save_strategy="steps" if save_every else "no",
        save_steps=save_every or 500,
        save_total_limit=2,
        eval_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=not progress,
        use_cpu=model.device.type == "cpu",
        # fp16 loses small gradients without a scale of the loss; bf16 and fp32 do not
        fp16=cuda and (config["model"].get("dtype") == "float16" or next(model.parameters()).dtype == float16),
        dataloader_pin_memory=cuda,
        label_names=["answers"],
        logging_nan_inf_filter=False,  # a NaN must not be logged as the last finite loss
    )
    args._n_gpu = min(args.n_gpu, 1)  # DataParallel would multiply the batch and cut packed questions in two
    check_device(model, args.device)
    return args


class AnswerTrainer(IVONTrainer):
    """Trainer whose loss is the cross-entropy of answer logits, with a bar instead of a line per log.

    Args:
        format: the answer format of the batches.
        attached: what is told of every batch, if it wants to see it.
    """

    def __init__(self, *args, format: str, attached: Sequence[Attached] = (), **kwargs):
        super().__init__(*args, **kwargs)
        self.format = format
        self.watching = [one for one in attached if hasattr(one, "see")]
        # what is computed again in the backward pass would miss what the forward pass had cached
        again = any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules())
        self.caching = nullcontext if again else parametrize.cached
        self.remove_callback(PrinterCallback)
        # in a notebook it is another class, which shows a table with a row for every log
        if self.pop_callback(transformers_trainer.DEFAULT_PROGRESS_CALLBACK):
            self.add_callback(Bar)

    def log(self, logs, *args, **kwargs):
        loss = logs.get("loss")
        if self.ivon_optimizer is None and loss is not None and not math.isfinite(float(loss)):
            raise FloatingPointError(
                f"The loss is {loss} at step {self.state.global_step}: lower the learning rate; is the model sound?"
            )
        super().log(logs, *args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        for one in self.watching:
            one.see(model, inputs, self.format)
        with self.caching():  # PEFT asks for every weight twice; gates, if there are any, act once
            logits = answer_logits(model, inputs, self.format)
        loss = answer_loss(logits, inputs["answers"])
        return (loss, {"logits": logits}) if return_outputs else loss
