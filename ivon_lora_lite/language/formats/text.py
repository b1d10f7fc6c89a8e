"""The format ``text`` (for small models): an answer's logit is the mean log-likelihood of its tokens.

The answers follow ``Question: …\\nAnswer:``. All questions of a batch are packed into one row ``[question 1][choice 1]
… [choice C][question 2] …`` without padding: a block mask lets a choice see its question and itself, position ids
restart after the question, and the output layer runs at answer positions only. Models for which that is not exact
(`kinds.py`) get a row for every choice.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...posterior import unwrapped
from ..accessors import evaluating
from ..questions import Question
from .base import Batch, Format, check_length, continuation, padded, token_ids
from .kinds import TOLERANCE, known_exact, log_likelihoods, text_config, window


class TextFormat(Format):
    """All questions and choices of a batch in one packed row."""

    name, marker = "text", "block"

    def batch(self, questions: Sequence[Question], tokenizer, limit: int) -> Batch:
        starts, answers = [], []
        for q in questions:
            prompt = f"Question: {q.stem}\nAnswer:"
            starts.append(token_ids(tokenizer, prompt))
            answers.append([continuation(tokenizer, prompt, starts[-1], choice) for choice in q.choices])
            check_length(q, len(starts[-1]) + max(map(len, answers[-1])), limit)
        return pack(starts, answers)

    def logits(self, model: nn.Module, batch: Batch, copies: int) -> Tensor:
        if not self.packs(model, batch):
            return self.row_by_row(model, batch, copies)
        return self.packed(model, batch, copies)

    def packs(self, model: nn.Module, batch: Batch) -> bool:
        """Whether the packed row gives what one row a choice gives; of an unknown kind of model, found out once."""
        if unwrapped(model).config._attn_implementation not in ("sdpa", "eager"):  # flex and flash take no such mask
            return False
        sees, found = window(model), known_exact(model)
        # a window may count positions, or places in the row
        furthest = int(batch["position_ids"].max()) if found else batch["input_ids"].shape[1]
        if sees is not None and furthest >= sees:
            return False
        if found is not None:
            return found
        store = vars(unwrapped(model))
        if "_packs" not in store:
            store["_packs"] = self._compared(model)
        return store["_packs"]

    def _compared(self, model: nn.Module) -> bool:
        """Score two made-up questions, whose choices have several tokens, both ways."""
        inner = unwrapped(model)
        if inner.dtype != torch.float32:  # rounding could hide the difference
            return False
        generator = torch.Generator().manual_seed(0)
        size = text_config(model).vocab_size

        def made(*lengths: int) -> list[list[int]]:
            return [torch.randint(size, (n,), generator=generator).tolist() for n in lengths]

        batch = pack(made(12, 7), [made(6, 3, 9), made(2, 8)])
        batch = {name: tensor.to(inner.device) for name, tensor in batch.items()}
        try:
            with evaluating(model), torch.no_grad():
                slow, fast = self.row_by_row(model, batch, 1), self.packed(model, batch, 1)
        except (TypeError, ValueError, RuntimeError):  # it does not take such a mask, or such positions
            return False
        return torch.allclose(slow, fast, atol=TOLERANCE, rtol=0)

    def packed(self, model: nn.Module, batch: Batch, copies: int) -> Tensor:
        """All choices at once: ``[copies, B, C]``."""
        mask = block_mask(batch["block"], batch["sees"])
        inner = unwrapped(model)
        if inner.config._attn_implementation == "eager":  # it adds the mask instead of selecting by it
            dtype = torch.get_autocast_dtype(inner.device.type) if torch.is_autocast_enabled() else inner.dtype
            mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
        out = model(
            input_ids=batch["input_ids"].expand(copies, -1),
            attention_mask=mask.expand(copies, -1, -1, -1),
            position_ids=batch["position_ids"].expand(copies, -1),
            logits_to_keep=batch["keep"],
            use_cache=False,
        )
        return torch.stack([_mean_log_likelihood(logits.float(), batch) for logits in out.logits])

    def row_by_row(self, model: nn.Module, batch: Batch, copies: int) -> Tensor:
        """Every choice in a row of its own, after its question: slower, and right for every causal model."""
        rows = batch["rows"].repeat(copies, 1)
        mask = batch["rows_mask"].repeat(copies, 1)
        means = log_likelihoods(model, rows, mask, batch["starts"].repeat(copies))
        present = batch["present"]
        out = means.new_full((copies, *present.shape), -torch.inf)
        out[:, present] = means.view(copies, -1)
        return out

    def shape(self, model: nn.Module, batch: Batch) -> tuple[int, int]:
        return tuple(batch["input_ids" if self.packs(model, batch) else "rows"].shape)

    def kept(self, model: nn.Module, batch: Batch) -> Tensor | None:
        return batch["keep"] if self.packs(model, batch) else None

    def tokens(self, model: nn.Module, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """In a packed row the questions follow one another, each with its choices behind it; else choices have rows."""
        if self.packs(model, batch):
            question = batch["sees"][batch["block"]]  # [L]: the question block of every packed token
            return [(torch.zeros_like(own), own) for own in (torch.where(question == q)[0] for q in question.unique())]
        row, position = batch["rows_mask"].nonzero(as_tuple=True)
        ends = batch["present"].sum(1).cumsum(0).tolist()
        own = [(row >= start) & (row < end) for start, end in zip([0, *ends], ends)]
        return [(row[mask], position[mask]) for mask in own]


def pack(starts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]]) -> Batch:
    """The packed row and, for models that need them, a row for every choice.

    Args:
        starts: per question the tokens of ``Question: …\\nAnswer:``.
        answers: per question and choice the tokens that follow.
    """
    ids, block, place = [], [], []  # per packed token: its id, the block it belongs to, its position
    sees: list[int] = []  # per block: the question block that it can see besides itself
    read, target, owner = [], [], []  # per answer token: where its logits are, its id, its choice
    rows, begins = [], []  # per choice: its question and itself, and where it begins
    width = max(map(len, answers))
    for row, (start, choices) in enumerate(zip(starts, answers)):
        question_block = len(sees)
        sees.append(question_block)
        ids += start
        block += [question_block] * len(start)
        place += range(len(start))
        last = len(ids) - 1
        for column, tokens in enumerate(choices):
            # the question's last token predicts the first one of every answer; an answer's last token is not read
            read += [last, *range(len(ids), len(ids) + len(tokens) - 1)]
            target += tokens
            rows.append([*start, *tokens])
            begins.append(len(start))
            owner += [row * width + column] * len(tokens)
            block += [len(sees)] * (len(tokens) - 1)
            sees.append(question_block)
            ids += tokens[:-1]
            place += range(len(start), len(start) + len(tokens) - 1)
    keep, read_kept = torch.tensor(read).unique(return_inverse=True)
    present = torch.tensor([[c < len(choices) for c in range(width)] for choices in answers])
    padded_rows, rows_mask = padded(rows, 0, left=False)
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
        "rows": padded_rows,  # [choices, R]
        "rows_mask": rows_mask,
        "starts": torch.tensor(begins),  # [choices]
    }


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
