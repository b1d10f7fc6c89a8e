"""A finished run, and its folder: PEFT adapter, posterior, settings and history."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..files import LOCK, provenance, read_json, whole_folder, write_json
from ..language import DTYPES, load_model, tokenizer_of
from ..posterior import (
    POSTERIOR_FILE,
    Posterior,
    active_adapter,
    applied_weights,
    load_extensions,
    load_posterior,
    trainable,
    unwrapped,
)
from .asking import Answer, ask, question_for
from .card import CARD, write_card

RUN_FILE = "run.json"
ADAPTER = "adapter_model.safetensors"
FACTS = {"config", "history", "seconds"}
# of an adapter's settings: what decides how its weights act
DECISIVE = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias")
CONFIG = {"task", "optimizer", "seed", "format", "model"}
# entry of a run's settings → what that attachment decided; whoever owns it enters it here
ATTACHED: dict[str, Callable[[dict], object]] = {}


@dataclass
class Run:
    """A finished finetuning run.

    Attributes:
        model: the model it was made with; :func:`predict` puts the run's weights into it and takes them out again.
        weights: name → final LoRA weights (IVON: the mean m).
        posterior: what to draw from (IVON: the Gaussian), or None (AdamW).
        config: all settings.
        history: one dict per log or evaluation.
        seconds: wall time of training.
        gates: what gates decided (:class:`ivon_lora_lite.gates.Decisions`), if it was trained with them; ``weights``
            and draws are gated already.
    """

    model: nn.Module
    weights: dict[str, Tensor]
    posterior: Posterior | None
    config: dict
    history: list[dict] = field(default_factory=list)
    seconds: float = math.nan
    gates: object | None = None

    def save(self, folder: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Write a PEFT adapter, ``posterior.safetensors`` and ``run.json``; see :func:`save_run`."""
        return save_run(self, folder, overwrite=overwrite)

    def save_draw(self, folder: str | os.PathLike, seed: int = 0, tau: float = 1.0) -> Path:
        """Write one draw from N(m, τΣ) as a plain PEFT adapter; see :func:`save_draw`."""
        return save_draw(self, folder, seed, tau)

    def merge(self, folder: str | os.PathLike, seed: int | None = None, tau: float = 1.0) -> Path:
        """Write a plain transformers model with LoRA merged in; see :func:`merge`."""
        return merge(self, folder, seed, tau)

    def ask(self, stem: str, choices: Sequence[str] | None = None, **options) -> Answer:
        """What the run says to one question: an :class:`Answer`; options as in :func:`ivon_lora_lite.training.ask`."""
        return ask(self, [question_for(self, stem, choices)], **options)[0]

    @classmethod
    def load(cls, folder: str | os.PathLike, model: nn.Module | None = None, *, progress: bool = True) -> Run:
        """Read what :meth:`save` wrote; see :func:`load_run`."""
        return load_run(folder, model, progress=progress)


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
    with whole_folder(folder, last=RUN_FILE) as temporary:
        write_run(run, temporary)
    return folder


def save_draw(run: Run, folder: str | os.PathLike, seed: int = 0, tau: float = 1.0) -> Path:
    """Write one draw as a plain PEFT adapter, which any program that reads PEFT can load beside the mean.

    Args:
        run: with a posterior.
        folder: must not exist, or be empty.
        seed: of the draw; :func:`predict` with ``samples=S, seed=0`` uses the seeds 0 … S − 1.
        tau: scale of the covariance.

    Raises:
        ValueError: the run has no posterior.
        FileExistsError: the folder holds files.
    """
    if run.posterior is None:
        raise ValueError("This run has no posterior to draw from: save it with run.save(folder).")
    folder = check_free(folder)
    with whole_folder(folder, last=ADAPTER) as temporary:
        write_adapter(run.model, run.posterior.sample(seed, tau), temporary)
    return folder


def merge(run: Run, folder: str | os.PathLike, seed: int | None = None, tau: float = 1.0) -> Path:
    """Write a plain transformers model and its tokenizer, with LoRA at the mean merged in, or a draw of it.

    Args:
        run: on a base model that is not quantised.
        folder: must not exist, or be empty.
        seed: of a draw; None is the mean.
        tau: scale of the draw's covariance.

    Raises:
        ValueError: the base model is quantised, or a draw is asked of a run without posterior.
        FileExistsError: the folder holds files.
    """
    if run.config["model"].get("quantize") in ("8bit", "4bit"):
        raise ValueError("LoRA cannot be merged into a quantised model without loss: load the run with quantize=None.")
    if seed is not None and run.posterior is None:
        raise ValueError("This run has no posterior to draw from: leave seed out.")
    weights = run.weights if seed is None else run.posterior.sample(seed, tau)
    folder = check_free(folder)
    with whole_folder(folder, last="config.json") as temporary:
        with applied_weights(run.model, weights):
            merged = copy.deepcopy(unwrapped(run.model)).merge_and_unload()
        merged.save_pretrained(temporary)
        tokenizer_of(run.model).save_pretrained(temporary)
    return folder


def write_run(run: Run, folder: Path) -> None:
    """Write a run's files into a folder that exists."""
    write_adapter(run.model, run.weights, folder)
    write_card(folder, run.config)
    if run.posterior is not None:
        run.posterior.save(folder)
    facts = {"config": run.config, "history": run.history, "seconds": run.seconds, "provenance": provenance()}
    write_json(folder / RUN_FILE, facts)


def write_adapter(model: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    """Write named weights as PEFT's adapter into a folder that exists."""
    with applied_weights(model, weights):
        model, adapter = unwrapped(model), active_adapter(model)
        # embedding layers are the base model's
        model.save_pretrained(folder, save_embedding_layers=False, selected_adapters=[adapter])
    if (folder / adapter).is_dir():  # where PEFT puts an adapter that is not called "default"
        for file in (folder / adapter).iterdir():
            os.replace(file, folder / file.name)
        (folder / adapter).rmdir()
    (folder / CARD).unlink(missing_ok=True)  # PEFT's empty model card


def load_run(folder: str | os.PathLike, model: nn.Module | None = None, *, progress: bool = True) -> Run:
    """Read a run that :func:`save_run` wrote.

    Args:
        folder: the run's folder.
        model: the base model with LoRA of the same shape, to share between runs; its weights stay as they are, and
            :func:`predict` puts the run's into it. Default: load the run's own, with the run's weights in it.
        progress: show a progress bar while a model is loaded.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: a file is damaged, or does not fit the model.
    """
    folder = Path(folder)
    for file in (RUN_FILE, ADAPTER):
        if not (folder / file).is_file():
            raise FileNotFoundError(f"{folder} holds no finished run: {file} is missing.")
    facts = read_facts(folder)
    try:
        weights = load_file(folder / ADAPTER)
    except SafetensorError as error:
        raise ValueError(f"{folder / ADAPTER} is damaged: {error}") from error
    config = facts["config"]
    posterior = load_posterior(folder) if (folder / POSTERIOR_FILE).exists() else None
    if config["optimizer"] == "ivon" and posterior is None:
        raise FileNotFoundError(f"{folder} is an IVON run, but its {POSTERIOR_FILE} is missing.")
    if model is None:
        model = _model_of(config["model"], folder, progress)
    for source in (weights, posterior.mean if posterior else weights):
        _check_shapes(source, model, folder)
    _check_adapter(folder, model)
    gates = None
    if "gates" in config:
        if "gates" not in ATTACHED:
            load_extensions()
        gates = ATTACHED["gates"](config["gates"])
    return Run(model, weights, posterior, config, facts["history"], facts["seconds"], gates)


def _model_of(about: dict, folder: Path, progress: bool) -> nn.Module:
    """The base model that ``run.json`` names, with the folder's adapter: PEFT's own file says what that is."""
    if {"name", "dtype", "quantize"}.difference(about):
        raise ValueError(f"{folder / RUN_FILE} does not say how to load the model: hand it over as model=.")
    dtype = next(name for name, kind in DTYPES.items() if str(kind) == f"torch.{about['dtype']}")
    return load_model(
        about["name"],
        quantize=about["quantize"],
        dtype=dtype,
        adapter=folder,
        labels=about.get("labels"),
        progress=progress,
    )


def _check_adapter(folder: Path, model: nn.Module) -> None:
    """Refuse a model in which the run's weights would mean something else, because its LoRA has other settings."""
    adapter = active_adapter(model)
    if adapter is None or not (folder / "adapter_config.json").is_file():
        return
    of_run, of_model = read_json(folder / "adapter_config.json"), unwrapped(model).peft_config[adapter].to_dict()
    for name in DECISIVE:
        if (of_run.get(name) or None) != (of_model.get(name) or None):
            raise ValueError(
                f"The run in {folder} does not fit this model: its adapter has {name}={of_run.get(name)!r}, the "
                f"model's {of_model.get(name)!r}. Leave model= out to load the run's own."
            )


def _check_shapes(weights: dict[str, Tensor], model: nn.Module, folder: Path) -> None:
    shapes = {name: tuple(t.shape) for name, t in weights.items()}
    wanted = {name: tuple(p.shape) for name, p in trainable(model).items()}
    wrong = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
    if wrong:
        raise ValueError(
            f"The run in {folder} does not fit this model: {wrong[0]} has shape {shapes.get(wrong[0])}, the model "
            f"wants {wanted.get(wrong[0])}."
        )


def read_facts(folder: Path) -> dict:
    """What ``run.json`` holds; a ``ValueError`` if that is no run."""
    facts = read_json(folder / RUN_FILE)
    config = facts.get("config") if isinstance(facts, dict) else None
    if not isinstance(config, dict) or CONFIG.difference(config) or FACTS.difference(facts):
        raise ValueError(f"{folder / RUN_FILE} is damaged, or not the record of a run.")
    return facts
