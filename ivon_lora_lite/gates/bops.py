"""Bit operations: multiply-accumulates times the bits of both operands (van Baalen et al. 2020).

A product with LoRA's A, ``[r, d_in]``, takes r · d_in MACs per token, one with B, ``[d_out, r]``, takes d_out · r.
Counted are LoRA's own two products, not the frozen base: a merged adapter would cost nothing, an adapter that is kept
apart (one of many on a shared base) costs this.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..posterior import lora_layers
from .attach import attached
from .decisions import FULL_BITS, Decisions, LayerDecision


@dataclass(frozen=True)
class BitOperations:
    """BOPs of one pass.

    Attributes:
        matrices: ``layer.lora_A`` and ``layer.lora_B`` → ``{"macs", "weight_bits", "activation_bits", "bops"}``.
        tokens: for how many tokens.
    """

    matrices: dict[str, dict[str, int]]
    tokens: int

    @property
    def total(self) -> int:
        return sum(row["bops"] for row in self.matrices.values())


def bit_operations(
    model: nn.Module,
    batch: Mapping[str, Tensor] | None = None,
    *,
    decisions: Decisions | None = None,
    weight_bits: int = FULL_BITS,
    activation_bits: int = FULL_BITS,
) -> BitOperations:
    """BOPs of LoRA's products: MACs · b_w · b_a for every matrix; for plain LoRA r (d_in + d_out) · 16 · 16 per token.

    Args:
        model: with LoRA; if gates are on it, their present decisions count.
        batch: from ``collate``; every position counts, padding too. Default: one token.
        decisions: ranks and widths to count instead, such as ``run.gates`` of a finished run.
        weight_bits: of matrices that no gate quantises.
        activation_bits: of what the matrices are multiplied with; gates do not change it.
    """
    gates = attached(model)
    if decisions is None and gates is not None:
        decisions = gates.decisions()
    tokens = 1 if batch is None else batch["input_ids"].numel()
    matrices = {}
    for name, layer in lora_layers(model).items():
        (d_in, d_out, rank), bits = layer.shape, (None, None)
        if decisions is not None and name in decisions.layers:
            own = decisions.layers[name]
            rank, bits = own.rank, (own.bits_a, own.bits_b)
        for matrix, width, own_bits in zip(("lora_A", "lora_B"), (d_in, d_out), bits):
            row = {"macs": tokens * rank * width, "weight_bits": own_bits or weight_bits}
            row |= {"activation_bits": activation_bits}
            matrices[f"{name}.{matrix}"] = row | {"bops": row["macs"] * row["weight_bits"] * activation_bits}
    return BitOperations(matrices, tokens)


def summary(decisions: Decisions, model: nn.Module) -> str:
    """Ranks, widths and bit operations in one sentence.

    Args:
        decisions: such as ``run.gates``.
        model: the PEFT model that they are for.
    """
    full = {name: LayerDecision(pair.shape[2]) for name, pair in lora_layers(model).items()}
    share = bit_operations(model, decisions=decisions).total / bit_operations(model, decisions=Decisions(full)).total
    layers, count = decisions.layers.values(), len(decisions.layers)
    rank, most = sum(own.rank for own in layers) / count, sum(own.rank for own in full.values()) / len(full)
    widths = [bits or FULL_BITS for own in layers for bits in (own.bits_a, own.bits_b)]
    return (
        f"Gates: mean rank {rank:.1f} of {most:g}, mean width {sum(widths) / len(widths):.1f} bits; {share:.1%} of the "
        f"bit operations of full rank in {FULL_BITS} bits"
    )
