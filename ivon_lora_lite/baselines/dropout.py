"""MC dropout: dropout stays on at test time, and each pass through the model is a draw."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from ..posterior import applied_weights
from ..prediction import Batches, Predictions
from ..tasks import Question

if TYPE_CHECKING:
    from ..train import Run

__all__ = ["mc_dropout"]


def mc_dropout(
    source: Run | nn.Module,
    questions: Sequence[Question],
    *,
    samples: int = 10,
    seed: int = 0,
    format: str | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> Predictions:
    """Predict with random dropout masks z_s:  p(y|x) ≈ 1/S Σ_s softmax f(x; θ, z_s)  (Gal & Ghahramani 2016).

    Only dropout modules are in training mode, LoRA's and, where it has some, the base model's. Masks differ from token
    to token, as in training. So a draw here is not one set of weights for all questions, as it is in :func:`predict`:
    what the whole set shares is the seed. The same seed, questions and batch size give the same logits.

    Args:
        source: a finished run, or a model with its present weights.
        questions: N questions.
        samples: number of passes S.
        seed: pass s uses seed + s.
        format: ``"letter"`` or ``"text"``; default: the run's, or text.
        batch_size: questions per forward pass.
        progress: show a progress bar.

    Returns:
        :class:`Predictions` with logits ``[S, N, C]``.

    Raises:
        ValueError: the model has no dropout; there are no questions or no samples.
    """
    if not questions:
        raise ValueError("There are no questions to predict.")
    if samples < 1:
        raise ValueError(f"samples is {samples}; expected at least 1 pass with dropout.")
    model, weights = source, None
    if not isinstance(source, nn.Module):
        model, weights, format = source.model, source.weights, format or source.config["format"]
    dropouts = [module for module in model.modules() if isinstance(module, _DropoutNd) and module.p > 0]
    if not dropouts:
        raise ValueError("This model has no dropout: load it with LoraSettings(dropout=0.1) and train it with that.")
    batches = Batches(model, questions, format or "text", batch_size)

    @contextmanager
    def dropping(s: int) -> Iterator[None]:
        present = applied_weights(model, weights) if weights is not None else nullcontext()
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), present:
            torch.manual_seed(seed + s)
            for module in dropouts:  # the rest is in evaluation mode by now
                module.train()
            yield

    modes = {module: module.training for module in model.modules()}
    try:
        logits = torch.stack([batches.logits(lambda s=s: dropping(s), progress) for s in range(samples)])  # [S, N, C]
    finally:
        for module, mode in modes.items():
            module.training = mode
    facts = {"method": "mc_dropout", "samples": samples, "seed": seed, "format": format or "text"}
    return Predictions(logits, torch.tensor([q.answer for q in questions]), facts)
