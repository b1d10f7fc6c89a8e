"""The trainable weights of a model: which they are, what they are called, how they are read, set, reset and restored.

Everything that needs to know this asks here. The names are those under which PEFT saves the weights, without the
adapter's own name, such as ``base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight``.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PREFIX = "base_model.model."  # what PEFT puts before the base model's own names
HEAD = 0.02  # standard deviation of a new classifier's weights, as transformers has it for BERT and its kin


# ---------------------------------------------------------------------------------------------------- which they are


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by the names under which PEFT saves them (without the adapter's name)."""
    adapters = [f".{name}" for name in getattr(model, "peft_config", {})]
    out = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            for adapter in adapters:
                name = name.replace(f".modules_to_save{adapter}.", ".")  # a classifier's head
                name = name.replace(f"{adapter}.", ".").removesuffix(adapter)
            out[name] = p
    return out


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters, LoRA's A and B (and a classifier's head): what an optimizer gets.

    Raises:
        ValueError: nothing is trainable.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("The model has no trainable parameters: put LoRA on it with load_model or peft.")
    return parameters


def lora_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """LoRA's A and B as modules, under the names of :func:`trainable`.

    Raises:
        ValueError: something else is trainable too, or nothing is.
    """
    names = {id(p): name for name, p in trainable(model).items()}
    found = {}
    for module in model.modules():
        name = names.get(id(getattr(module, "weight", None)))
        if name is not None and ".lora_" in name and isinstance(module, nn.Linear) and module.bias is None:
            found[name] = module
    odd = sorted(set(names.values()).difference(found))
    if odd or not found:
        raise ValueError(
            f"Only LoRA's A and B of linear layers may be trainable here, not {odd[0] if odd else 'none'}."
        )
    return found


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
    found = {}
    for name, module in _lora_modules(model):
        for adapter in module.active_adapters:
            pair = [members[adapter] for members in (module.lora_A, module.lora_B) if adapter in members]
            if len(module.active_adapters) > 1 or len(pair) < 2 or not all(isinstance(m, nn.Linear) for m in pair):
                raise ValueError(f"{name} is not plain LoRA on a linear layer with one adapter.")
            found[name.removeprefix(PREFIX)] = LoraPair(*pair)
    if not found:
        raise ValueError("The model has no LoRA: put LoRA on it with load_model or peft.")
    return found


def _lora_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """PEFT's LoRA layers, known by what they hold."""
    return ((n, m) for n, m in model.named_modules() if hasattr(m, "lora_A") and hasattr(m, "active_adapters"))


# ------------------------------------------------------------------------------------------- read, set, reset, restore


def read_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trainable weights, name → fp32 tensor on the CPU."""
    return {name: p.detach().float().cpu().clone() for name, p in trainable(model).items()}


def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put named weights into a model to stay.

    Raises:
        ValueError: names or shapes do not fit the model's trainable parameters.
    """
    params = trainable(model)
    check_fit(params, weights)
    _write(params.values(), (weights[name] for name in params))


def reset_lora(model: nn.Module, seed: int) -> None:
    """Give LoRA fresh weights (A Kaiming-uniform, B zero), so that runs on one model do not depend on each other.

    A classifier's head gets normal weights of standard deviation 0.02, and biases of 0.
    """
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same start on every device
    with torch.no_grad():
        for _, module in _lora_modules(model):
            for adapter in module.active_adapters:
                a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
                a.copy_(nn.init.kaiming_uniform_(torch.empty(a.shape), a=5**0.5, generator=generator))
                b.zero_()
        for name, p in model.named_parameters():
            if ".modules_to_save." in name and p.requires_grad:
                p.copy_(HEAD * torch.randn(p.shape, generator=generator) if p.dim() > 1 else torch.zeros(p.shape))


@contextmanager
def applied_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Put named weights into a model for the length of a context; restores the former ones whatever happens.

    Raises:
        ValueError: names or shapes do not fit the model's trainable parameters.
    """
    with restored(trainable(model).values()):
        put_weights(model, weights)
        yield


@contextmanager
def restored(params) -> Iterator[list[Tensor]]:
    """Parameters are after the context what they were before it, whatever happens; it yields copies of them."""
    params = list(params)
    # ordinary tensors even if the caller predicts in inference_mode; the caller's own mode holds inside the context
    with torch.inference_mode(False), torch.no_grad():
        saved = [p.detach().clone() for p in params]
    try:
        yield saved
    finally:
        _write(params, saved)


def _write(params, values) -> None:
    with torch.inference_mode(False), torch.no_grad():
        for p, value in zip(params, values):
            p.copy_(value)


# ---------------------------------------------------------------------------------------------------- what fits


def check_same_names(a: Mapping, b: Mapping, a_is: str, b_is: str) -> None:
    """Refuse two mappings with different keys, naming the first that one of them lacks."""
    for one, other, one_is, other_is in ((a, b, a_is, b_is), (b, a, b_is, a_is)):
        extra = sorted(set(one) - set(other))
        if extra:
            raise ValueError(f"{one_is} has {extra[0]!r} ({len(extra)} in all), which {other_is} lacks.")


def check_fit(params: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Refuse weights whose names or shapes are not the model's."""
    check_same_names(params, weights, "the model", "the weights")
    for name, p in params.items():
        if p.shape != weights[name].shape:
            raise ValueError(
                f"{name}: the model has shape {tuple(p.shape)}, the weights {tuple(weights[name].shape)}: were they "
                "made with another rank or base model?"
            )
