"""IVON in ``transformers.Trainer``: two changed lines in a script.

from ivon_lora_lite import IVONTrainer
trainer = IVONTrainer(model, args, train_dataset=..., ivon={"ess": 1e6, "hess_init": 1e-3})
"""

from __future__ import annotations

import warnings

from transformers import Trainer

from .diagnostics import advice
from .ivon import IVON
from .models import lora_parameters
from .posterior import GaussianPosterior

__all__ = ["IVONMixin", "IVONTrainer"]

LOGGED = ("sigma_mean", "variance_drift", "snr_p50", "clipped", "hess_moved", "kl", "skipped_steps")


class IVONMixin:
    """Put it before a trainer class of transformers or TRL: ``class MyTrainer(IVONMixin, SFTTrainer)``.

    Args:
        ivon: arguments of :class:`IVON`; the learning rate is the training arguments' unless it has ``lr``. Without
            ``ivon`` the trainer is the one that it extends (unless it is handed an IVON by ``optimizers=``).
    """

    def __init__(self, *args, ivon: dict | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self._ivon_arguments = ivon
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

    def log(self, logs, *args, **kwargs):
        optimizer = self.ivon_optimizer
        if optimizer is not None and "loss" in logs:
            now = optimizer.diagnostics()
            logs.update({f"ivon_{name}": now[name] for name in LOGGED if name in now})
            for sentence in advice(now):
                topic = sentence.split(":")[-1]
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
    """``transformers.Trainer`` that trains with IVON; see :class:`IVONMixin` for its one new argument."""
