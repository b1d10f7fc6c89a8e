"""The format ``letter`` (Cong et al. 2024): next-token logits of the answer's letter or word after the prompt."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..questions import Question
from .base import Batch, Format, check_length, continuation, padded, token_ids


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
            # what precedes the answer decides how it is tokenised, and for all prompts that is the same few words
            own = [answer_token(tokenizer, q.prompt[-12:].lstrip(), label) for label in q.labels]
            if len(set(own)) < len(own):
                raise ValueError(f"The answers {', '.join(q.labels)} start with the same token: use format='text'.")
            tokens[row, : len(own)] = torch.tensor(own)
        return {"input_ids": input_ids, "attention_mask": mask, "answer_tokens": tokens}

    def logits(self, model: nn.Module, batch: Batch, copies: int) -> Tensor:
        input_ids, mask, tokens = (batch[k].repeat(copies, 1) for k in ("input_ids", "attention_mask", "answer_tokens"))
        out = model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            logits_to_keep=1,  # the output layer at the last position only
            use_cache=False,
        )
        logits = out.logits[:, -1].float().gather(-1, tokens.clamp(min=0))  # [R · B, C]
        return logits.masked_fill(tokens < 0, -torch.inf).view(copies, -1, tokens.shape[-1])

    def tokens(self, batch: Batch) -> list[tuple[int, slice]]:
        padding = (batch["attention_mask"] == 0).sum(1).tolist()
        return [(b, slice(start, None)) for b, start in enumerate(padding)]


def answer_token(tokenizer, prompt: str, word: str) -> int:
    """The token that follows ``prompt`` when the answer is ``word``.

    It is read off ``prompt + " " + word``: byte-level BPE has a token of its own for " A", SentencePiece ("▁A") and
    others do not share ids with a bare "A". If a word has several tokens, the first one counts.
    """
    return continuation(tokenizer, prompt, token_ids(tokenizer, prompt), word)[0]
