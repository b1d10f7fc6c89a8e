"""AdaLoRA with IVON's |m|/σ as the importance of a weight (Chen & Garner 2024).

AdaLoRA starts with more directions than its budget allows and takes away the least important ones while it trains. Its
own importance is a running |weight · gradient| times how much that varies. A weight whose mean is small beside its own
σ could as well be zero, and IVON knows both.
"""

from __future__ import annotations

from torch import nn

from ..ivon import IVON


def rank_by_signal(model: nn.Module, optimizer: IVON) -> None:
    """Let a PEFT model with AdaLoRA keep the directions with the largest |m|/σ, instead of by AdaLoRA's own score.

    A direction's importance is combined from its weights as AdaLoRA does it: that of its singular value plus the means
    over its two vectors. Call it once, before training; then train as usual, with ``update_and_allocate`` after each
    ``optimizer.step()``.

    Args:
        model: of ``get_peft_model(base, AdaLoraConfig(...))``.
        optimizer: over all of AdaLoRA's weights.

    Raises:
        ValueError: the model has no AdaLoRA.
    """
    from peft.tuners.adalora import RankAllocator

    class SignalToNoise(RankAllocator):
        def __init__(self, given: RankAllocator):
            self.__dict__.update(given.__dict__)

        def update_ipt(self, model):
            for name, p in model.named_parameters():
                if "lora_" in name and self.adapter_name in name:
                    self.ipt[name] = optimizer.mean(p).abs() / optimizer.variance(p).sqrt()

        def _element_score(self, name):
            return self.ipt[name]

    allocator = getattr(getattr(model, "base_model", None), "rankallocator", None)
    if allocator is None:
        raise ValueError("The model has no AdaLoRA that is being trained: get_peft_model(base, AdaLoraConfig(...)).")
    model.base_model.rankallocator = SignalToNoise(allocator)
