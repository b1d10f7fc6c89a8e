"""What this package keeps with a model: its tokenizer, and a description of how it was loaded.

:func:`load_model` sets both. For a PEFT model of your own, set ``model.tokenizer``; the description may be missing.
"""

from torch import nn

from ..posterior import unwrapped


def tokenizer_of(model: nn.Module):
    """The model's tokenizer.

    Raises:
        ValueError: it has none.
    """
    tokenizer = getattr(unwrapped(model), "tokenizer", None)
    if tokenizer is None:
        raise ValueError(
            "The model has no tokenizer: set model.tokenizer = transformers.AutoTokenizer.from_pretrained(…), or load "
            "the model with load_model, which does."
        )
    return tokenizer


def description_of(model: nn.Module) -> dict:
    """How :func:`load_model` loaded the model (name, dtype, quantize, lora, adapter …), or nothing."""
    return getattr(unwrapped(model), "description", {})
