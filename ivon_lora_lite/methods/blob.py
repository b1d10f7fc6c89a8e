"""BLoB: Bayes by backpropagation on LoRA's A, whose variances are parameters of their own (Wang et al. 2024).

    q(A) = N(M, diag Ω²),  Ω = G ∘ G;  B is a point.   Loss per question:  E_q[−log p(y|x)] + β/N · KL[q ‖ N(0, σ_p² I)]

IVON gets its variances from a curvature that it estimates on the way; here they are trained like weights, which doubles
the number of trained values in A. The paper trains G by gradients of the whole loss; its public scripts give the KL to
an SGD of its own, so what its weight is there depends on that optimizer. Here β is a setting to be chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..evaluation import predict
from ..language import Question, Task
from ..posterior import GaussianPosterior
from ..posterior.base import positive
from ..training import Run
from .base import Bench, Method, Result, mean_of_run, numbers_per_weight, options_of, training_options
from .variational import LearnedNoise, LearnedNoiseSettings, gaussian_kl


def flipout(x: Tensor, noise: Tensor, owner: Tensor, signs_in: Tensor, signs_out: Tensor) -> Tensor:
    """x (E ∘ r sᵀ)ᵀ with signs of their own for every question: noise that is shared, and yet decorrelated.

    (Wen et al. 2018.) E has independent symmetric entries, so E ∘ r sᵀ has the same distribution for all signs.

    Args:
        x: ``[rows, L, d_in]``.
        noise: E ``[d_out, d_in]``.
        owner: ``[rows, L]``, the question of every token.
        signs_in, signs_out: s ``[B, d_in]`` and r ``[B, d_out]``, ±1.

    Returns:
        ``[rows, L, d_out]``.
    """
    return functional.linear(x * signs_in[owner], noise) * signs_out[owner]


class BlobTraining(LearnedNoise):
    """A's noise, and the Adam of its size.

    Attributes:
        g: name of A → G.
    """

    def numbers(self) -> list[Tensor]:
        self.g = {
            name: self.around_start(module.weight.shape).to(module.weight.device).requires_grad_()
            for name, module in self.modules.items()
        }
        return list(self.g.values())

    def changed(self, name: str, x: Tensor, out: Tensor, training: bool) -> Tensor:
        """A x, and what a draw of A adds to it, with Flipout: ``[rows, L, r]``."""
        if not training:
            return out
        g, (owner, count) = self.g[name], self.owners.of(x)
        if name not in self.noise:
            epsilon = torch.randn(g.shape, generator=self.generator)
            signs = (torch.randint(2, (count, n), generator=self.generator) * 2.0 - 1 for n in (g.shape[1], g.shape[0]))
            self.noise[name] = tuple(t.to(g.device) for t in (epsilon, *signs))
        epsilon, signs_in, signs_out = self.noise[name]
        return out + flipout(x, g.square() * epsilon, owner, signs_in, signs_out).to(out.dtype)

    def kl(self) -> Tensor:
        pairs = ((module.weight, self.g[name].square()) for name, module in self.modules.items())
        return sum(gaussian_kl(mean, sigma, self.settings.prior_sigma) for mean, sigma in pairs)

    def size(self) -> Tensor:
        return torch.cat([g.square().flatten() for g in self.g.values()]).mean()

    def posterior(self, run: Run, facts: dict) -> GaussianPosterior:
        variance = {name: positive(g.detach().float().pow(4)).cpu() for name, g in self.g.items()}
        return GaussianPosterior(dict(run.weights), variance, facts)


@dataclass(frozen=True)
class BlobSettings(LearnedNoiseSettings):
    """As :class:`LearnedNoiseSettings`, with the prior's σ_p; G starts uniform in [ε/√2, ε], so Ω in [ε²/2, ε²]."""

    method: ClassVar[str] = "blob"
    training: ClassVar[type] = BlobTraining

    prior_sigma: float = 0.2
    start: float = 0.2
    kl_weight: float = 1e-3
    noise_lr: float = 2e-3


def blob(model: nn.Module, task: Task | Sequence[Question], **options) -> Run:
    """Finetune with BLoB: a Gaussian over A trained by backpropagation, with B a point.

    Args:
        model: with plain LoRA on linear layers.
        task: a task, or training questions.
        options: of :class:`BlobSettings` and of :func:`finetune`.

    Returns:
        A :class:`Run` whose :class:`GaussianPosterior` has no variance for B.

    Raises:
        ValueError: a setting is out of its range; the model's LoRA is not plain pairs of matrices.
    """
    return BlobSettings.finetune(model, task, options)


def _make(bench: Bench) -> Result:
    run = blob(bench.model, bench.task, **bench.training())
    predictions = predict(run, bench.questions, samples=bench.settings.samples, progress=bench.progress)
    floats = numbers_per_weight(run.posterior, run)
    return Result(predictions, run, {"train": run.seconds}, floats, bench.settings.samples)


BLOB = Method(
    "blob",
    "BLoB",
    "BLoB: draws from a Gaussian over A that backpropagation trained",
    _make,
    settings=training_options("adamw") | options_of(BlobSettings),
)
BLOB_MEAN = Method("blob@mean", "BLoB@mean", "BLoB at the mean of its posterior", mean_of_run, stands_on="blob")
