"""IVON in ``transformers.Trainer``: two changed lines in a script.

from ivon_lora_lite import IVONTrainer
trainer = IVONTrainer(model, args, train_dataset=..., ivon={"ess": 1e6, "hess_init": 1e-3})
"""

import warnings

import torch
from transformers import Trainer

from ..ivon import IVON, advice_by_topic
from ..posterior import GaussianPosterior, lora_parameters

LOGGED = ("sigma_mean", "variance_drift", "snr_p50", "clipped", "hess_moved", "kl", "skipped_steps")


class IVONMixin:
    """Put it before a trainer class of transformers or TRL: ``class MyTrainer(IVONMixin, SFTTrainer)``.

    Args:
        ivon: arguments of :class:`IVON`; the learning rate is the training arguments' unless it has ``lr``. Without
            ``ivon`` the trainer is the one that it extends (unless it is handed an IVON by ``optimizers=``).
        eval_samples: evaluate and predict with this number of draws from the posterior instead of at the mean. Logits
            become the log of the averaged probabilities; the loss is the average of the draws' losses.
    """

    def __init__(self, *args, ivon: dict | None = None, eval_samples: int = 0, **kwargs):
        super().__init__(*args, **kwargs)
        self._ivon_arguments = ivon
        self.eval_samples = eval_samples
        self._posterior: GaussianPosterior | None = None
        self._warned: set[str] = set()

    @property
    def ivon_optimizer(self) -> IVON | None:
        """The IVON optimizer, without Accelerate's wrapper; None before training or with another optimizer."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return optimizer if isinstance(optimizer, IVON) else None

    def create_optimizer(self, *args, **kwargs):
        if self.optimizer is None and self._ivon_arguments is not None:
            options = {"lr": self.args.learning_rate, **self._ivon_arguments}
            self.optimizer = IVON(lora_parameters(self.model), **options)
        return super().create_optimizer(*args, **kwargs)

    def training_step(self, model, inputs, *args, **kwargs):
        if self.ivon_optimizer is None:
            return super().training_step(model, inputs, *args, **kwargs)
        with self.ivon_optimizer.sampled_params(train=True):
            return super().training_step(model, inputs, *args, **kwargs)

    def evaluation_loop(self, *args, **kwargs):
        if self.eval_samples and self.ivon_optimizer is not None:
            model = self.accelerator.unwrap_model(self.model)
            self._posterior = GaussianPosterior.from_optimizer(self.ivon_optimizer, model)
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self._posterior = None

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        if self._posterior is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        losses, total, labels = [], None, None
        for seed in range(self.eval_samples):  # draw `seed` is the same for every batch
            with self._posterior.applied(self.accelerator.unwrap_model(model), seed):
                loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
            losses.append(loss)
            if isinstance(logits, torch.Tensor):
                probs = logits.float().softmax(-1) / self.eval_samples
                total = probs if total is None else total + probs
        loss = None if losses[0] is None else torch.stack(losses).mean()
        return loss, None if total is None else total.clamp(min=torch.finfo(total.dtype).tiny).log(), labels

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
        super()._save(output_dir, state_dict)
        if self.ivon_optimizer is not None:
            posterior = GaussianPosterior.from_optimizer(self.ivon_optimizer, self.accelerator.unwrap_model(self.model))
            posterior.save(output_dir or self.args.output_dir)


class IVONTrainer(IVONMixin, Trainer):
    """``transformers.Trainer`` that trains with IVON; see :class:`IVONMixin` for its two new arguments."""
