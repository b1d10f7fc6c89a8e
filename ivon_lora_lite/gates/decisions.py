"""What the gates decided: ranks, bit widths and ranges, to be applied to any weights, and to be saved.

Nothing here is random or trained any more, and the model needs no gates: ``decisions.apply(weights)`` gives ordinary
LoRA weights, on their grids and with zeros for the directions that are off.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import write_json, write_tensors
from ..language import changes_base
from ..posterior import PREFIX, GaussianPosterior, Posterior, active_adapter, unwrapped
from .quantizer import quantize

DECISIONS_FILE = "gates.json"
FULL_BITS = 16  # of weights that no gate quantises, and of activations


@dataclass(frozen=True)
class LayerDecision:
    """Rank of a layer, and bit width and half range a of its A and B (None: not quantised)."""

    rank: int
    bits_a: int | None = None
    bits_b: int | None = None
    range_a: float | None = None
    range_b: float | None = None


@dataclass(frozen=True)
class Decisions:
    """Decisions for all layers of a model.

    Attributes:
        layers: the base model's name of the layer → its decision.
    """

    layers: Mapping[str, LayerDecision]

    def apply(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Quantise named LoRA weights and set the directions that are off to 0; shapes stay.

        Args:
            weights: with the names of :func:`ivon_lora_lite.posterior.trainable`. Others than LoRA's pass through.
        """
        out = dict(weights)
        for name, own in self.layers.items():
            a, b = f"{PREFIX}{name}.lora_A.weight", f"{PREFIX}{name}.lora_B.weight"
            for key, bits, half_range in ((a, own.bits_a, own.range_a), (b, own.bits_b, own.range_b)):
                if bits is not None:
                    out[key] = quantize(out[key], out[key].new_tensor(half_range), bits=bits)
            out[a] = torch.cat([out[a][: own.rank], torch.zeros_like(out[a][own.rank :])])
            out[b] = torch.cat([out[b][:, : own.rank], torch.zeros_like(out[b][:, own.rank :])], 1)
        return out

    def facts(self) -> dict[str, dict]:
        """The same as JSON-able numbers."""
        return {name: asdict(own) for name, own in self.layers.items()}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Mapping]) -> Decisions:
        return cls({name: LayerDecision(**own) for name, own in facts.items()})

    def save_adapter(self, model: nn.Module, weights: Mapping[str, Tensor], folder: str | os.PathLike) -> Path:
        """Write an adapter of the learned ranks that plain PEFT loads, and ``gates.json`` with widths and ranges.

        A and B are cut to their rank (``rank_pattern``; ``alpha_pattern`` keeps the scale of the training), layers
        of rank 0 are left out (with a bias they keep one direction, of zeros), and the numbers are on their grids,
        stored as fp32. The widths are in a file of their own because PEFT warns of entries in ``adapter_config.json``
        that it does not know.

        Args:
            model: the PEFT model that the weights belong to, without gates.
            weights: name → tensor, with the names of :func:`ivon_lora_lite.posterior.trainable`.
            folder: where to.

        Raises:
            ValueError: every layer has rank 0, so nothing is left to save, or LoRA's start changed the base model
                (PiSSA, OLoRA …), which plain PEFT would do anew for the learned ranks.
        """
        model, adapter = unwrapped(model), active_adapter(model)
        config, layers = copy.deepcopy(model.peft_config[adapter]), dict(model.named_modules())
        if changes_base(config.init_lora_weights):
            raise ValueError(
                f"LoRA with init_lora_weights={config.init_lora_weights!r} changes the base model, for every rank in "
                "another way, so an adapter of the learned ranks would not fit it: train with init_lora_weights=True."
            )
        ranks = {
            name: max(own.rank, 1)
            for name, own in self.layers.items()
            if own.rank or f"{PREFIX}{name}.lora_B.bias" in weights
        }
        if not ranks:
            raise ValueError("All layers have rank 0: nothing is left to save. Use a weaker prior.")
        gated, tensors = self.apply(weights), {}
        for name, rank in ranks.items():
            a, b = f"{PREFIX}{name}.lora_A.weight", f"{PREFIX}{name}.lora_B.weight"
            tensors |= {a: gated[a][:rank], b: gated[b][:, :rank]}
        lora = {f"{PREFIX}{name}.lora_{which}.weight" for name in self.layers for which in "AB"}
        tensors |= {name: tensor for name, tensor in gated.items() if name not in lora}  # a classifier's head
        scales = {name: layers[PREFIX + name].scaling[adapter] for name in ranks}
        config.r, config.inference_mode = max(ranks.values()), True
        config.target_modules = set(ranks)
        config.rank_pattern = {name: rank for name, rank in ranks.items() if rank != config.r}
        power = 0.5 if config.use_rslora else 1.0  # PEFT's scale is α/r, or α/√r
        config.alpha_pattern = {name: scales[name] * rank**power for name, rank in ranks.items()}
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / "adapter_model.safetensors", "pt", tensors, {})
        write_json(folder / DECISIONS_FILE, self.facts())
        config.save_pretrained(folder)
        return folder


class GatedPosterior(Posterior):
    """Draws from a posterior over ungated weights, each put through rank and bit decisions.

    IVON's Gaussian is over the weights *before* the gates. What the model uses is its image: a distribution on the grid
    points of the quantiser. So a draw is gate(m + σε), and ``mean`` is gate(m), not the mean of the draws.

    Attributes:
        base: the posterior over the ungated weights.
        decisions: what the gates decided.
    """

    FORMAT = "ivon_lora_lite.GatedPosterior/1"
    PARTS = ("mean", "variance")

    def __init__(self, base: GaussianPosterior, decisions: Decisions):
        self.base, self.decisions = base, decisions

    @cached_property
    def mean(self) -> dict[str, Tensor]:
        return self.decisions.apply(self.base.mean)

    @property
    def metadata(self) -> Mapping[str, object]:
        return {**self.base.metadata, "gates": self.decisions.facts()}

    def sample(self, seed: int, tau: float = 1.0) -> dict[str, Tensor]:
        """The base's draw, gated."""
        return self.decisions.apply(self.base.sample(seed, tau))

    def parts(self) -> dict[str, Mapping[str, Tensor]]:
        """The Gaussian's own; the decisions are in the metadata."""
        return self.base.parts()

    @classmethod
    def from_parts(cls, parts, metadata):
        base = {name: fact for name, fact in metadata.items() if name != "gates"}
        return cls(GaussianPosterior(**parts, metadata=base), Decisions.from_facts(metadata["gates"]))
