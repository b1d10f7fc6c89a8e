"""What BLoB, ScalaBL, PAC-tuning and GIFT-SW share: noise in LoRA while it is trained.

In all but GIFT-SW the size of the noise is learned, with its KL in the loss per question:

    E_q[−log p(y|x)] + β/N · KL[q ‖ prior]

β = 1 is the ELBO; it is a setting, because how much the KL weighs decides how much noise there is. LoRA's own weights
belong to AdamW; the numbers of the noise to an Adam with a learning rate of its own, which decays linearly to 0.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import TrainerCallback

from ..language import Question, Task, format_named
from ..posterior import LoraPair, Posterior, trainable
from ..training import Beside, Run, finetune
from .base import named_pairs


class Owners:
    """Which question of a batch every token belongs to, so that questions can have noise of their own."""

    def __init__(self):
        self.count, self.kept, self.owner = 0, slice(None), torch.full((0, 0), -1)

    def see(self, model: nn.Module, batch: dict, format: str) -> None:
        """Take over a batch before the forward pass."""
        kind = format_named(format)
        places, kept = kind.tokens(model, batch), kind.kept(model, batch)
        self.count, self.kept = len(places), slice(None) if kept is None else kept.cpu()
        self.owner = torch.full(kind.shape(model, batch), -1)
        for number, (rows, tokens) in enumerate(places):
            self.owner[rows.cpu(), tokens.cpu()] = number

    def of(self, x: Tensor) -> tuple[Tensor, int]:
        """The question of every token of a layer's input ``[rows, L, d]`` (−1: padding), and how many there are."""
        if x.dim() < 3:
            raise ValueError(
                "A layer with LoRA sees no single tokens (a pooler?): noise of a question's own needs them."
            )
        every = x.shape[1] == self.owner.shape[1]  # else it runs at some positions only, as the output layer does
        return (self.owner if every else self.owner[:, self.kept]).to(x.device), self.count


def gaussian_kl(mean: Tensor, sigma: Tensor, prior_sigma: float) -> Tensor:
    """KL[N(m, diag σ²) ‖ N(0, σ_p² I)] in nats; differentiable."""
    ratio = sigma / prior_sigma
    return (0.5 * ((mean / prior_sigma).square() + ratio.square() - 1) - ratio.log()).sum()


@dataclass(frozen=True)
class NoiseSettings:
    """Noise in training; a method says what trains under it."""

    method: ClassVar[str]
    training: ClassVar[type]
    optimizer: ClassVar[str] = "adamw"  # IVON has noise of its own

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; expected a finite number above 0.")

    @contextmanager
    def attach(self, model: nn.Module, seed: int) -> Iterator["NoiseTraining"]:
        """Within the context training has noise; it yields what trains it."""
        training = self.training(model, self, seed)
        hooks = [
            module.register_forward_hook(
                lambda m, args, out, name=name: training.changed(name, args[0], out, m.training)
            )
            for name, module in training.modules.items()
        ]
        try:
            yield training
        finally:
            for hook in hooks:
                hook.remove()
            training.detach()

    @classmethod
    def finetune(cls, model: nn.Module, task: Task | Sequence[Question], options: dict) -> Run:
        """:func:`finetune` with these settings; the options are of both."""
        names = {f.name for f in fields(cls)}
        # finetune's own `start` is a mapping
        mine = {name: value for name, value in options.items() if name in names and not isinstance(value, Mapping)}
        others = {name: value for name, value in options.items() if name not in mine}
        return finetune(model, task, optimizer="adamw", attachments=[cls(**mine)], **others)


@dataclass(frozen=True)
class LearnedNoiseSettings(NoiseSettings):
    """How the size of the noise is trained; a method says what its defaults are.

    Attributes:
        start: ε, from which the size of the noise begins.
        kl_weight: β; 1 is the ELBO.
        noise_lr: Adam's learning rate of the noise's numbers, decaying linearly to 0.
    """

    start: float
    kl_weight: float
    noise_lr: float


class NoiseTraining(TrainerCallback, ABC):
    """The noise in the forward passes of training.

    Attributes:
        modules: name of A (and of B, where it has noise too) → its module.
        pairs: name of A → A and B.
        history: one dict per log.
        moves_start: whether training begins elsewhere than where LoRA starts.
    """

    moves_start: ClassVar[bool] = False

    def __init__(self, model: nn.Module, settings: NoiseSettings, seed: int):
        self.settings, self.owners = settings, Owners()
        self.questions: Sequence[Question] = ()
        # mixed: seeded with `seed` itself it would repeat the numbers from which LoRA's A starts
        mixed = np.random.SeedSequence([seed, 1]).generate_state(1, np.uint64)
        self.generator = torch.Generator().manual_seed(int(mixed[0] >> 1))
        named = named_pairs(model, trainable(model))
        self.pairs = {a: pair for a, (_, pair) in named.items()}
        own = {name: module for a, (b, pair) in named.items() for name, module in ((a, pair.a), (b, pair.b))}
        noisy = {module for pair in self.pairs.values() for module in self.noisy(pair)}
        self.modules = {name: module for name, module in own.items() if module in noisy}
        self.noise: dict[str, object] = {}
        self.history: list[dict] = []

    def noisy(self, pair: LoraPair) -> tuple[nn.Module, ...]:
        """Which of a layer's two matrices have noise."""
        return (pair.a,)

    @abstractmethod
    def changed(self, name: str, x: Tensor, out: Tensor, training: bool) -> Tensor:
        """The output of a matrix, with noise in training, for its input x ``[rows, L, d]``."""

    @abstractmethod
    def posterior(self, run: Run, facts: dict) -> Posterior:
        """The run's posterior."""

    def detach(self) -> None:
        """What is left to do once the hooks are gone."""

    def see(self, model: nn.Module, batch: dict, format: str) -> None:
        """A new batch gets new noise; a second pass over it (gradient checkpointing) meets the same."""
        self.owners.see(model, batch, format)
        self.noise = {}

    def added(self, name: str, x: Tensor, sigma: Tensor) -> Tensor:
        """What noise of this σ in a matrix adds to its output: (σ ∘ ε) x, with one draw of ε for the batch."""
        if name not in self.noise:
            self.noise[name] = torch.randn(sigma.shape, generator=self.generator).to(sigma)
        return functional.linear(x, (sigma * self.noise[name]).to(x.dtype))

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        self.questions = train_dataloader.dataset

    def finish(self, run: Run) -> Run:
        """The run with its posterior."""
        method = self.settings.method
        points = sorted(run.weights.keys() - self.modules.keys())
        facts = {"method": method, "points": points, "task": run.config["task"], "seed": run.config["seed"]}
        history = sorted([*run.history, *self.history], key=lambda record: record["step"])
        config = {**run.config, "method": method, method: asdict(self.settings)}
        config["continued"] |= self.moves_start
        return replace(run, posterior=self.posterior(run, facts), config=config, history=history)


class LearnedNoise(NoiseTraining, Beside):
    """Noise whose size is learned, by an Adam of its own."""

    def __init__(self, model: nn.Module, settings: LearnedNoiseSettings, seed: int):
        super().__init__(model, settings, seed)
        Beside.__init__(self, torch.optim.Adam(self.numbers(), lr=settings.noise_lr))

    @abstractmethod
    def numbers(self) -> list[Tensor]:
        """Make the leaf tensors that are trained here, and list them."""

    @abstractmethod
    def kl(self) -> Tensor:
        """KL[q ‖ prior] in nats, over all layers."""

    @abstractmethod
    def size(self) -> Tensor:
        """How large the noise is on average, for the log."""

    def around_start(self, shape: tuple[int, ...]) -> Tensor:
        """Uniform in [ε/√2, ε]."""
        return self.settings.start * (2**-0.5 + (1 - 2**-0.5) * torch.rand(shape, generator=self.generator))

    def penalty(self, step: int, steps: int) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.noise_lr * (1 - step / steps)
        return self.settings.kl_weight / len(self.questions) * self.kl()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in (logs or {}):
            with torch.no_grad():
                now = {"noise_size": float(self.size()), "noise_kl": float(self.kl())}
            self.history.append({"step": state.global_step, **now})
