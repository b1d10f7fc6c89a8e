"""The format ``class``: the head of a sequence classifier gives the logits; it reads the question, not the choices."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..questions import Question
from .base import Batch, Format, check_length, padded, token_ids


class ClassFormat(Format):
    """One row a question, padded on the right; all questions need the same choices, one per class."""

    name, marker = "class", "classes"
    classifier = True

    def batch(self, questions: Sequence[Question], tokenizer, limit: int) -> Batch:
        for q in questions:
            if q.choices != questions[0].choices:
                raise ValueError(
                    f"The choices {', '.join(q.choices)} and {', '.join(questions[0].choices)} differ: a classifier "
                    "needs the same for all questions, so use format='text' or 'letter'."
                )
        rows = [token_ids(tokenizer, q.stem) for q in questions]
        for q, row in zip(questions, rows):
            check_length(q, len(row), limit)
        input_ids, mask = padded(rows, tokenizer.pad_token_id or 0, left=False)  # [B, L]
        classes = torch.arange(len(questions[0].choices)).expand(len(rows), -1)  # [B, C]
        return {"input_ids": input_ids, "attention_mask": mask, "classes": classes}

    def logits(self, model: nn.Module, batch: Batch, copies: int) -> Tensor:
        input_ids, mask = (batch[name].repeat(copies, 1) for name in ("input_ids", "attention_mask"))
        logits = model(input_ids=input_ids, attention_mask=mask).logits.float()  # [R · B, labels]
        wanted = batch["classes"].shape[-1]
        if logits.shape[-1] != wanted:
            raise ValueError(f"The classifier has {logits.shape[-1]} labels and the questions have {wanted} choices.")
        return logits.view(copies, -1, wanted)

    def tokens(self, batch: Batch) -> list[tuple[int, slice]]:
        return [(b, slice(0, length)) for b, length in enumerate(batch["attention_mask"].sum(1).tolist())]
