"""Every τ from one pass: the linearised Gaussian over answer logits.

Near the mean the logits are almost linear in the weights, f(θ) ≈ f(m) + J (θ − m). So θ ~ N(m, τ diag v) makes them
f ~ N(f(m), τ J diag(v) Jᵀ): one C × C covariance per question gives the prediction for every τ and for as many draws as
one likes. It is an approximation; exact draws are the reference (:func:`ivon_lora_lite.tau_sweep`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .posterior import GaussianPosterior, trainable
from .prediction import Batches, Predictions
from .scoring import answer_logits
from .tasks import Question

if TYPE_CHECKING:
    from .train import Run

__all__ = ["Linearized", "linearized"]

NOISE_DRAWS = 256  # fixed standard normals that integrate the softmax


@dataclass(frozen=True)
class Linearized:
    """Gaussians over answer logits.

    Attributes:
        mean: ``[N, C]`` logits at the mean; −∞ where a question has fewer than C choices.
        covariance: ``[N, C, C]``, J diag(v) Jᵀ at τ = 1.
        labels: ``[N]``.
        metadata: JSON-able facts.
    """

    mean: Tensor
    covariance: Tensor
    labels: Tensor
    metadata: dict = field(default_factory=dict)

    @cached_property
    def _spread(self) -> Tensor:
        """Fixed draws of N(0, Σ), ``[draws, N, C]``; antithetic, so their mean is 0."""
        values, vectors = torch.linalg.eigh(self.covariance.double())
        root = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)  # Σ = root rootᵀ
        generator = torch.Generator().manual_seed(0)
        half = torch.randn(NOISE_DRAWS // 2, *self.mean.shape, generator=generator, dtype=torch.float64)
        return torch.einsum("nij,snj->sni", root, torch.cat([half, -half])).float()

    def logits(self, tau: float) -> Tensor:
        """Draws of the logits at τ, ``[draws, N, C]``; the same ε for every τ."""
        if tau < 0:
            raise ValueError(f"tau is {tau}; expected at least 0.")
        return self.mean + tau**0.5 * self._spread

    def probabilities(self, tau: float = 1.0) -> Tensor:
        """Predictive probabilities at τ ≥ 0, ``[N, C]``."""
        return self.logits(tau).softmax(-1).mean(0)

    def predictions(self, tau: float = 1.0) -> Predictions:
        """The same as :class:`Predictions`, for :func:`score` and the metrics."""
        return Predictions(self.logits(tau), self.labels, {**self.metadata, "tau": tau, "linearized": True})


def linearized(
    source: Run | nn.Module,
    questions: Sequence[Question],
    *,
    posterior: GaussianPosterior | None = None,
    format: str | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> Linearized:
    """Logit mean ``[N, C]`` and covariance J diag(v) Jᵀ ``[N, C, C]`` of every question, in one pass.

    A pass is one forward and C backward passes per batch. A question's tokens do not attend to another question, so one
    backward pass gives the gradients of all questions of a batch: a LoRA factor W with input x and output gradient g
    has the gradient Σ_t g_t x_tᵀ over the question's own tokens t.

    Args:
        source: an IVON run, or a model with ``posterior``.
        questions: N questions.
        posterior: default: the run's own.
        format: ``"letter"``, ``"text"`` or ``"class"``; default: the run's, or text.
        batch_size: questions per pass.
        progress: show a progress bar.

    Raises:
        ValueError: there is no posterior, or it is over something else than LoRA's A and B of linear layers.
    """
    from tqdm.auto import tqdm

    model = source
    if not isinstance(source, nn.Module):
        model, posterior, format = source.model, posterior or source.posterior, format or source.config["format"]
    if posterior is None:
        raise ValueError("There is no posterior to linearise around: finetune with optimizer='ivon'.")
    if not questions:
        raise ValueError("There are no questions to linearise at.")
    batches = Batches(model, questions, format or "text", batch_size)
    factors = _lora_factors(model, posterior)
    mean = torch.full((len(questions), batches.choices), -torch.inf)
    covariance = torch.zeros(len(questions), batches.choices, batches.choices)
    training = model.training
    model.eval()
    try:
        with posterior.applied(model), torch.inference_mode(False), torch.enable_grad():
            pairs = list(zip(batches.indices, batches.batches))
            for index, batch in tqdm(pairs, desc="linearise", leave=False, disable=not progress):
                f, sigma = _batch_covariance(model, batch, factors)
                c = f.shape[1]
                mean[index, :c] = f
                covariance[torch.tensor(index)[:, None, None], torch.arange(c)[:, None], torch.arange(c)] = sigma
    finally:
        model.train(training)
    return Linearized(mean, covariance, torch.tensor([q.answer for q in questions]), {"format": format or "text"})


def _lora_factors(model: nn.Module, posterior: GaussianPosterior) -> list[tuple[nn.Module, Tensor]]:
    """The linear modules that hold the posterior's tensors, with their variances."""
    names = {id(p): name for name, p in trainable(model).items()}
    out = []
    for module in model.modules():
        name = names.get(id(getattr(module, "weight", None)))
        if name in posterior.variance and ".lora_" in name and isinstance(module, nn.Linear) and module.bias is None:
            out.append((module, posterior.variance[name].to(module.weight.device)))
    if len(out) != len(posterior.variance):
        raise ValueError("linearized() knows LoRA's A and B of linear layers; the posterior holds other tensors too.")
    return out


def _batch_covariance(model: nn.Module, batch: dict, factors: list) -> tuple[Tensor, Tensor]:
    """f ``[B, C]`` and J diag(v) Jᵀ ``[B, C, C]`` of one batch."""
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    hooks = [
        module.register_forward_hook(lambda module, args, out: seen.__setitem__(module, (args[0].detach(), out)))
        for module, _ in factors
    ]
    try:
        f = answer_logits(model, batch)  # [B, C]
    finally:
        for hook in hooks:
            hook.remove()
    outputs = [seen[module][1] for module, _ in factors]
    columns = range(f.shape[1])
    # per choice: for every factor the gradient at its output, [1, L, out] (packed) or [B, L, out]
    grads = [torch.autograd.grad(f[:, c][f[:, c].isfinite()].sum(), outputs, retain_graph=True) for c in columns]
    sigma = torch.zeros(*f.shape, f.shape[1], device=f.device)
    spans = _spans(batch, len(f))
    for k, (module, v) in enumerate(factors):
        x = seen[module][0].float()
        g = torch.stack([grads[c][k] for c in columns]).float()  # [C, rows, L, out]
        for b, (row, tokens) in enumerate(spans):
            jacobian = torch.einsum("clo,li->coi", g[:, row, tokens], x[row, tokens]).flatten(1)  # [C, out · in]
            sigma[b] += (jacobian * v.flatten()) @ jacobian.T
    return f.detach().cpu(), sigma.cpu()


def _spans(batch: dict, questions: int) -> list[tuple[int, slice]]:
    """Where the tokens of each question are: (row, slice)."""
    if "owner" not in batch:
        return [(b, slice(None)) for b in range(questions)]
    owner = batch["sees"][batch["block"]]  # [L]: the question block of every packed token
    ends = (owner.unique_consecutive(return_counts=True)[1]).cumsum(0).tolist()
    return [(0, slice(start, end)) for start, end in zip([0, *ends], ends)]
