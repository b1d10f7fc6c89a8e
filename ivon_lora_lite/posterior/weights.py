"""The trainable weights of a model: which they are, what they are called, how they are read, set and restored.

Everything that needs to know this asks here. The names are those under which PEFT saves the weights, without the
adapter's own name, such as ``base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight``.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..locks import lock_of

PREFIX = "base_model.model."  # what PEFT puts before the base model's own names
GATED = ".parametrizations.weight.original"  # what torch calls a weight that gates are on


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by the names under which PEFT saves them (without the adapter's name).

    Of a model without PEFT, and for weights that PEFT would not save, the names are torch's own.

    Raises:
        ValueError: several adapters are active, so that their weights would share names.
    """
    return _named(model, lambda p: p.requires_grad)


def settable(model: nn.Module) -> dict[str, nn.Parameter]:
    """As :func:`trainable`; if nothing is, the frozen weights of an adapter that was loaded for inference."""
    adapter, found = active_adapter(model), trainable(model)
    if found or adapter is None:
        return found
    saved = _names_in_file(unwrapped(model), adapter, lambda p: True)
    return _named(model, lambda p: id(p) in saved)


def _named(model: nn.Module, wanted: Callable[[nn.Parameter], bool]) -> dict[str, nn.Parameter]:
    model = unwrapped(model)
    params = {name: p for name, p in model.named_parameters() if wanted(p)}
    adapter = active_adapter(model)
    names = {id(p): name.removesuffix(f".{adapter}") for name, p in params.items()}  # AdaLoRA's are bare parameters
    if adapter is not None:
        names |= _names_in_file(model, adapter, wanted)
    plain = {
        key: name.replace("_orig_mod.", "").replace(f".{adapter}{GATED}", ".weight") for key, name in names.items()
    }
    out = {plain[id(p)].replace(GATED, ".weight"): p for p in params.values()}
    if len(out) < len(params):
        raise ValueError("Two trainable weights have the same name: has a module the name of the adapter? Rename one.")
    return out


def _names_in_file(model: nn.Module, adapter: str, wanted: Callable[[nn.Parameter], bool]) -> dict[int, str]:
    """The parameters that PEFT would save (by their ids) → the names under which it would."""
    from peft import get_peft_model_state_dict

    params = {name: p for name, p in model.named_parameters(remove_duplicate=False) if wanted(p)}
    saved = get_peft_model_state_dict(model, params, adapter_name=adapter, save_embedding_layers=False)
    return {id(p): name for name, p in reversed(saved.items())}  # of a tied weight its first name


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel``, or the model itself."""
    while True:
        if isinstance(model, nn.parallel.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in getattr(model, "_modules", ()):  # PEFT hands on the attributes of a compiled base
            model = model._orig_mod
        else:
            return model


def active_adapter(model: nn.Module) -> str | None:
    """The name of a PEFT model's one active adapter; None without PEFT.

    Raises:
        ValueError: several are active.
    """
    model = unwrapped(model)
    if not hasattr(model, "peft_config"):
        return None
    active = getattr(model, "active_adapters", None)
    active = active() if callable(active) else active or [model.active_adapter]
    if len(active) != 1:
        raise ValueError(f"The adapters {', '.join(active)} are all active: choose one with model.set_adapter(NAME).")
    return active[0]


def check_saveable(model: nn.Module) -> None:
    """Refuse a model whose trainable weights an adapter's file would not hold.

    Raises:
        ValueError: it has an adapter of another kind than LoRA, or weights are trainable that PEFT would not save, or
            would save under two names.
    """
    model = unwrapped(model)
    adapter = active_adapter(model)
    if adapter is None:
        raise ValueError("The model has no adapter: put LoRA on it with load_model or peft.get_peft_model.")
    kind = str(getattr(model.peft_config[adapter].peft_type, "value", model.peft_config[adapter].peft_type))
    if kind != "LORA":
        raise ValueError(f"The adapter {adapter!r} is of the kind {kind}: only LoRA can be finetuned here.")
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    twice = [n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad and n not in params]
    if twice:
        raise ValueError(f"{twice[0]} is tied to another trainable weight: leave it out of modules_to_save.")
    saved = _names_in_file(model, adapter, lambda p: p.requires_grad)
    lost = sorted(name for name, p in params.items() if id(p) not in saved)
    if lost:
        raise ValueError(
            f"{lost[0]} is trainable ({len(lost)} such tensors), and the adapter {adapter!r} would not save it: freeze "
            "it with requires_grad_(False), or name its module in LoraConfig(modules_to_save=[…])."
        )


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
    """LoRA's A and B as modules, under the names of :func:`trainable`, where each is applied as a linear layer.

    Raises:
        ValueError: something else is trainable too (or nothing is), or a layer uses its A and B in another way, as DoRA
            and LoRA on a bare parameter do.
    """
    names = {id(p): name for name, p in trainable(model).items()}
    plain = {m for _, owner in lora_modules(model) if is_plain(owner) for m in owner.modules()}
    found = {}
    for module in model.modules():
        name = names.get(id(getattr(module, "weight", None)))
        linear = isinstance(module, nn.Linear) and module.bias is None and module in plain
        if name is not None and ".lora_" in name and linear:
            found[name] = module
    odd = sorted(set(names.values()).difference(found))
    if odd or not found:
        raise ValueError(
            f"Only A and B of plain LoRA on linear layers may be trainable here, not {odd[0] if odd else 'none'}."
        )
    return found


def is_plain(module: nn.Module) -> bool:
    """Whether a LoRA layer computes B(A(x)): no DoRA or other variant, no LoRA on a bare parameter."""
    variants = getattr(module, "lora_variant", {})
    return not hasattr(module, "parameter_name") and not any(a in variants for a in module.active_adapters)


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
    for name, module in lora_modules(model):
        for adapter in module.active_adapters:
            pair = [members[adapter] for members in (module.lora_A, module.lora_B) if adapter in members]
            linear = len(pair) == 2 and all(isinstance(m, nn.Linear) for m in pair)
            if not pair and adapter not in getattr(module, "lora_embedding_A", {}):
                continue  # a layer of another adapter
            if len(module.active_adapters) > 1 or not linear or not is_plain(module):
                raise ValueError(f"{name} is not plain LoRA on a linear layer with one adapter.")
            found[name.removeprefix(PREFIX)] = LoraPair(*pair)
    if not found:
        raise ValueError("The model has no LoRA: put LoRA on it with load_model or peft.")
    return found


def lora_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """PEFT's LoRA layers, known by what they hold."""
    named = unwrapped(model).named_modules()
    return ((n, m) for n, m in named if hasattr(m, "lora_A") and hasattr(m, "active_adapters"))


# ------------------------------------------------------------------------------------------------ read, set, restore


def read_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trainable weights, name → fp32 tensor on the CPU."""
    return {name: p.detach().float().cpu().clone() for name, p in settable(model).items()}


def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put named weights into a model to stay.

    Raises:
        ValueError: names or shapes do not fit the model's trainable parameters, the adapter is merged, or offloaded.
    """
    params = settable(model)
    check_fit(params, weights)
    if any(p.is_meta for p in params.values()):
        raise ValueError("The adapter's weights are offloaded (device_map, cpu_offload): keep its layers on a device.")
    if any(getattr(module, "merged", False) for _, module in lora_modules(model)):
        raise ValueError("The adapter is merged into the base model, where its weights have no effect: unmerge it.")
    _write(params.values(), (weights[name] for name in params))


@contextmanager
def applied_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Put named weights into a model for the length of a context; restores the former ones whatever happens.

    Other threads that want to use the model in this way, or to predict with it, wait until the context is left.

    Raises:
        ValueError: names or shapes do not fit the model's trainable parameters.
    """
    with lock_of(unwrapped(model)), restored(settable(model).values()):
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
    torch.clear_autocast_cache()  # else an autocast around several draws goes on with 16-bit copies of the first


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
