"""One run is one folder: PEFT adapter, posterior, settings and history."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from .files import provenance, read_json, write_json
from .posterior import POSTERIOR_FILE, applied_weights, trainable

if TYPE_CHECKING:
    from torch import nn

    from .train import Run

__all__ = ["RUN_FILE", "check_free", "load_run", "save_run"]

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
        about = _facts(folder)["config"]
        raise FileExistsError(
            f"{folder} holds another run already ({about['optimizer']} on {about['task']}, seed {about['seed']}): "
            "choose another folder, or delete it first."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder: choose another one.")
    return folder


def save_run(run: Run, folder: str | os.PathLike, *, overwrite: bool = False) -> Path:
    """Write a run: a PEFT adapter (the mean), ``posterior.safetensors`` (IVON) and ``run.json``; all or nothing.

    Args:
        run: what :func:`finetune` returned.
        folder: must not exist, or be empty.
        overwrite: replace a folder that holds a run.

    Raises:
        FileExistsError: the folder holds another run or other files.
    """
    folder = Path(folder)
    if not (overwrite and (folder / RUN_FILE).exists()):
        check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        with applied_weights(run.model, run.weights):
            run.model.save_pretrained(temporary, save_embedding_layers=False)  # they are the base model's
        (temporary / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        if run.posterior is not None:
            run.posterior.save(temporary)
        facts = {"config": run.config, "history": run.history, "seconds": run.seconds, "provenance": provenance()}
        write_json(temporary / RUN_FILE, facts)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def load_run(folder: str | os.PathLike, model: nn.Module | None = None) -> Run:
    """Read a run that :func:`save_run` wrote.

    Args:
        folder: the run's folder.
        model: the base model with LoRA of the same shape, to share between runs; default: load the run's own.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: a file is damaged, or does not fit the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from .baselines import load_posterior
    from .gates import Decisions
    from .models import DTYPES, LoraSettings, load_model
    from .train import Run

    folder = Path(folder)
    for file in (RUN_FILE, ADAPTER):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} holds no finished run: {file} is missing.")
    facts = _facts(folder)
    try:
        weights = load_file(folder / ADAPTER)
    except SafetensorError as error:
        raise ValueError(f"{folder / ADAPTER} is damaged: {error}") from error
    config = facts["config"]
    posterior = load_posterior(folder) if (folder / POSTERIOR_FILE).exists() else None
    if config["optimizer"] == "ivon" and posterior is None:
        raise FileNotFoundError(f"{folder} is an IVON run, but its {POSTERIOR_FILE} is missing.")
    if model is None:
        about = config["model"]
        if {"name", "dtype", "quantize", "lora"}.difference(about):
            raise ValueError(f"{folder / RUN_FILE} does not say how to load the model: hand it over as model=.")
        lora = about["lora"] | {"targets": about["lora"]["targets"] and tuple(about["lora"]["targets"])}
        dtype = next(name for name, kind in DTYPES.items() if str(kind) == f"torch.{about['dtype']}")
        model = load_model(
            about["name"],
            quantize=about["quantize"],
            dtype=dtype,
            lora=LoraSettings(**lora),
            labels=about.get("labels"),
        )
    for source in (weights, posterior.mean if posterior else weights):
        shapes = {name: tuple(t.shape) for name, t in source.items()}
        wanted = {name: tuple(p.shape) for name, p in trainable(model).items()}
        wrong = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
        if wrong:
            raise ValueError(
                f"The run in {folder} does not fit this model: {wrong[0]} has shape {shapes.get(wrong[0])}, the model "
                f"wants {wanted.get(wrong[0])}."
            )
    gates = Decisions.from_facts(config["gates"]["decided"]) if "gates" in config else None
    return Run(model, weights, posterior, config, facts["history"], facts["seconds"], gates)


def _facts(folder: Path) -> dict:
    """What ``run.json`` holds; a ``ValueError`` if that is no run."""
    facts = read_json(folder / RUN_FILE)
    config = facts.get("config") if isinstance(facts, dict) else None
    if not isinstance(config, dict) or CONFIG.difference(config) or FACTS.difference(facts):
        raise ValueError(f"{folder / RUN_FILE} is damaged, or not the record of a run.")
    return facts
