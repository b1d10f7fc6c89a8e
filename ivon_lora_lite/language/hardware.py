"""Devices and number formats: what is asked for, and what this machine has."""

import importlib.util
import os
from importlib import metadata

import torch

QUANTIZE = ("8bit", "4bit", "bf16")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BITSANDBYTES = "0.46.1"  # the oldest release that transformers takes


def default_device() -> str:
    """The GPU of this process (``accelerate launch`` numbers processes and GPUs alike), else the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"


def native_dtype(device: str) -> torch.dtype:
    """bf16 where it is computed natively (and so is faster), else fp16 on a GPU and fp32 on a CPU."""
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    capable = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.bfloat16 if capable or getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)() else torch.float32


def resolve(quantize: str | None, dtype: str, device: str | None) -> tuple[str | None, str, str]:
    """Check and complete the three options; ``quantize="bf16"`` means 16-bit weights without quantisation."""
    if quantize not in (None, *QUANTIZE):
        raise ValueError(f"quantize is {quantize!r}; expected {', '.join(QUANTIZE)} or nothing.")
    if dtype not in ("auto", *DTYPES):
        raise ValueError(f"dtype is {dtype!r}; expected auto, {', '.join(DTYPES)}.")
    if quantize == "bf16":
        if dtype not in ("auto", "bf16"):
            raise ValueError(f"quantize='bf16' and dtype={dtype!r} contradict each other: leave one of them out.")
        quantize, dtype = None, "bf16"
    device = str(device) if device else default_device()
    if device == "cuda":  # accelerate compares with the number of the GPU
        device = default_device() if torch.cuda.is_available() else "cuda:0"
    return quantize, dtype, device


def bitsandbytes_found() -> bool:
    """Whether bitsandbytes is installed, new enough; it is not imported."""
    from packaging.version import Version

    if importlib.util.find_spec("bitsandbytes") is None:
        return False
    try:
        return Version(metadata.version("bitsandbytes")) >= Version(BITSANDBYTES)
    except metadata.PackageNotFoundError:
        return False
