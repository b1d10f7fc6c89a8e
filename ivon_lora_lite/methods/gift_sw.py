"""GIFT-SW (Zhelnin et al. 2024), reconstructed for LoRA: train the salient columns, under noise in the others.

A column of a weight matrix W belongs to one input of its layer, and so does a column of LoRA's A. The inputs that are
largest over the training questions are salient:

    s_j = ‖X_j‖₂,   A = [A_S, 0],   in training [A_S, σE],  E_ij ~ N(0, 1);   ΔW = BA

A_S and B are trained by AdamW. So ΔW is 0 in all other columns of W, and what these get in training is noise alone.
Predictions are at the mean.

What differs from the paper: it trains the salient columns of W itself, without LoRA; its noise is as large as half a
step of quantisation; and its s_j multiplies ‖X_j‖ by the size of what quantisation does to the column. The noise here
has one size, σ, which is a setting, as is the share of the columns that are salient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..evaluation import Batches
from ..language import Question, Task, answer_logits, evaluating
from ..posterior import GaussianPosterior
from ..posterior.base import positive
from ..training import Run
from .base import Method, at_the_mean_of, options_of, training_options
from .variational import NoiseSettings, NoiseTraining


class GiftTraining(NoiseTraining):
    """Which columns of A are salient, and the noise in the others.

    Attributes:
        squares: name of A → Σ x_j² over all tokens of the training questions, ``[d_in]``.
        sigma: name of A → σ in the columns that are not salient, 0 in those that are, ``[r, d_in]``.
    """

    moves_start: ClassVar[bool] = True  # columns of A are set to 0

    def __init__(self, model: nn.Module, settings: "GiftSettings", seed: int):
        super().__init__(model, settings, seed)
        self.squares: dict[str, Tensor] = {}
        self.sigma: dict[str, Tensor] = {}
        self.frozen: list[torch.utils.hooks.RemovableHandle] = []

    def see(self, model: nn.Module, batch: dict, format: str) -> None:
        if not self.sigma:
            self.measure(model, format)
            self.choose()
        super().see(model, batch, format)

    @torch.no_grad()
    def measure(self, model: nn.Module, format: str) -> None:
        """Run the training questions through the model, for the squares of what A gets."""
        with evaluating(model):
            for _, batch in Batches(model, self.questions, format, 8).each("salient columns", False):
                self.owners.see(model, batch, format)
                answer_logits(model, batch, format)

    @torch.no_grad()
    def choose(self) -> None:
        """Set the other columns to 0, and keep gradients from them."""
        for name, module in self.modules.items():
            if self.pairs[name].b.weight.any():
                raise ValueError("GIFT-SW begins with a fresh adapter, whose B is 0.")
            square, weight = self.squares[name], module.weight
            others = torch.ones_like(square, dtype=torch.bool)
            others[square.topk(max(1, round(self.settings.share * len(square)))).indices] = False
            weight[:, others] = 0.0
            self.frozen.append(weight.register_hook(lambda grad, others=others: grad.masked_fill(others, 0.0)))
            self.sigma[name] = self.settings.sigma * others.to(weight).expand_as(weight)

    def changed(self, name: str, x: Tensor, out: Tensor, training: bool) -> Tensor:
        """A x, and in training what noise in the columns that are not salient adds to it."""
        if not self.sigma:
            own = x[self.owners.of(x)[0] >= 0]
            self.squares[name] = self.squares.get(name, 0.0) + own.float().square().sum(0)
        return out + self.added(name, x, self.sigma[name]).to(out.dtype) if training and self.sigma else out

    def detach(self) -> None:
        for hook in self.frozen:
            hook.remove()

    def posterior(self, run: Run, facts: dict) -> GaussianPosterior:
        variance = {name: positive(sigma.square().float().cpu()) for name, sigma in self.sigma.items()}
        return GaussianPosterior(dict(run.weights), variance, facts)


@dataclass(frozen=True)
class GiftSettings(NoiseSettings):
    """The noise, and where it is.

    Attributes:
        sigma: its standard deviation.
        share: how many of A's columns are salient, above 0 and at most 1.
    """

    method: ClassVar[str] = "gift_sw"
    training: ClassVar[type] = GiftTraining

    sigma: float = 0.03
    share: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share > 1:
            raise ValueError(f"share is {self.share}; expected a share of the columns, at most 1.")


def gift_sw(model: nn.Module, task: Task | Sequence[Question], **options) -> Run:
    """Finetune with GIFT-SW: the columns of A whose inputs are largest, under noise in the others.

    Args:
        model: with plain LoRA on linear layers, whose B is 0.
        task: a task, or training questions.
        options: of :class:`GiftSettings` and of :func:`finetune`.

    Returns:
        A :class:`Run` whose :class:`GaussianPosterior` has the noise of training; salient columns have next to none.

    Raises:
        ValueError: a setting is out of its range; the model's LoRA is not plain pairs of matrices, or is not fresh.
    """
    return GiftSettings.finetune(model, task, options)


GIFT_SW = Method(
    "gift_sw",
    "GIFT-SW",
    "GIFT-SW, reconstructed: the mean after training of salient columns under noise in the others",
    at_the_mean_of(gift_sw),
    settings=training_options("adamw") | options_of(GiftSettings),
)
