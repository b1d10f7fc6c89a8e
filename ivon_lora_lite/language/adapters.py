"""LoRA on a base model: its settings, the layers it goes on, and adapters that exist already."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import nn

from ..files import first_line, read_json
from ..posterior import PREFIX, check_saveable, trainable

if TYPE_CHECKING:
    from peft import PeftModel

# query and value projections; PEFT knows them for most architectures, these it lacks or splits differently
TARGETS = {
    "gpt_neox": ["query_key_value"],
    "gpt2": ["c_attn"],
    "phi3": ["qkv_proj"],
    "deberta-v2": ["query_proj", "value_proj"],  # of DeBERTa-v3 too
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
}


@dataclass(frozen=True)
class LoraSettings:
    """LoRA as in Cong et al. (2024): rank 8, dropout 0.1, on query and value projections, weights in fp32.

    Attributes:
        r: rank.
        alpha: α of the scale α/r; default: 2r, so that the scale does not depend on the rank.
        dropout: of LoRA's input, in training.
        targets: names of the layers, or one text as PEFT has it: a regular expression, or ``"all-linear"``. Default:
            the architecture's query and value projections.
    """

    r: int = 8
    alpha: float | None = None
    dropout: float = 0.1
    targets: tuple[str, ...] | str | None = None

    def __post_init__(self) -> None:
        if self.alpha is None:
            object.__setattr__(self, "alpha", 2 * self.r)


def default_targets(base: nn.Module) -> list[str]:
    """Names of the query and value projections of an architecture.

    Raises:
        ValueError: they are not known; the message says how to name them.
    """
    names = {name.rsplit(".", 1)[-1] for name, _ in base.named_modules()}
    for wanted in (["q_proj", "v_proj"], TARGETS.get(base.config.model_type, [])):
        if wanted and set(wanted) <= names:
            return wanted
    raise ValueError(
        f"The query and value projections of a {base.config.model_type!r} model are not known: name them with "
        "LoraSettings(targets=(…))."
    )


def peft_config(base: nn.Module, settings: LoraSettings, kind: str = "CAUSAL_LM", head: Sequence[str] = ()):
    import peft

    return peft.LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_listed(settings.targets) or default_targets(base),
        task_type=kind,
        modules_to_save=list(head) or None,
    )


def settings_of(model: nn.Module) -> dict:
    """The settings that the adapter really has, which may come from a file."""
    config = model.peft_config[model.active_adapter]
    settings = LoraSettings(config.r, config.lora_alpha, config.lora_dropout, config.target_modules)
    return asdict(settings) | {"targets": _listed(settings.targets)}


def settings_in(folder: str | os.PathLike) -> LoraSettings | None:
    """Rank and targets of an adapter's folder, for what a model needs; None if they cannot be read here."""
    try:
        about = read_json(Path(folder) / "adapter_config.json")
        return LoraSettings(about["r"], about["lora_alpha"], targets=about["target_modules"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _listed(targets: str | Sequence[str] | None) -> str | list[str] | None:
    """A pattern as it is, names in order."""
    return targets if isinstance(targets, str) else sorted(targets) if targets else None


def load_adapter(base: nn.Module, folder: str | os.PathLike) -> PeftModel:
    import peft

    folder = Path(folder)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} holds no PEFT adapter: {file} is missing.")
    try:
        stored, copies = _names(base, folder / "adapter_model.safetensors")
        model = peft.PeftModel.from_pretrained(base, folder, is_trainable=True, autocast_adapter_dtype=True)
        odd = sorted((stored ^ set(trainable(model))) - copies)
        if odd:  # PEFT would leave such a tensor at its start
            raise ValueError(f"{odd[0]} is in one of them only ({len(odd)} such tensors)")
        check_saveable(model)
        return model
    except Exception as error:  # safetensors, json and torch each raise their own
        raise ValueError(
            f"The adapter in {folder} cannot be read or does not fit this model: {first_line(error)}"
        ) from error


def _names(base: nn.Module, path: Path) -> tuple[set[str], set[str]]:
    """Names of a file's tensors, and of those that are the base model's own: PEFT adds these for layers of words."""
    params = dict(base.named_parameters())
    copies = set()
    with safe_open(path, "pt") as file:
        stored = set(file.keys())
        for name in stored:
            own = params.get(name.removeprefix(PREFIX).replace(".base_layer", ""))
            if own is not None and torch.equal(file.get_tensor(name).to(own), own):
                copies.add(name)
    return stored, copies
