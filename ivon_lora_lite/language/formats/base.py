"""What an answer format is, and what formats share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
from torch import Tensor, nn

from ..questions import Question

Batch = dict[str, Tensor]


class Format(ABC):
    """One way to ask a model multiple-choice questions.

    Attributes:
        name: as users write it.
        marker: a tensor that only this format's batches have.
        classifier: whether it needs a sequence classifier instead of a language model.
    """

    name: str
    marker: str
    classifier: bool = False

    @abstractmethod
    def batch(self, questions: Sequence[Question], tokenizer, limit: int) -> Batch:
        """B questions as tensors; refuses a question of more than ``limit`` tokens."""

    @abstractmethod
    def logits(self, model: nn.Module, batch: Batch, copies: int) -> Tensor:
        """Answer logits ``[copies, B, C]`` of the batch, repeated ``copies`` times side by side."""

    def tokens(self, model: nn.Module, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """Where the model gets the tokens of each question, padding left out: B pairs (rows, positions) ``[T]``."""
        own = [row.nonzero().flatten() for row in batch["attention_mask"]]
        return [(torch.full_like(positions, b), positions) for b, positions in enumerate(own)]

    def shape(self, model: nn.Module, batch: Batch) -> tuple[int, int]:
        """Rows and positions of what the model gets."""
        return tuple(batch["input_ids"].shape)

    def kept(self, model: nn.Module, batch: Batch) -> Tensor | None:
        """The positions at which the output layer runs; None: all."""
        return None


def precision(model: nn.Module) -> AbstractContextManager:
    """Autocast if the frozen base is 16-bit while LoRA's weights are fp32."""
    dtype = next(model.parameters()).dtype
    if dtype in (torch.bfloat16, torch.float16):
        return torch.autocast(next(model.parameters()).device.type, dtype)
    return nullcontext()


def token_ids(tokenizer, text: str, special: bool = True) -> list[int]:
    """Token ids of a text, with what the tokenizer puts in front of it and without what it puts behind (an EOS)."""
    ids = tokenizer(text, add_special_tokens=special)["input_ids"]
    return ids[: len(ids) - appended(tokenizer)] if special else ids


@lru_cache(maxsize=8)
def appended(tokenizer) -> int:
    """How many tokens a tokenizer's template puts behind every text: nothing can follow an end-of-text token."""
    whole, plain = (tokenizer("a a", add_special_tokens=special)["input_ids"] for special in (True, False))
    added = max(len(whole) - len(plain), 0)
    before = next((n for n in range(added) if whole[n : n + len(plain)] == plain), added)
    return added - before


def continuation(tokenizer, prompt: str, start: list[int], choice: str) -> list[int]:
    """The tokens of ``choice`` where it follows ``prompt``, whose own tokens are ``start``."""
    whole = token_ids(tokenizer, f"{prompt} {choice}")
    tokens = whole[len(start) :] if whole[: len(start)] == start else token_ids(tokenizer, f" {choice}", special=False)
    if not tokens:
        raise ValueError(f"The choice {choice!r} of the question {prompt!r} has no tokens.")
    return tokens


def padded(rows: Sequence[Sequence[int]], pad: int, left: bool) -> tuple[Tensor, Tensor]:
    """Rows of token ids as ``[B, L]``, and the attention mask."""
    length = max(map(len, rows))
    input_ids = torch.full((len(rows), length), pad)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for row, own in enumerate(rows):
        place = slice(length - len(own), None) if left else slice(0, len(own))
        input_ids[row, place] = torch.tensor(own)
        mask[row, place] = 1
    return input_ids, mask


def check_length(question: Question, length: int, limit: int) -> None:
    """Refuse a question that is too long."""
    if length > limit:
        raise ValueError(
            f"Question {question.id or question.stem[:40]!r} has {length} tokens, more than the limit of {limit}: "
            "shorten it or leave it out."
        )
