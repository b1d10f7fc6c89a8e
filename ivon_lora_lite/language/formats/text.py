"""The format ``text`` (for small models): an answer's logit is the mean log-likelihood of its tokens.

The answers follow ``Question: …\\nAnswer:``. All questions of a batch are packed into one row ``[question 1][choice 1]
… [choice C][question 2] …`` without padding: a block mask lets a choice see its question and itself, position ids
restart after the question, and the output layer runs at answer positions only.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..accessors import unwrapped
from ..questions import Question
from .base import Batch, Format, check_length, continuation, token_ids


class TextFormat(Format):
    """All questions and choices of a batch in one packed row."""

    name, marker = "text", "block"

    def batch(self, questions: Sequence[Question], tokenizer, limit: int) -> Batch:
        ids, block, place = [], [], []  # per packed token: its id, the block it belongs to, its position
        sees: list[int] = []  # per block: the question block that it can see besides itself
        read, target, owner = [], [], []  # per answer token: where its logits are, its id, its choice
        width = max(len(q.choices) for q in questions)
        for row, q in enumerate(questions):
            prompt = f"Question: {q.stem}\nAnswer:"
            start = token_ids(tokenizer, prompt)
            answers = [continuation(tokenizer, prompt, start, choice) for choice in q.choices]
            check_length(q, len(start) + max(map(len, answers)), limit)
            question_block = len(sees)
            sees.append(question_block)
            ids += start
            block += [question_block] * len(start)
            place += range(len(start))
            last = len(ids) - 1
            for column, tokens in enumerate(answers):
                # the question's last token predicts the first one of every answer; an answer's last token is not read
                read += [last, *range(len(ids), len(ids) + len(tokens) - 1)]
                target += tokens
                owner += [row * width + column] * len(tokens)
                block += [len(sees)] * (len(tokens) - 1)
                sees.append(question_block)
                ids += tokens[:-1]
                place += range(len(start), len(start) + len(tokens) - 1)
        keep, read_kept = torch.tensor(read).unique(return_inverse=True)
        present = torch.tensor([[c < len(q.choices) for c in range(width)] for q in questions])
        return {
            "input_ids": torch.tensor([ids]),  # [1, L]
            "position_ids": torch.tensor([place]),  # [1, L]
            "block": torch.tensor(block),  # [L]
            "sees": torch.tensor(sees),  # [blocks]
            "keep": keep,  # [K] positions at which the output layer runs
            "read": read_kept,  # [T] rows of those K
            "target": torch.tensor(target),  # [T]
            "owner": torch.tensor(owner),  # [T] → b * C + c
            "present": present,  # [B, C]
        }

    def logits(self, model: nn.Module, batch: Batch, copies: int) -> Tensor:
        mask = block_mask(batch["block"], batch["sees"])
        if unwrapped(model).config._attn_implementation == "eager":  # it adds the mask instead of selecting by it
            dtype = torch.get_autocast_dtype(model.device.type) if torch.is_autocast_enabled() else model.dtype
            mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
        out = model(
            input_ids=batch["input_ids"].expand(copies, -1),
            attention_mask=mask,
            position_ids=batch["position_ids"].expand(copies, -1),
            logits_to_keep=batch["keep"],
            use_cache=False,
        )
        return torch.stack([_mean_log_likelihood(logits.float(), batch) for logits in out.logits])

    def tokens(self, batch: Batch) -> list[tuple[int, slice]]:
        """A packed row holds the questions one after another, each with its choices behind it."""
        question = batch["sees"][batch["block"]]  # [L]: the question block of every packed token
        ends = (question.unique_consecutive(return_counts=True)[1]).cumsum(0).tolist()
        return [(0, slice(start, end)) for start, end in zip([0, *ends], ends)]


def block_mask(block: Tensor, sees: Tensor) -> Tensor:
    """Who attends to whom in a packed row: ``[L]`` block numbers → boolean ``[1, 1, L, L]``.

    A token sees the earlier tokens (and itself) of its own block and of the question that the block belongs to.
    """
    same = block[:, None] == block[None, :]
    question = sees[block][:, None] == block[None, :]
    return ((same | question).tril())[None, None]


def _mean_log_likelihood(logits: Tensor, batch: Batch) -> Tensor:
    """``[K, V]`` at the kept positions → ``[B, C]``."""
    log_norm = logits.logsumexp(-1)  # [K]
    read, owner, present = batch["read"], batch["owner"], batch["present"]
    token_ll = logits[read, batch["target"]] - log_norm[read]  # [T]
    total = token_ll.new_zeros(present.numel()).index_add(0, owner, token_ll)
    count = token_ll.new_zeros(present.numel()).index_add(0, owner, torch.ones_like(token_ll))
    mean = (total / count.clamp(min=1)).view(present.shape)  # [B, C]
    return mean.masked_fill(~present, -torch.inf)
