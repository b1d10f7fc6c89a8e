"""Where LoRA starts: fresh weights that follow from a seed."""

import torch
from torch import nn

from ..posterior import active_adapter, lora_modules, put_weights, trainable, unwrapped

HEAD = 0.02  # standard deviation of a new classifier's weights, as transformers has it for BERT and its kin


def changes_base(start: bool | str | None) -> bool:
    """Whether LoRA with this ``init_lora_weights`` changes the base model's weights too, as PiSSA and OLoRA do."""
    return str(start).lower().startswith(("pissa", "olora", "corda", "loftq", "lora_ga"))


def reset_lora(model: nn.Module, seed: int, *, fresh: bool = False) -> None:
    """Give LoRA fresh weights (A Kaiming-uniform, B zero), so that runs on one model do not depend on each other.

    A new classifier's head gets normal weights of standard deviation 0.02, and biases of 0. Everything else that is
    trainable gets the values that it had when the model was first seen here: pretrained modules that PEFT saves along,
    biases, and A and B whose start depends on the base model (PiSSA, OLoRA, LoftQ …). An adapter that
    ``load_model(adapter=…)`` read from a file is not made fresh, unless ``fresh``: every run continues from it.
    """
    model, params = unwrapped(model), trainable(model)
    first = vars(model).setdefault("_first_weights", {}).setdefault(active_adapter(model), {})
    for name, p in params.items():
        if name not in first or first[name][0] is not p:  # a parameter that was never seen, or another of its name
            first[name] = p, p.detach().cpu().clone()
    put_weights(model, {name: first[name][1] for name in params})
    about = getattr(model, "description", {})
    if about.get("adapter") and not fresh:
        return
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same start on every device
    start = model.peft_config[active_adapter(model)].init_lora_weights if params else True
    with torch.no_grad():
        for _, module in lora_modules(model) if start in (True, "gaussian") else ():
            for adapter in module.active_adapters:
                _make_fresh(module, adapter, start, generator)
        for name, p in model.named_parameters():
            head, saved, _ = name.partition(".modules_to_save.")
            if saved and p.requires_grad and head.rsplit(".", 1)[-1] in about.get("new", ()):
                normal = torch.randn(p.shape, generator=generator, device="cpu")
                p.copy_(HEAD * normal if p.dim() > 1 else 0 * normal)


def _make_fresh(module: nn.Module, adapter: str, start: bool | str, generator: torch.Generator) -> None:
    """One layer's A, B and what goes with them, as PEFT starts them."""
    if adapter in module.lora_A:
        a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
        if start == "gaussian":
            a.copy_(torch.randn(a.shape, generator=generator, device="cpu") / module.r[adapter])
        else:
            a.copy_(nn.init.kaiming_uniform_(torch.empty(a.shape, device="cpu"), a=5**0.5, generator=generator))
        b.zero_()
        if getattr(module.lora_B[adapter], "bias", None) is not None:
            module.lora_B[adapter].bias.zero_()
    if adapter in getattr(module, "lora_embedding_A", {}):
        module.lora_embedding_A[adapter].zero_()
        b = module.lora_embedding_B[adapter]
        b.copy_(torch.randn(b.shape, generator=generator, device="cpu"))
    if adapter in getattr(module, "lora_magnitude_vector", {}):  # DoRA: the norms of the base weights, because BA = 0
        from peft.utils.integrations import dequantize_module_weight

        dora, scale = module.lora_magnitude_vector[adapter], module.scaling[adapter]
        base = dequantize_module_weight(module.get_base_layer()).to(dora.weight.device)
        delta = torch.zeros_like(base.T if getattr(dora, "fan_in_fan_out", False) and base.dim() == 2 else base)
        dora.weight.copy_(dora.get_weight_norm(base, delta, scale).view_as(dora.weight))
