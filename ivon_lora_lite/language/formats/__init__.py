"""Answer formats: questions → token batches → one logit per answer, ``[B, C]``.

A format is one object that knows how questions become a batch, how a model gives answer logits, and which tokens of the
batch belong to a question:

* `letter.py` (Cong et al. 2024): the next-token logits of the answer's letter or word after the prompt;
* `text.py` (for small models): the mean log-likelihood of each answer's tokens, in one packed row;
* `classes.py` (GLUE on an encoder such as DeBERTa): the head of a sequence classifier.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...checks import check_known
from ...posterior import unwrapped
from ..accessors import tokenizer_of
from ..questions import Question
from .base import Batch, Format, precision, token_ids as token_ids
from .classes import ClassFormat
from .kinds import known_exact as known_exact
from .letter import LetterFormat, answer_token as answer_token
from .text import TextFormat, block_mask as block_mask

FORMATS: dict[str, Format] = {format.name: format for format in (LetterFormat(), TextFormat(), ClassFormat())}


def format_named(name: str) -> Format:
    """The format of a name.

    Raises:
        ValueError: there is none.
    """
    check_known("answer format", name, FORMATS)
    return FORMATS[name]


def collate(questions: Sequence[Question], tokenizer, format: str = "text", max_length: int | None = None) -> Batch:
    """Turn questions into the tensors that :func:`answer_logits` takes.

    Args:
        questions: B questions; they may have different numbers of choices.
        tokenizer: the model's tokenizer.
        format: ``"letter"``, ``"text"`` or ``"class"``.
        max_length: the longest question in tokens, choices included; default: the tokenizer's own limit.

    Returns:
        Tensors, among them ``answers`` ``[B]``.

    Raises:
        ValueError: unknown format; a question is longer than ``max_length``; choices have the same answer token.
    """
    kind = format_named(format)
    if not questions:
        raise ValueError("There are no questions to collate.")
    limit = max_length or min(tokenizer.model_max_length, 2**20)
    return {**kind.batch(questions, tokenizer, limit), "answers": torch.tensor([q.answer for q in questions])}


def check_askable(model: nn.Module, questions: Sequence[Question], format: str, most: int = 10_000) -> None:
    """Tokenise questions (the first ``most``), so that one that cannot be asked is found before anything is trained.

    Raises:
        ValueError: a question is too long for the model, or its choices cannot be told apart.
    """
    for first in range(0, min(len(questions), most), 8):
        collate(questions[first : first + 8], tokenizer_of(model), format)


def answer_logits(model: nn.Module, batch: Batch, format: str = "text", copies: int | None = None) -> Tensor:
    """Answer logits ``[B, C]`` in fp32; −∞ where a question has fewer than C choices.

    Args:
        model: a causal language model of transformers (with or without LoRA); for the format ``class`` a sequence
            classifier.
        batch: from :func:`collate` with the same format.
        format: ``"letter"``, ``"text"`` or ``"class"``.
        copies: run the batch R times side by side and return ``[R, B, C]``: for a model whose weights differ from copy
            to copy (:func:`ivon_lora_lite.evaluation.stacked`).

    Raises:
        ValueError: the batch is of another format, the format needs another kind of model, or the classifier has
            another number of classes.
    """
    kind = format_named(format)
    inner = unwrapped(model)
    base = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    classifier = type(base).__name__.endswith("ForSequenceClassification")
    if kind.classifier != classifier:
        is_, needs = ("a sequence classifier", "'class'") if classifier else ("a language model", "'text' or 'letter'")
        raise ValueError(f"The model is {is_}: it needs format={needs}. load_model(…, labels=N) makes a classifier.")
    if kind.marker not in batch:
        raise ValueError(f"This batch was not made with format={format!r}: give the same format to both.")
    batch = {name: tensor.to(inner.device) for name, tensor in batch.items()}
    with precision(model):
        logits = kind.logits(model, batch, copies or 1)  # [R, B, C]
    return logits[0] if copies is None else logits


def answer_loss(logits: Tensor, answers: Tensor) -> Tensor:
    """Cross-entropy of answer logits ``[B, C]`` and answers ``[B]``: the ℓ(θ) that AdamW and IVON minimise."""
    return nn.functional.cross_entropy(logits, answers.to(logits.device))
