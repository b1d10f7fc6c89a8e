"""IVON in ``transformers.Trainer``: two changed lines in a script.

from ivon_lora_lite import IVONTrainer
trainer = IVONTrainer(model, args, train_dataset=..., ivon={"ess": 1e6, "hess_init": 1e-3})
"""

import copy
import warnings
from collections.abc import Callable

import torch
from transformers import Trainer, TrainerCallback

from ..checks import check_known
from ..ivon import IVON, advice_by_topic
from ..posterior import GaussianPosterior, Posterior, load_posterior, lora_parameters, unwrapped
from .prior import PerMatrixIVON

AVERAGED = ("ForSequenceClassification", "ForTokenClassification", "ForMultipleChoice")
AVERAGED += ("ForCausalLM", "LMHeadModel", "ForMaskedLM")
LANGUAGE = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
PRIORS = {"fixed": IVON, "per_matrix": PerMatrixIVON}
LOGGED = ("sigma_mean", "variance_drift", "snr_p50", "clipped", "hess_moved", "kl", "skipped_steps")
LOGGED += ("update_p10", "update_p50", "update_p90")


class DropSkipped(TrainerCallback):
    """Drops the draw of a step that GradScaler skipped: the Trainer clears the model's gradients, not the optimizer's.

    Else a draw at which the loss overflows would stay until the end.
    """

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        if getattr(optimizer, "step_was_skipped", False):
            optimizer.zero_grad()


class IVONMixin:
    """Put it before a trainer class of transformers or TRL: ``class MyTrainer(IVONMixin, SFTTrainer)``.

    Args:
        ivon: arguments of :class:`IVON`; the learning rate is the training arguments' unless it has ``lr``. With
            ``prior="per_matrix"`` every matrix has a prior of its own (:func:`PerMatrixIVON`). Without
            ``ivon`` the trainer is the one that it extends (unless it is handed an IVON by ``optimizers=``).
        eval_samples: evaluate and predict with this number of draws from the posterior instead of at the mean. What the
            head predicts is averaged: probabilities of a classifier or a language model (logits become their log),
            probabilities per label, or the numbers of a regression; the loss is the average of the draws' losses.
        posterior: what to draw from when nothing was trained, such as ``load_posterior(folder)``.

    Raises:
        ValueError: what cannot work: DeepSpeed or FSDP, several draws per step with accumulation or clipping,
            ``eval_samples`` without a posterior or with a head whose predictions have no average.
    """

    def __init__(self, *args, ivon: dict | None = None, eval_samples: int = 0, posterior=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(DropSkipped())
        self._ivon_arguments = ivon
        self.eval_samples = eval_samples
        self._given: Posterior | None = posterior  # from outside, or that of the best checkpoint
        self._posterior: Posterior | None = None  # while evaluating
        self._warned: set[str] = set()
        # transformers takes every forward(**kwargs) to divide its loss by the number of items; only these do
        language = head_of(self.accelerator.unwrap_model(self.model)).endswith(LANGUAGE)
        if not language and (ivon is not None or self.ivon_optimizer is not None):
            self.model_accepts_loss_kwargs = False
        if ivon is not None:
            if self.optimizer is not None:
                raise ValueError("ivon= makes the optimizer, and optimizers= has one already: leave one of them out.")
            self._check_loop(ivon.get("mc_samples", 1))
            check_known("prior", ivon.get("prior", "fixed"), PRIORS)

    def _check_loop(self, draws: int) -> None:
        if draws > 1 and hasattr(self, "_step"):  # GRPO's and its kin's
            raise ValueError(f"mc_samples={draws} needs a trainer that does not count its steps itself: use 1.")
        if getattr(self, "is_deepspeed_enabled", False) or getattr(self, "is_fsdp_enabled", False):
            raise ValueError("IVON needs whole parameters on every process: use DDP instead of DeepSpeed or FSDP.")
        averaged = self.args.gradient_accumulation_steps == 1 and not self.args.max_grad_norm and not self.args.fp16
        if draws > 1 and not averaged:
            raise ValueError(
                f"mc_samples={draws} needs gradient_accumulation_steps=1, max_grad_norm=0 and no fp16: each gradient "
                "has to meet its own draw. Accumulation with one draw costs the same."
            )

    @property
    def ivon_optimizer(self) -> IVON | None:
        """The IVON optimizer, without Accelerate's wrapper; None before training or with another optimizer."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return optimizer if isinstance(optimizer, IVON) else None

    def posterior(self) -> Posterior | None:
        """The Gaussian that training left: of the best checkpoint, if that was loaded at the end; else of now."""
        if self._given is not None or self.ivon_optimizer is None:
            return self._given
        return GaussianPosterior.from_optimizer(self.ivon_optimizer, self.accelerator.unwrap_model(self.model))

    def create_optimizer(self, *args, **kwargs):
        if self.optimizer is None and self._ivon_arguments is not None:
            options = {"lr": self.args.learning_rate, **self._ivon_arguments}
            make = PRIORS[options.pop("prior", "fixed")]
            self.optimizer = make(lora_parameters(self.model), **options)
        return super().create_optimizer(*args, **kwargs)

    def training_step(self, model, inputs, *args, **kwargs):
        optimizer = self.ivon_optimizer
        if optimizer is None:
            return super().training_step(model, inputs, *args, **kwargs)
        losses = []
        for _ in range(optimizer.mc_samples):
            with optimizer.sampled_params(train=True):
                losses.append(super().training_step(model, copy.copy(inputs), *args, **kwargs))
        return torch.stack(losses).mean()

    def train(self, *args, **kwargs):
        self._given = None
        return super().train(*args, **kwargs)

    def _load_best_model(self):
        super()._load_best_model()
        if self.ivon_optimizer is not None:  # the optimizer still holds the last step's mean and variance
            self._given = load_posterior(self.state.best_model_checkpoint)

    def evaluation_loop(self, *args, **kwargs):
        if self.eval_samples:
            self._posterior = self.posterior()
            if self._posterior is None:
                raise ValueError(
                    "eval_samples needs a posterior: train first, or give posterior=GaussianPosterior.load(…)."
                )
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self._posterior = None

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        if self._posterior is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        losses, total, labels = [], 0.0, None
        for seed in range(self.eval_samples):  # draw `seed` is the same for every batch
            with self._posterior.applied(self.accelerator.unwrap_model(model), seed):
                loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
            losses.append(loss)
            if logits is not None:
                to_average, back = averaging(self.accelerator.unwrap_model(model), logits)
                total = total + to_average(logits.float()) / self.eval_samples
        loss = None if losses[0] is None else torch.stack(losses).mean()
        return loss, None if isinstance(total, float) else back(total), labels

    def log(self, logs, *args, **kwargs):
        optimizer = self.ivon_optimizer
        if optimizer is not None and "loss" in logs:
            now = optimizer.diagnostics()
            logs.update({f"ivon_{name}": now[name] for name in LOGGED if name in now})
            for topic, sentence in advice_by_topic(now).items():
                if topic not in self._warned:
                    self._warned.add(topic)
                    warnings.warn(sentence, stacklevel=2)
        super().log(logs, *args, **kwargs)

    def _save(self, output_dir=None, state_dict=None):
        # without a Hub PEFT says twice, with every checkpoint, that it cannot look there
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unable to fetch remote file|Could not find a config file")
            super()._save(output_dir, state_dict)
        if self.ivon_optimizer is not None:
            self.posterior().save(output_dir or self.args.output_dir)


def head_of(model) -> str:
    """The name of a model's class, without PEFT around it."""
    return type(unwrapped(model.get_base_model() if hasattr(model, "get_base_model") else model)).__name__


def check_device(model: torch.nn.Module, device: torch.device) -> None:
    """Refuse a model on another GPU than the one on which the Trainer would put the questions."""
    spread = len(set(getattr(model, "hf_device_map", {}).values())) > 1
    if not spread and model.device.type == device.type == "cuda" and (model.device.index or 0) != (device.index or 0):
        raise ValueError(
            f"The model is on {model.device}, and the Trainer of this process works on {device}: start Python with "
            f"CUDA_VISIBLE_DEVICES={model.device.index or 0}, and leave device= out."
        )


def averaging(model, logits) -> tuple[Callable, Callable]:
    """How a head's outputs become what draws are averaged in, and how the average becomes an output again.

    Raises:
        ValueError: the head predicts something that has no average, such as spans, sequences or hidden states.
    """
    head = head_of(model)
    numbers = isinstance(logits, torch.Tensor) and logits.is_floating_point()  # generated tokens are none
    if not numbers or not head.endswith(AVERAGED):
        raise ValueError(
            f"eval_samples cannot average what {head} predicts: only the logits of classifiers, regressions and "
            "language models have an average. Use eval_samples=0, or draw with posterior.applied(model, seed)."
        )
    problem = getattr(model.config, "problem_type", None)
    if problem == "multi_label_classification":
        return torch.sigmoid, lambda p: p.logit(eps=torch.finfo(p.dtype).eps)
    if head.endswith("ForSequenceClassification") and (problem == "regression" or logits.shape[-1] == 1):
        return (lambda x: x), (lambda x: x)
    return (lambda x: x.softmax(-1)), (lambda p: p.clamp(min=torch.finfo(p.dtype).tiny).log())


class IVONTrainer(IVONMixin, Trainer):
    """``transformers.Trainer`` that trains with IVON; see :class:`IVONMixin` for its new arguments."""
