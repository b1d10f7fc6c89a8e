"""The format ``letter`` (Cong et al. 2024): next-token logits of the answer's letter or word after the prompt."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..questions import Question
from .base import Batch, Format, check_length, continuation, padded, token_ids
from .kinds import accepted, known_exact


class LetterFormat(Format):
    """One row a question, padded on the left, so that the last position predicts the answer's token."""

    name, marker = "letter", "answer_tokens"

    def batch(self, questions: Sequence[Question], tokenizer, limit: int) -> Batch:
        prompts = [token_ids(tokenizer, q.prompt) for q in questions]
        for q, prompt in zip(questions, prompts):
            check_length(q, len(prompt), limit)
        input_ids, mask = padded(prompts, 0, left=True)  # [B, L]
        tokens = torch.full((len(questions), max(len(q.labels) for q in questions)), -1)  # [B, C]
        for row, q in enumerate(questions):
            if len(q.labels) != len(q.choices):
                raise ValueError(
                    f"The question {q.stem[:60]!r} has {len(q.choices)} choices and {len(q.labels)} letters."
                )
            # what precedes the answer decides how it is tokenised, and for all prompts that is the same few words
            own = [answer_token(tokenizer, q.prompt[-12:].lstrip(), label) for label in q.labels]
            if len(set(own)) < len(own):
                raise ValueError(f"The answers {', '.join(q.labels)} start with the same token: use format='text'.")
            tokens[row, : len(own)] = torch.tensor(own)
        return {"input_ids": input_ids, "attention_mask": mask, "answer_tokens": tokens}

    def logits(self, model: nn.Module, batch: Batch, copies: int) -> Tensor:
        input_ids, mask, tokens = (batch[k].repeat(copies, 1) for k in ("input_ids", "attention_mask", "answer_tokens"))
        if known_exact(model):
            out = model(
                input_ids=input_ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                logits_to_keep=1,  # the output layer at the last position only
                use_cache=False,
            )
            last = out.logits[:, -1]
        else:  # padding on the right, which no token of a causal model can see
            order = mask.argsort(dim=-1, descending=True, stable=True)
            rows, mask = input_ids.gather(-1, order), mask.gather(-1, order)
            out = model(input_ids=rows, attention_mask=mask, **accepted(model, use_cache=False))
            last = out.logits[torch.arange(len(rows), device=rows.device), mask.sum(-1) - 1]
        logits = last.float().gather(-1, tokens.clamp(min=0))  # [R · B, C]
        return logits.masked_fill(tokens < 0, -torch.inf).view(copies, -1, tokens.shape[-1])

    def kept(self, model: nn.Module, batch: Batch) -> Tensor | None:
        return torch.tensor([batch["input_ids"].shape[1] - 1]) if known_exact(model) else None

    def tokens(self, model: nn.Module, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        if not known_exact(model):  # padding stands on the right
            batch = {**batch, "attention_mask": batch["attention_mask"].sort(dim=-1, descending=True).values}
        return super().tokens(model, batch)


def answer_token(tokenizer, prompt: str, word: str) -> int:
    """The token that follows ``prompt`` when the answer is ``word``.

    It is read off ``prompt + " " + word``: byte-level BPE has a token of its own for " A", SentencePiece ("▁A") and
    others do not share ids with a bare "A". If a word has several tokens, the first one counts.
    """
    return continuation(tokenizer, prompt, token_ids(tokenizer, prompt), word)[0]
