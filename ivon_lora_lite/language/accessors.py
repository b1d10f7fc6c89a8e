"""What this package keeps with a model: its tokenizer, and a description of how it was loaded; and its mode.

:func:`load_model` sets both. For a PEFT model of your own, set ``model.tokenizer``; the description may be missing.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..locks import lock_of
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


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the context the model is in evaluation mode; afterwards each of its parts is in its own mode again.

    Other threads that want to evaluate it, or to put other weights into it, wait.
    """
    with lock_of(unwrapped(model)):
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


def description_of(model: nn.Module) -> dict:
    """How :func:`load_model` loaded the model (name, dtype, quantize, lora, adapter …), or nothing."""
    return getattr(unwrapped(model), "description", {})
