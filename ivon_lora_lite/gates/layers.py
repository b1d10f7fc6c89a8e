"""PEFT's LoRA layers of a model: where A and B are, and of which shape."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

__all__ = ["PREFIX", "LoraPair", "lora_layers"]

PREFIX = "base_model.model."  # what PEFT puts before the base model's own names


@dataclass(frozen=True)
class LoraPair:
    """The two matrices of one layer, as modules whose ``weight`` is A ``[r, d_in]`` and B ``[d_out, r]``."""

    a: nn.Linear
    b: nn.Linear

    @property
    def shape(self) -> tuple[int, int, int]:
        """(d_in, d_out, r)"""
        return self.a.in_features, self.b.out_features, self.a.out_features


def lora_layers(model: nn.Module) -> dict[str, LoraPair]:
    """The base model's name of each layer with LoRA → its A and B.

    Raises:
        ValueError: there is no LoRA, or one that is not a plain pair of matrices.
    """
    from peft.tuners.lora import LoraLayer

    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        for adapter in module.active_adapters:
            pair = [
                getattr(module, which)[adapter] for which in ("lora_A", "lora_B") if adapter in getattr(module, which)
            ]
            if len(module.active_adapters) > 1 or len(pair) < 2 or not all(isinstance(m, nn.Linear) for m in pair):
                raise ValueError(f"{name} is not plain LoRA on a linear layer with one adapter.")
            found[name.removeprefix(PREFIX)] = LoraPair(*pair)
    if not found:
        raise ValueError("The model has no LoRA: put LoRA on it with load_model or peft.")
    return found
