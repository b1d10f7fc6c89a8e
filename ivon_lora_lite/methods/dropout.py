"""MC dropout: dropout stays on at test time, and each pass through the model is a draw."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from ..evaluation import Batches, Predictions, Trained, asked_of
from ..language import Question
from .base import Bench, Method, Result


def mc_dropout(
    source: Trained | nn.Module,
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
        format: ``"letter"``, ``"text"`` or ``"class"``; default: the run's, or text.
        batch_size: questions per forward pass.
        progress: show a progress bar.

    Returns:
        :class:`Predictions` with logits ``[S, N, C]``.

    Raises:
        ValueError: the model has no dropout; there are no questions or no samples.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; expected at least 1 pass with dropout.")
    asked = asked_of(source, questions, None, format)
    model = asked.model
    dropouts = [module for module in model.modules() if isinstance(module, _DropoutNd) and module.p > 0]
    if not dropouts:
        raise ValueError("This model has no dropout: load it with LoraSettings(dropout=0.1) and train it with that.")
    batches = Batches(model, questions, asked.format, batch_size)

    @contextmanager
    def dropping(s: int) -> Iterator[None]:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), asked.at_mean():
            torch.manual_seed(seed + s)
            for module in dropouts:  # the rest is in evaluation mode by now
                module.train()
            yield

    logits = torch.stack([batches.logits(lambda s=s: dropping(s), progress) for s in range(samples)])  # [S, N, C]
    facts = {"method": "mc_dropout", "samples": samples, "seed": seed, "format": asked.format}
    return Predictions(logits, batches.labels, facts)


def _make(bench: Bench) -> Result:
    samples = bench.settings.samples
    predictions = mc_dropout(bench.run, bench.questions, samples=samples, progress=bench.progress)
    return Result(predictions, passes=samples)


MC_DROPOUT = Method(
    "mc_dropout",
    "+ MC dropout",
    "MC dropout: AdamW's weights, dropout left on at test time",
    _make,
    stands_on="adamw",
)
