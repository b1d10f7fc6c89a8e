"""The embedded model is a GGUF file; its dequantised weights are kept on disk, so that loading it again is quick."""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..files import whole_folder

LAST = "config.json"  # where it is, all other files are


def cache_folder() -> Path:
    """Where they are kept: the variable ``IVON_LORA_CACHE``, else ``ivon_lora_lite`` in the user's cache folder."""
    given = os.environ.get("IVON_LORA_CACHE")
    return (
        Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ivon_lora_lite"
    )


@contextmanager
def dequantised(file: Path, dtype: torch.dtype) -> Iterator[Path]:
    """A folder with the model of a GGUF file and its tokenizer, as transformers saves them; made if it is not there.

    Where the cache cannot be written, the folder is a temporary one.

    Args:
        file: the GGUF file. Its content is part of the folder's name, so another file gets another folder.
        dtype: of the weights.

    Raises:
        OSError, ValueError: the GGUF file cannot be read.
    """
    content = hashlib.sha256(file.read_bytes()).hexdigest()
    folder = cache_folder() / f"{file.stem}-{content[:16]}-{str(dtype).removeprefix('torch.')}"
    with tempfile.TemporaryDirectory() as temporary:
        if not (folder / LAST).is_file():
            save = _loaded(file, dtype)
            try:
                with whole_folder(folder, last=LAST) as stage:
                    save(stage)
            except OSError:
                folder = Path(temporary)
                save(folder)
        yield folder


def _loaded(file: Path, dtype: torch.dtype):
    """A function that writes the model and its tokenizer to a folder."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=dtype)
    model.hf_quantizer, model.is_quantized = None, False  # it is not any more: else it could not be saved
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config

    def save(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return save
