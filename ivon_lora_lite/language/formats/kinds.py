"""Which models may score many questions in one packed row, and which need a row for every choice.

In a packed row a mask and position ids keep questions apart. That is exact where tokens meet in attention only, and
where attention sees positions as they are given. Sliding windows, ALiBi (which counts distances in the row),
convolutions, recurrences and state spaces mix tokens by other ways. Models of a kind that is known to be exact are
packed; others score two made-up questions both ways when they are first used.
"""

import inspect

import torch
from torch import Tensor, nn

from ...posterior import unwrapped

# attention alone, with position ids as they are given; each is compared with one row a choice by a test
EXACT = {
    "gemma", "gpt2", "gpt_neox", "granite", "llama", "mistral", "olmo", "olmo2", "phi", "phi3", "qwen2", "qwen3",
    "smollm3", "stablelm", "starcoder2",
}  # fmt: skip
WINDOWS = ("sliding_window", "window_size", "attention_window_size", "attention_window")
ATTENTION = {"full_attention", "sliding_attention"}
TOLERANCE = 1e-3  # of logits, in fp32


def text_config(model: nn.Module):
    """The configuration of the language model (of a model of text and pictures: of its text part)."""
    return unwrapped(model).config.get_text_config()


def window(model: nn.Module) -> int | None:
    """How far the model's attention sees, in tokens; None: as far as there are tokens."""
    config = text_config(model)
    layers = getattr(config, "layer_types", None) or ["sliding_attention"]
    slides = "sliding_attention" in layers and getattr(config, "use_sliding_window", True)
    sizes = [getattr(config, name, None) for name in WINDOWS[:1] * bool(slides) + WINDOWS[1:]]
    return min((size for size in sizes if isinstance(size, int)), default=None)


def known_exact(model: nn.Module) -> bool | None:
    """Whether packing is exact up to the model's window; None: it is not known."""
    config = text_config(model)
    alibi = getattr(config, "alibi", False) or getattr(getattr(config, "attn_config", None), "alibi", False)
    if alibi or not ATTENTION.issuperset(getattr(config, "layer_types", None) or ()):
        return False
    return True if config.model_type in EXACT else None


def accepted(model: nn.Module, **options) -> dict:
    """Those options that the base model's ``forward`` takes."""
    base = unwrapped(model)
    base = base.get_base_model() if hasattr(base, "get_base_model") else base
    names = inspect.signature(base.forward).parameters
    return {name: value for name, value in options.items() if name in names}


def log_likelihoods(model: nn.Module, rows: Tensor, mask: Tensor, starts: Tensor) -> Tensor:
    """Mean log-likelihood of each row's tokens from its start on: ``[B]``, whatever kind of model it is.

    Args:
        rows: token ids ``[B, L]``, padded on the right, where no token of a causal model can see the padding.
        mask: 1 for tokens, 0 for padding.
        starts: ``[B]``, the position of the first token that counts.
    """
    logits = model(input_ids=rows, attention_mask=mask, **accepted(model, use_cache=False)).logits.float()
    of_next = logits[:, :-1].log_softmax(-1).gather(-1, rows[:, 1:, None]).squeeze(-1)  # [B, L − 1]
    counts = (torch.arange(1, rows.shape[1], device=rows.device) >= starts[:, None]) & (mask[:, 1:] > 0)
    return (of_next * counts).sum(-1) / counts.sum(-1)
