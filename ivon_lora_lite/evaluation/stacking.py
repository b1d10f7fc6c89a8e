"""Several draws in one forward pass: each copy of a batch meets LoRA weights of its own.

The frozen base is the same for all draws, so its large products run once for all of them. One draw after another gives
the same logits; `benchmarks/tau.py` compares the times.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..locks import lock_of
from ..posterior import lora_linears, unwrapped


def can_stack(model: nn.Module) -> bool:
    """Whether all trainable tensors are LoRA's A and B of linear layers."""
    try:
        return bool(lora_linears(model))
    except ValueError:
        return False


@contextmanager
def stacked(model: nn.Module, draws: Sequence[Mapping[str, Tensor]]) -> Iterator[None]:
    """Within the context a batch of R copies, one after another, is computed with R sets of weights.

    Args:
        model: one that :func:`can_stack`.
        draws: R draws, each name → tensor with the names of :func:`trainable`.
    """
    layers = lora_linears(model)
    with lock_of(unwrapped(model)):
        found = {module: vars(module).get("forward") for module in layers.values()}  # somebody else's, if there is one
        for name, module in layers.items():
            weights = torch.stack([draw[name] for draw in draws]).to(module.weight)  # [R, out, in]
            # of this object only; the class and the weights stay as they are
            module.forward = lambda x, w=weights: (x.reshape(len(w), -1, x.shape[-1]) @ w.mT).view(*x.shape[:-1], -1)
        try:
            yield
        finally:
            for module, forward in found.items():
                if forward is None:
                    vars(module).pop("forward", None)
                else:
                    module.forward = forward
