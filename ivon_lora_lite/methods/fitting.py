"""A posterior for an adapter that was trained elsewhere, with any loss."""

import math
from collections import UserDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_known
from ..language import evaluating
from ..posterior import GaussianPosterior, applied_weights, read_weights, settable
from ..training import choose_sigma
from .laplace_approximation import prior_precision
from .tfb import RANGE, balanced, largest_within, noisy

METHODS_OF_FIT = ("tfb", "laplace_diag", "isotropic")
Loss = Callable[[nn.Module, Any], Tensor]


def fit_posterior(
    model: nn.Module,
    loss: Loss,
    batches: Iterable,
    method: str = "tfb",
    *,
    tolerance: float = 0.003,
    target: float = 0.01,
    precision: float | None = None,
    samples: int = 4,
    seed: int = 0,
    size: Callable[[Any], float] | None = None,
) -> GaussianPosterior:
    """Put a Gaussian around a model's trainable weights, as they are, without training.

    * ``"tfb"``: noise that is equal in all directions of ΔW, as much as raises the mean loss by no more than
      ``tolerance``, relative (:mod:`ivon_lora_lite.methods.tfb`). It judges the mean of the draws' losses, because of a
      loss alone no average prediction can be made. The posterior's mean is {B', A'}, a pair with the same product.
    * ``"laplace_diag"``: variance 1/(H + p) with H = Σ_b n_b² ḡ_b², the empirical Fisher diagonal (ḡ_b is the gradient
      of batch b's mean loss and n_b its size; batches of one example are the most exact), and the prior's p.
    * ``"isotropic"``: one σ everywhere, with which noise costs ``target`` in the loss's own unit.

    Args:
        model: with a trained adapter; it is left as it was, in evaluation mode while this runs.
        loss: (model, batch) → the batch's mean loss; it should have no dropout or other noise of its own.
        batches: data that the posterior is fitted to: dicts or tuples with a tensor of one row an example, or anything
            else that has a length.
        method: one of the three.
        tolerance: of ``"tfb"``.
        target: of ``"isotropic"``.
        precision: p of ``"laplace_diag"``; default: the one that maximises the evidence.
        samples: draws by which a size of noise is judged.
        seed: of these draws.
        size: batch → of how many terms its loss is the mean. Default: its rows, the examples. A language model's loss
            is a mean over tokens, so there it is ``lambda batch: int((batch["labels"][:, 1:] != -100).sum())``.

    Returns:
        A :class:`GaussianPosterior` with the names of :func:`trainable`; save it beside the adapter.

    Raises:
        ValueError: an unknown method, no batches, a loss that is not finite, or a batch without terms.
    """
    check_known("method", method, METHODS_OF_FIT)
    parts = [(float((size or _length)(batch)), batch) for batch in batches]  # size and batch
    if not parts:
        raise ValueError("There are no batches to fit the posterior to.")
    if any(n <= 0 for n, _ in parts):
        raise ValueError("A batch has a size of 0: leave it out.")
    params = settable(model)
    if not params:
        raise ValueError("The model has no trainable weights and no adapter: put LoRA on it with load_model or peft.")
    with evaluating(model):
        if method == "tfb":
            return _tfb(model, loss, parts, tolerance, samples, seed)
        if method == "laplace_diag":
            return _laplace(model, loss, parts, precision)
        sigma, cost, _, _ = choose_sigma(
            lambda: _finite(_mean_loss(model, loss, parts)), list(params.values()), target, draws=samples, seed=seed
        )
        return GaussianPosterior.isotropic(model, sigma**2, method=method, cost=cost)


def _tfb(model: nn.Module, loss: Loss, parts: list, tolerance: float, samples: int, seed: int) -> GaussianPosterior:
    weights, inverse = balanced(model, read_weights(model))
    facts = {"tolerance": tolerance}
    before = _finite(_mean_loss(model, loss, parts))

    def rise(sigma_q: float) -> float:
        total = 0.0
        for s in range(samples):
            with applied_weights(model, noisy(weights, inverse, sigma_q, facts).sample(seed + s)):
                total += float(_mean_loss(model, loss, parts)) / samples
        return (total - before) / max(abs(before), 1e-12)

    return noisy(weights, inverse, largest_within(rise, tolerance, *RANGE, 8), facts)


def _laplace(model: nn.Module, loss: Loss, parts: list, precision: float | None) -> GaussianPosterior:
    params = settable(model)
    h = {name: torch.zeros_like(p, dtype=torch.float32, device="cpu") for name, p in params.items()}
    frozen = [p for p in params.values() if not p.requires_grad]  # an adapter that was loaded for inference
    try:
        for p in frozen:
            p.requires_grad_()
        for n, batch in parts:
            with torch.enable_grad():
                grads = torch.autograd.grad(loss(model, batch), list(params.values()), allow_unused=True)
            for name, g in zip(params, grads):
                if g is not None:
                    h[name] += (n * g.float()).square().cpu()
    finally:
        for p in frozen:
            p.requires_grad_(False)
    mean = read_weights(model)
    if precision is None:
        precision, _ = prior_precision(h, sum(float(m.double().square().sum()) for m in mean.values()))
    variance = {name: 1 / (curvature + precision) for name, curvature in h.items()}
    return GaussianPosterior(mean, variance, {"method": "laplace_diag", "prior_precision": precision})


@torch.no_grad()
def _mean_loss(model: nn.Module, loss: Loss, parts: list) -> Tensor:
    """The mean over all terms: batches count by their size."""
    return sum(n * loss(model, batch).detach().double().cpu() for n, batch in parts) / sum(n for n, _ in parts)


def _finite(loss: Tensor) -> float:
    if not math.isfinite(loss):
        raise ValueError(f"The loss is {float(loss)}: is the model sound, or the noise too large?")
    return float(loss)


def _length(batch: object) -> int:
    """How many examples a batch has."""
    if isinstance(batch, list) and any(isinstance(part, Tensor) for part in batch):  # of a DataLoader: [inputs, labels]
        batch = tuple(batch)
    if isinstance(batch, Tensor) or not isinstance(batch, Mapping | UserDict | tuple):
        return len(batch)
    usual = ("labels", "answers", "input_ids")
    parts = batch if isinstance(batch, tuple) else [*(batch.get(name) for name in usual), *batch.values()]
    for part in parts:
        if isinstance(part, Tensor) and part.dim():
            return len(part)
    raise ValueError("A batch holds no tensor of one row an example: hand over dicts or tuples with one.")
