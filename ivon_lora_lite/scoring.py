"""Questions → token batches → one logit per answer, ``[B, C]``.

Three answer formats:

* ``letter`` (Cong et al. 2024): the next-token logits of the answer's letter or word after the prompt.
* ``text`` (for small models): an answer's logit is the mean log-likelihood of its tokens after
  ``Question: …\\nAnswer:``. All questions of a batch are packed into one row ``[question 1][choice 1] … [choice C]
  [question 2] …`` without padding: a block mask lets a choice see its question and itself, position ids restart after
  the question, and the output layer runs at answer positions only.
* ``class`` (GLUE on an encoder such as DeBERTa): the model is a sequence classifier, whose head gives the logits of the
  answers; it reads the question, not the choices, so all questions need the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from .tasks import Question

__all__ = ["FORMATS", "answer_logits", "answer_loss", "collate"]

FORMATS = ("letter", "text", "class")
Batch = dict[str, Tensor]


def collate(questions: Sequence[Question], tokenizer, format: str, max_length: int | None = None) -> Batch:
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
    if format not in FORMATS:
        raise ValueError(f"There is no answer format {format!r}. Known formats: {', '.join(FORMATS)}.")
    if not questions:
        raise ValueError("There are no questions to collate.")
    limit = max_length or min(tokenizer.model_max_length, 2**20)
    batch = {"letter": _letter_batch, "text": _text_batch, "class": _class_batch}[format](questions, tokenizer, limit)
    batch["answers"] = torch.tensor([q.answer for q in questions])
    return batch


def answer_logits(model: nn.Module, batch: Batch, copies: int | None = None) -> Tensor:
    """Answer logits ``[B, C]`` in fp32; −∞ where a question has fewer than C choices.

    Args:
        model: a causal language model of transformers (with or without LoRA); for the format ``class`` a sequence
            classifier.
        batch: from :func:`collate`.
        copies: run the batch R times side by side and return ``[R, B, C]``: for a model whose weights differ from copy
            to copy (:func:`ivon_lora_lite.stacking.stacked`).

    Raises:
        ValueError: the format needs another kind of model, or the classifier has another number of classes.
    """
    device = model.device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    with _precision(model):
        logits = _kind(model, batch)(model, batch, copies or 1)  # [R, B, C]
    return logits[0] if copies is None else logits


def _kind(model: nn.Module, batch: Batch) -> Callable[[nn.Module, Batch, int], Tensor]:
    """The function for the batch's format, if the model is of the kind that it needs."""
    classifier = getattr(getattr(model, "module", model), "description", {}).get("labels") is not None
    if ("classes" in batch) != classifier:
        is_, needs = ("a sequence classifier", "'class'") if classifier else ("a language model", "'text' or 'letter'")
        raise ValueError(f"The model is {is_}: it needs format={needs}. load_model(…, labels=N) makes a classifier.")
    return _class_logits if classifier else _text_logits if "owner" in batch else _letter_logits


def answer_loss(logits: Tensor, answers: Tensor) -> Tensor:
    """Cross-entropy of answer logits ``[B, C]`` and answers ``[B]``: the ℓ(θ) that AdamW and IVON minimise."""
    return nn.functional.cross_entropy(logits, answers.to(logits.device))


def _precision(model: nn.Module) -> AbstractContextManager:
    """Autocast if the frozen base is 16-bit while LoRA's weights are fp32."""
    dtype = next(model.parameters()).dtype
    if dtype in (torch.bfloat16, torch.float16):
        return torch.autocast(model.device.type, dtype)
    return nullcontext()


# -------------------------------------------------------------------------------------------------------------- letter


def answer_token(tokenizer, prompt: str, word: str) -> int:
    """The token that follows ``prompt`` when the answer is ``word``.

    It is read off ``prompt + " " + word``: byte-level BPE has a token of its own for " A", SentencePiece ("▁A") and
    others do not share ids with a bare "A". If a word has several tokens, the first one counts.
    """
    return _continuation(tokenizer, prompt, _ids(tokenizer, prompt), word)[0]


def _letter_batch(questions: Sequence[Question], tokenizer, limit: int) -> Batch:
    prompts = [_ids(tokenizer, q.prompt) for q in questions]
    for q, ids in zip(questions, prompts):
        _check_length(q, len(ids), limit)
    length = max(len(ids) for ids in prompts)
    input_ids = torch.zeros(len(prompts), length, dtype=torch.long)  # [B, L], padded on the left
    mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(prompts):
        input_ids[row, length - len(ids) :] = torch.tensor(ids)
        mask[row, length - len(ids) :] = 1
    width = max(len(q.labels) for q in questions)
    tokens = torch.full((len(questions), width), -1)  # [B, C]
    for row, q in enumerate(questions):
        # what precedes the answer decides how it is tokenised, and for all prompts that is the same few words
        own = [answer_token(tokenizer, q.prompt[-12:].lstrip(), label) for label in q.labels]
        if len(set(own)) < len(own):
            raise ValueError(f"The answers {', '.join(q.labels)} start with the same token: use format='text'.")
        tokens[row, : len(own)] = torch.tensor(own)
    return {"input_ids": input_ids, "attention_mask": mask, "answer_tokens": tokens}


def _letter_logits(model: nn.Module, batch: Batch, copies: int) -> Tensor:
    input_ids, mask, tokens = (batch[k].repeat(copies, 1) for k in ("input_ids", "attention_mask", "answer_tokens"))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    out = model(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=positions,
        logits_to_keep=1,  # the output layer at the last position only
        use_cache=False,
    )
    logits = out.logits[:, -1].float().gather(-1, tokens.clamp(min=0))  # [R · B, C]
    return logits.masked_fill(tokens < 0, -torch.inf).view(copies, -1, tokens.shape[-1])


# --------------------------------------------------------------------------------------------------------------- class


def _class_batch(questions: Sequence[Question], tokenizer, limit: int) -> Batch:
    for q in questions:
        if q.choices != questions[0].choices:
            raise ValueError(
                f"The choices {', '.join(q.choices)} and {', '.join(questions[0].choices)} differ: a classifier needs "
                "the same for all questions, so use format='text' or 'letter'."
            )
    rows = [_ids(tokenizer, q.stem) for q in questions]
    for q, ids in zip(questions, rows):
        _check_length(q, len(ids), limit)
    length = max(map(len, rows))
    input_ids = torch.full((len(rows), length), tokenizer.pad_token_id or 0)  # [B, L], padded on the right
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for row, ids in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    classes = torch.arange(len(questions[0].choices)).expand(len(rows), -1)  # [B, C]
    return {"input_ids": input_ids, "attention_mask": mask, "classes": classes}


def _class_logits(model: nn.Module, batch: Batch, copies: int) -> Tensor:
    input_ids, mask = (batch[name].repeat(copies, 1) for name in ("input_ids", "attention_mask"))
    logits = model(input_ids=input_ids, attention_mask=mask).logits.float()  # [R · B, labels]
    wanted = batch["classes"].shape[-1]
    if logits.shape[-1] != wanted:
        raise ValueError(f"The classifier has {logits.shape[-1]} labels and the questions have {wanted} choices.")
    return logits.view(copies, -1, wanted)


# ---------------------------------------------------------------------------------------------------------------- text


def _text_batch(questions: Sequence[Question], tokenizer, limit: int) -> Batch:
    ids, block, place = [], [], []  # per packed token: its id, the block it belongs to, its position
    own: list[int] = []  # per block: the question block that it can see besides itself
    read, target, owner = [], [], []  # per answer token: where its logits are, its id, its choice
    width = max(len(q.choices) for q in questions)
    for row, q in enumerate(questions):
        prompt = f"Question: {q.stem}\nAnswer:"
        start = _ids(tokenizer, prompt)
        answers = [_continuation(tokenizer, prompt, start, choice) for choice in q.choices]
        _check_length(q, len(start) + max(map(len, answers)), limit)
        question_block = len(own)
        own.append(question_block)
        ids += start
        block += [question_block] * len(start)
        place += range(len(start))
        last = len(ids) - 1
        for column, tokens in enumerate(answers):
            # the last token of the question predicts the first one of every answer; an answer's last token is not read
            read += [last, *range(len(ids), len(ids) + len(tokens) - 1)]
            target += tokens
            owner += [row * width + column] * len(tokens)
            block += [len(own)] * (len(tokens) - 1)
            own.append(question_block)
            ids += tokens[:-1]
            place += range(len(start), len(start) + len(tokens) - 1)
    keep, read_kept = torch.tensor(read).unique(return_inverse=True)
    present = torch.tensor([[c < len(q.choices) for c in range(width)] for q in questions])
    return {
        "input_ids": torch.tensor([ids]),  # [1, L]
        "position_ids": torch.tensor([place]),  # [1, L]
        "block": torch.tensor(block),  # [L]
        "sees": torch.tensor(own),  # [blocks]
        "keep": keep,  # [K] positions at which the output layer runs
        "read": read_kept,  # [T] rows of those K
        "target": torch.tensor(target),  # [T]
        "owner": torch.tensor(owner),  # [T] → b * C + c
        "present": present,  # [B, C]
    }


def block_mask(block: Tensor, sees: Tensor) -> Tensor:
    """Who attends to whom in a packed row: ``[L]`` block numbers → boolean ``[1, 1, L, L]``.

    A token sees the earlier tokens (and itself) of its own block and of the question that the block belongs to.
    """
    same = block[:, None] == block[None, :]
    question = sees[block][:, None] == block[None, :]
    return ((same | question).tril())[None, None]


def _text_logits(model: nn.Module, batch: Batch, copies: int) -> Tensor:
    mask = block_mask(batch["block"], batch["sees"])
    config = getattr(model, "module", model).config  # DistributedDataParallel hides it
    if config._attn_implementation == "eager":  # it adds the mask instead of selecting by it
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


def _mean_log_likelihood(logits: Tensor, batch: Batch) -> Tensor:
    """``[K, V]`` at the kept positions → ``[B, C]``."""
    log_norm = logits.logsumexp(-1)  # [K]
    read, owner, present = batch["read"], batch["owner"], batch["present"]
    token_ll = logits[read, batch["target"]] - log_norm[read]  # [T]
    total = token_ll.new_zeros(present.numel()).index_add(0, owner, token_ll)
    count = token_ll.new_zeros(present.numel()).index_add(0, owner, torch.ones_like(token_ll))
    mean = (total / count.clamp(min=1)).view(present.shape)  # [B, C]
    return mean.masked_fill(~present, -torch.inf)


def _continuation(tokenizer, prompt: str, start: list[int], choice: str) -> list[int]:
    whole = _ids(tokenizer, f"{prompt} {choice}")
    tokens = whole[len(start) :] if whole[: len(start)] == start else _ids(tokenizer, f" {choice}", special=False)
    if not tokens:
        raise ValueError(f"The choice {choice!r} of the question {prompt!r} has no tokens.")
    return tokens


def _ids(tokenizer, text: str, special: bool = True) -> list[int]:
    return tokenizer(text, add_special_tokens=special)["input_ids"]


def _check_length(question: Question, length: int, limit: int) -> None:
    if length > limit:
        raise ValueError(
            f"Question {question.id or question.stem[:40]!r} has {length} tokens, more than the limit of {limit}: "
            "shorten it or leave it out."
        )
