"""A finished run, and its folder: PEFT adapter, posterior, settings and history."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..files import provenance, read_json, whole_folder, write_json
from ..language import DTYPES, changes_base, description_of, load_model, reset_lora
from ..posterior import (
    POSTERIOR_FILE,
    Posterior,
    active_adapter,
    load_extensions,
    load_posterior,
    read_weights,
    restored,
    settable,
    trainable,
    unwrapped,
)
from .asking import Answer, ask, question_for
from .card import write_card
from .exports import merge, save_draw, write_adapter
from .folders import ADAPTER, CONFIG, RUN_FILE, check_free, read_facts

# of an adapter's settings: what decides how its weights act
DECISIVE = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias",
            "init_lora_weights")  # fmt: skip
FILES = (RUN_FILE, ADAPTER, "adapter_config.json", "README.md", POSTERIOR_FILE)  # of a run
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
        adapter: name of the model's active adapter, which has to be active whenever the run is used.
    """

    model: nn.Module
    weights: Mapping[str, Tensor]
    posterior: Posterior | None
    config: dict
    history: list[dict] = field(default_factory=list)
    seconds: float = math.nan
    gates: Any = None

    def __post_init__(self) -> None:
        self.adapter = active_adapter(self.model)

    def check_adapter(self) -> None:
        """Refuse a model in which another adapter was made active since; the weights would get its scale.

        Raises:
            ValueError: it is so.
        """
        if (now := active_adapter(self.model)) != self.adapter:
            raise ValueError(f"The run is of the adapter {self.adapter!r}, and {now!r} is active: set_adapter first.")

    def derived(self, method: str, **changes) -> Run:
        """A run that another method makes of this one; what was chosen for this one's predictions does not hold for it.

        Args:
            method: its name, for ``config``.
            changes: fields to replace, as in :func:`dataclasses.replace`; a ``config`` is added to this run's.
        """
        self.check_adapter()
        own = {name: value for name, value in self.config.items() if name not in ("abstain", "tau")}
        return replace(self, config={**own, **changes.pop("config", {}), "method": method}, **changes)

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
    def load(
        cls, folder: str | os.PathLike, model: nn.Module | None = None, *, progress: bool = True, **loading: Any
    ) -> Run:
        """Read what :meth:`save` wrote; see :func:`load_run`."""
        return load_run(folder, model, progress=progress, **loading)


def save_run(run: Run, folder: str | os.PathLike, *, overwrite: bool = False) -> Path:
    """Write a run: a PEFT adapter (the mean), ``posterior.safetensors`` (IVON) and ``run.json``; all or nothing.

    Args:
        run: what :func:`finetune` returned.
        folder: must not exist, or be empty.
        overwrite: replace the run in a folder that holds one; other files and folders there stay.

    Raises:
        FileExistsError: the folder holds another run or other files.
    """
    folder = Path(folder)
    if not (overwrite and (folder / RUN_FILE).exists()):
        check_free(folder)
    with whole_folder(folder, last=RUN_FILE, own=FILES) as temporary:
        write_run(run, temporary)
    return folder


def write_run(run: Run, folder: Path) -> None:
    """Write a run's files into a folder that exists."""
    run.check_adapter()
    if missing := sorted(CONFIG.difference(run.config)):
        raise ValueError(f"The run's config does not say {', '.join(missing)}: enter it (model may be {{}}).")
    write_adapter(run.model, run.weights, folder)
    write_card(folder, run.config, posterior=run.posterior is not None)
    if run.posterior is not None:
        run.posterior.save(folder)
    facts = {"config": run.config, "history": run.history, "seconds": run.seconds, "provenance": provenance()}
    write_json(folder / RUN_FILE, facts)


def started_from(run: Run) -> dict[str, Tensor]:
    """The weights from which a run was trained, name → tensor: they follow from its seed and its model.

    Raises:
        ValueError: it continued from weights that are not known any more, or its start changed a base model that is
            not at hand as it was.
    """
    read, own = description_of(run.model).get("adapter"), run.config["model"].get("adapter")
    start, params = unwrapped(run.model).peft_config[active_adapter(run.model)].init_lora_weights, trainable(run.model)
    by_seed = start in (True, "gaussian") and all(".lora_" in name for name in params)
    if run.config.get("continued") or (own and own != read) or (read and not own and not by_seed):
        raise ValueError("The weights from which this run was trained are not known any more.")
    with restored(params.values()):
        reset_lora(run.model, run.config["seed"], fresh=own is None)
        return read_weights(run.model)


def load_run(
    folder: str | os.PathLike, model: nn.Module | None = None, *, progress: bool = True, **loading: Any
) -> Run:
    """Read a run that :func:`save_run` wrote.

    Args:
        folder: the run's folder.
        model: the base model with LoRA of the same shape, to share between runs; its weights stay as they are, and
            :func:`predict` puts the run's into it. Default: load the run's own, with the run's weights in it.
        progress: show a progress bar while a model is loaded.
        loading: without ``model``, options of :func:`load_model` other than in training: ``device="cpu"``,
            ``dtype="fp32"``, ``quantize=None`` …

    Raises:
        FileNotFoundError: there is no run, or its base model cannot be had.
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
    if model is not None and loading:
        raise ValueError(f"{', '.join(loading)} says how to load the run's own model, and one is given: leave one out.")
    if model is None:
        model = _model_of(config["model"], folder, {"progress": progress, **loading})
    for source in (weights, posterior.mean if posterior else weights):
        _check_shapes(source, model, folder)
    _check_adapter(folder, model)
    gates = None
    if "gates" in config:
        if "gates" not in ATTACHED:
            load_extensions()
        gates = ATTACHED["gates"](config["gates"])
    return Run(model, weights, posterior, config, facts["history"], facts["seconds"], gates)


def _model_of(about: dict, folder: Path, loading: dict) -> nn.Module:
    """The base model that ``run.json`` names, with the folder's adapter: PEFT's own file says what that is."""
    if {"name", "dtype", "quantize"}.difference(about):
        raise ValueError(f"{folder / RUN_FILE} does not say how to load the model: hand it over as model=.")
    dtype = next(name for name, kind in DTYPES.items() if str(kind) == f"torch.{about['dtype']}")
    options = {"quantize": about["quantize"], "dtype": dtype, "adapter": folder, "labels": about.get("labels")}
    try:
        return load_model(about["name"], **{**options, **loading})
    except (ValueError, FileNotFoundError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(
            f"The base model of the run in {folder} does not load. {error} Say how else it should, such as "
            "load_run(folder, device='cpu', quantize=None), or hand over the model."
        ) from error


def _check_adapter(folder: Path, model: nn.Module) -> None:
    """Refuse a model in which the run's weights would mean something else, because its LoRA has other settings."""
    bases = read_facts(folder)["config"]["model"].get("name"), getattr(model, "description", {}).get("name")
    if None not in bases and bases[0] != bases[1]:
        warnings.warn(
            f"The run in {folder} was trained on {bases[0]}, and this model is {bases[1]}: on another base model its "
            "weights mean nothing.",
            stacklevel=3,
        )
    adapter = active_adapter(model)
    if adapter is None or not (folder / "adapter_config.json").is_file():
        return
    of_run, of_model = read_json(folder / "adapter_config.json"), unwrapped(model).peft_config[adapter].to_dict()
    name = first_difference(of_run, of_model)
    if name is not None:
        raise ValueError(
            f"The run in {folder} does not fit this model: its adapter has {name}={of_run.get(name)!r}, the "
            f"model's {of_model.get(name)!r}. Leave model= out to load the run's own."
        )


def first_difference(one: Mapping, other: Mapping) -> str | None:
    """The first of two adapters' settings that makes the same weights act differently; None: they act alike."""
    for name in DECISIVE:
        pair = [about.get(name) or None for about in (one, other)]
        if name == "init_lora_weights":  # it matters later only where it changed the base model
            pair = [start if changes_base(start) else None for start in pair]
        if pair[0] != pair[1]:
            return name
    return None


def _check_shapes(weights: dict[str, Tensor], model: nn.Module, folder: Path) -> None:
    shapes = {name: tuple(t.shape) for name, t in weights.items()}
    wanted = {name: tuple(p.shape) for name, p in settable(model).items()}
    wrong = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
    if wrong:
        raise ValueError(
            f"The run in {folder} does not fit this model: {wrong[0]} has shape {shapes.get(wrong[0])}, the model "
            f"wants {wanted.get(wrong[0])}."
        )
