"""What a model needs and what this machine has, compared before anything large is downloaded.

:func:`memory_of` counts bytes from a model's shapes: no weight is made. :func:`missing` lists, one short clause each,
what stands in the way of finetuning: no GPU, no bitsandbytes, no bf16, too little memory, a hub that cannot be reached,
a gated model without a token. :func:`check_model` says all of it in one sentence. bitsandbytes is looked for, never
imported: on a machine without CUDA its import may fail or warn.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .adapters import LoraSettings, default_targets
from .hardware import BITSANDBYTES, DTYPES, bitsandbytes_found, native_dtype, resolve
from .locating import hub_problem, locate

GIB = 2**30
WORKING = GIB  # the least that is needed besides: CUDA's own memory, work spaces, activations of short questions
BLOCK = 64  # weights per scale in bitsandbytes' 4-bit format
# per LoRA weight: gradient, momentum, h, noise and the saved mean for IVON; gradient and two moments for AdamW (fp32)
STATE = {"ivon": 5 * 4, "adamw": 3 * 4}


@dataclass(frozen=True)
class Memory:
    """Bytes that must fit into the GPU whatever is computed.

    Attributes:
        base: the frozen weights.
        lora: LoRA's A and B, in fp32.
        state: gradient and optimizer state of LoRA's weights.
        parameters: number of frozen weights.
    """

    base: int
    lora: int
    state: int
    parameters: int

    @property
    def total(self) -> int:
        """Bytes of all three."""
        return self.base + self.lora + self.state


def memory_of(
    config,
    *,
    quantize: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    lora: LoraSettings | None = None,
    optimizer: str = "ivon",
) -> Memory:
    """Bytes of weights and optimizer state, from shapes alone.

    With ``quantize`` every linear layer but the output layer has one byte per weight (``"8bit"``; a scale per row) or
    half a byte (``"4bit"``; a scale per 64 weights), and all else (embeddings, norms, output layer) is fp32, which is
    what PEFT's ``prepare_model_for_kbit_training`` leaves. Activations are not in it: they depend on the batch.

    Args:
        config: of a causal language model of transformers, or of an encoder.
        quantize: ``"8bit"``, ``"4bit"`` or None.
        dtype: of the frozen weights without ``quantize``.
        lora: rank and targets.
        optimizer: ``"ivon"`` or ``"adamw"``.
    """
    import transformers
    from transformers.pytorch_utils import Conv1D

    settings = lora or LoraSettings()
    with torch.device("meta"):  # shapes without storage
        causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        kind = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForSequenceClassification
        model = kind.from_config(config)
    targets = settings.targets or default_targets(model)
    output = model.get_output_embeddings()
    base, adapter, quantized = 0, 0, set()
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, Conv1D)):
            continue
        if quantize and module is not output:
            weight = module.weight
            rows = module.out_features if isinstance(module, nn.Linear) else module.nf
            count = weight.numel()
            base += count + 4 * rows if quantize == "8bit" else count // 2 + 4 * -(-count // BLOCK)
            quantized.add(id(weight))
        if targets == "all-linear" and module is not output or _is_target(name, targets):
            adapter += settings.r * sum(module.weight.shape)
    size = 4 if quantize else dtype.itemsize
    base += sum(p.numel() * size for p in model.parameters() if id(p) not in quantized)
    return Memory(base, 4 * adapter, STATE[optimizer] * adapter, sum(p.numel() for p in model.parameters()))


def _is_target(name: str, targets: str | Sequence[str]) -> bool:
    """Whether PEFT would put LoRA on a layer: a pattern fits its whole name, or one of the names is its end."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def check_model(
    name: str,
    *,
    quantize: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    lora: LoraSettings | None = None,
) -> None:
    """Refuse, in one sentence, what cannot work here; arguments as of :func:`load_model`.

    The Hub is asked only for the model's ``config.json``, and only where a GPU or ``quantize`` is wanted.

    Raises:
        ValueError: an unknown option, or something is missing; the message names everything that is.
        FileNotFoundError: only the model itself cannot be had.
    """
    quantize, dtype, device = resolve(quantize, dtype, device)
    found = missing(name, quantize=quantize, dtype=dtype, device=device, lora=lora)
    if not found:
        return
    kind = FileNotFoundError if all(source == "hub" for source, _ in found) else ValueError
    clauses = "; ".join(clause for _, clause in found)
    raise kind(f"{name} cannot be finetuned here: {clauses}.")


def missing(
    name: str, *, quantize: str | None, dtype: str, device: str, lora: LoraSettings | None = None
) -> list[tuple[str, str]]:
    """What stands in the way, as (kind, clause) pairs; kinds are ``"gpu"``, ``"package"``, ``"memory"``, ``"hub"``.

    Arguments are those that :func:`resolve` returns.
    """
    gpu = device.startswith("cuda") and torch.cuda.is_available()
    found = []
    if not gpu and (quantize or device.startswith("cuda")):
        asked = f"quantize={quantize!r}" if quantize else f"device={device!r}"
        found.append(("gpu", f"{asked} needs a CUDA GPU, and none is here (leave it out on a CPU)"))
    if quantize and not bitsandbytes_found():
        found.append(("package", f"the package bitsandbytes is missing (pip install 'bitsandbytes>={BITSANDBYTES}')"))
    if gpu and dtype == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        which = torch.cuda.get_device_name(device)
        found.append(("gpu", f"the {which} does not compute bf16 (leave dtype and quantize='bf16' out: fp16 is taken)"))
    if not gpu and not quantize:
        return found
    config, problem = configuration(name)
    if problem:
        return [*found, ("hub", problem)]
    if gpu and config is not None:
        clause = memory_problem(config, quantize, dtype, device, lora)
        found += [("memory", clause)] if clause else []
    return found


def configuration(name: str) -> tuple[object | None, str | None]:
    """A model's configuration, or why it cannot be had; neither for the embedded model in its GGUF file."""
    import transformers

    path, options = locate(name)
    if options:
        return None, None
    try:
        return transformers.AutoConfig.from_pretrained(path), None
    except (OSError, ValueError) as error:
        return None, hub_problem(name, error)


def memory_problem(config, quantize: str | None, dtype: str, device: str, lora: LoraSettings | None) -> str | None:
    """A clause if the weights alone cannot fit into the GPU's free memory, with what would help."""

    def needs(how: str | None) -> int:
        kind = native_dtype(device) if dtype == "auto" else DTYPES[dtype]
        return memory_of(config, quantize=how, dtype=kind, lora=lora).total + WORKING

    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own cache
    need = needs(quantize)
    if need <= free:
        return None
    smaller = [how for how in ("8bit", "4bit") if needs(how) <= min(free, need - 1)]
    advice = f"quantize={smaller[0]!r} would fit" if smaller else "take a smaller model or a larger GPU"
    which = torch.cuda.get_device_name(device)
    return f"it needs at least {need / GIB:.1f} GiB of GPU memory and the {which} has {free / GIB:.1f} free ({advice})"
