"""PAC-tuning (Liu et al. 2023), reconstructed for LoRA: learn how much noise the weights bear, then keep it.

Stage 1 trains the weights and the σ of every one of LoRA's weights by a PAC-Bayes bound,

    E_q[−log p(y|x)] + β/N · KL[N(m, diag σ²) ‖ N(m₀, λ_l I)],

with m₀ the start of LoRA and one λ_l a matrix, for which the lowest bound is known: λ_l = mean((m − m₀)² + σ²). Stage 2
trains on with the σ that were learned, as perturbed gradient descent, and without the KL. Predictions are at the mean.

What differs from the paper: it tunes all weights of a model, its bound has further terms that do not depend on what is
trained, and its authors' settings are for other models. Here β, the start of σ and Adam's learning rate are settings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..language import Question, Task
from ..posterior import GaussianPosterior, LoraPair
from ..training import Run
from .base import Method, at_the_mean_of, options_of, training_options
from .variational import LearnedNoise, LearnedNoiseSettings


class PacTraining(LearnedNoise):
    """The noise of A and B, and the Adam of its size.

    Attributes:
        log_sigma, start: name of a matrix → log σ and m₀.
    """

    def noisy(self, pair: LoraPair) -> tuple[nn.Module, ...]:
        return pair.a, pair.b

    def numbers(self) -> list[Tensor]:
        self.start = {name: module.weight.detach().clone() for name, module in self.modules.items()}
        self.log_sigma = {
            name: self.around_start(m0.shape).to(m0).log().requires_grad_() for name, m0 in self.start.items()
        }
        return list(self.log_sigma.values())

    def changed(self, name: str, x: Tensor, out: Tensor, training: bool) -> Tensor:
        """W x, and what a draw of W adds to it; one draw serves the batch."""
        return out + self.added(name, x, self.log_sigma[name].exp()).to(out.dtype) if training else out

    def kl(self) -> Tensor:
        """KL[q ‖ prior] with the best λ_l: Σ_l ½ n_l log λ_l − Σ log σ."""
        total = torch.zeros(())
        for name, module in self.modules.items():
            log_sigma, moved = self.log_sigma[name], module.weight - self.start[name]
            prior = (moved.square() + (2 * log_sigma).exp()).mean()
            total = total + 0.5 * log_sigma.numel() * prior.log() - log_sigma.sum()
        return total

    def penalty(self, step: int, steps: int) -> Tensor | None:
        first = round(self.settings.stage * steps)
        if step < first:
            return super().penalty(step, first)
        for group in self.optimizer.param_groups:  # stage 2: σ stays
            group["lr"] = 0.0
        return None

    def size(self) -> Tensor:
        return torch.cat([log_sigma.flatten() for log_sigma in self.log_sigma.values()]).exp().mean()

    def posterior(self, run: Run, facts: dict) -> GaussianPosterior:
        variance = {name: (2 * log_sigma.detach()).exp().float().cpu() for name, log_sigma in self.log_sigma.items()}
        return GaussianPosterior(dict(run.weights), variance, facts)


@dataclass(frozen=True)
class PacSettings(LearnedNoiseSettings):
    """As :class:`LearnedNoiseSettings`; σ starts uniform in [ε/√2, ε], and its numbers are log σ.

    Attributes:
        stage: the share of the steps that stage 1 has, above 0 and at most 1.
    """

    method: ClassVar[str] = "pac_tuning"
    training: ClassVar[type] = PacTraining

    start: float = 0.03
    kl_weight: float = 1e-3
    noise_lr: float = 1e-2
    stage: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage > 1:
            raise ValueError(f"stage is {self.stage}; expected a share of the steps, at most 1.")


def pac_tuning(model: nn.Module, task: Task | Sequence[Question], **options) -> Run:
    """Finetune with PAC-tuning: noise whose size a PAC-Bayes bound teaches, then the same noise to the end.

    Args:
        model: with plain LoRA on linear layers.
        task: a task, or training questions.
        options: of :class:`PacSettings` and of :func:`finetune`.

    Returns:
        A :class:`Run` whose :class:`GaussianPosterior` has the σ that were learned.

    Raises:
        ValueError: a setting is out of its range; the model's LoRA is not plain pairs of matrices.
    """
    return PacSettings.finetune(model, task, options)


PAC_TUNING = Method(
    "pac_tuning",
    "PAC-tuning",
    "PAC-tuning, reconstructed: the mean after training under noise of a learned size",
    at_the_mean_of(pac_tuning),
    settings=training_options("adamw") | options_of(PacSettings),
)
