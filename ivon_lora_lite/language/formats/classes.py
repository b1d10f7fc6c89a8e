"""The format ``class``: the head of a sequence classifier gives the logits; it reads the question, not the choices."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..questions import Question
from .base import Batch, Format, check_length, padded
from .kinds import text_config


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
        rows = [tokenizer(q.stem)["input_ids"] for q in questions]  # with all special tokens, as it was pretrained
        for q, row in zip(questions, rows):
            check_length(q, len(row), limit)
        input_ids, mask = padded(rows, tokenizer.pad_token_id or 0, left=False)  # [B, L]
        classes = torch.arange(len(questions[0].choices)).expand(len(rows), -1)  # [B, C]
        return {"input_ids": input_ids, "attention_mask": mask, "classes": classes}

    def logits(self, model: nn.Module, batch: Batch, copies: int) -> Tensor:
        input_ids, mask = (batch[name].repeat(copies, 1) for name in ("input_ids", "attention_mask"))
        pad = text_config(model).pad_token_id
        if pad is not None:  # by this a classifier on a decoder knows a row's last token
            input_ids = input_ids.masked_fill(mask == 0, pad)
        elif not mask.all():
            raise ValueError(
                "The model has no pad token: set model.config.pad_token_id, and the tokenizer's pad_token."
            )
        logits = model(input_ids=input_ids, attention_mask=mask).logits.float()  # [R · B, labels]
        wanted = batch["classes"].shape[-1]
        if logits.shape[-1] != wanted:
            raise ValueError(f"The classifier has {logits.shape[-1]} labels and the questions have {wanted} choices.")
        return logits.view(copies, -1, wanted)
