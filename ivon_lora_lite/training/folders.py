"""The folder of a run: what its files are called, whether it is free, and what ``run.json`` says."""

import os
from pathlib import Path

from ..files import LOCK, read_json

RUN_FILE = "run.json"
ADAPTER = "adapter_model.safetensors"
FACTS = {"config", "history", "seconds"}
CONFIG = {"task", "optimizer", "seed", "format", "model"}


def check_free(folder: str | os.PathLike) -> Path:
    """A folder that a run may be written to.

    Raises:
        FileExistsError: it holds a run already, or other files.
    """
    folder = Path(folder)
    if (folder / RUN_FILE).exists():
        about = read_facts(folder)["config"]
        raise FileExistsError(
            f"{folder} holds another run already ({about['optimizer']} on {about['task']}, seed {about['seed']}): "
            "choose another folder, or delete it first."
        )
    if folder.exists() and (not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder: choose another one.")
    return folder


def read_facts(folder: Path) -> dict:
    """What ``run.json`` holds; a ``ValueError`` if that is no run."""
    facts = read_json(folder / RUN_FILE)
    config = facts.get("config") if isinstance(facts, dict) else None
    if not isinstance(config, dict) or CONFIG.difference(config) or FACTS.difference(facts):
        raise ValueError(f"{folder / RUN_FILE} is damaged, or not the record of a run.")
    return facts
