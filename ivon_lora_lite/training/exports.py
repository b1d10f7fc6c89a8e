"""What a run is for other programs: a draw as a plain PEFT adapter, a plain transformers model with LoRA merged in."""

from __future__ import annotations

import copy
import os
from pathlib import Path

from torch import Tensor, nn

from ..evaluation import Trained
from ..files import whole_folder
from ..language import tokenizer_of
from ..posterior import active_adapter, applied_weights, unwrapped
from .card import CARD
from .folders import ADAPTER, check_free


def save_draw(run: Trained, folder: str | os.PathLike, seed: int = 0, tau: float = 1.0) -> Path:
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
    run.check_adapter()
    if run.posterior is None:
        raise ValueError("This run has no posterior to draw from: save it with run.save(folder).")
    folder = check_free(folder)
    with whole_folder(folder, last=ADAPTER) as temporary:
        write_adapter(run.model, run.posterior.sample(seed, tau), temporary)
    return folder


def merge(run: Trained, folder: str | os.PathLike, seed: int | None = None, tau: float = 1.0) -> Path:
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
    run.check_adapter()
    if getattr(unwrapped(run.model).get_base_model(), "is_quantized", False):  # transformers' own mark
        raise ValueError("LoRA cannot be merged into a quantised model without loss: load the run with quantize=None.")
    if seed is not None and run.posterior is None:
        raise ValueError("This run has no posterior to draw from: leave seed out.")
    weights = run.weights if seed is None else run.posterior.sample(seed, tau)
    folder = check_free(folder)
    with whole_folder(folder, last="config.json") as temporary:
        with applied_weights(run.model, weights):
            merged = copy.deepcopy(unwrapped(run.model))
        if _untie(merged):
            merged.get_base_model().config.tie_word_embeddings = False
        merged = merged.merge_and_unload()
        merged.save_pretrained(temporary)
        tokenizer_of(run.model).save_pretrained(temporary)
    return folder


def _untie(model: nn.Module) -> bool:
    """Give a tied output layer a weight of its own if LoRA is on it or on the embeddings; returns whether it did.

    Merged into a weight that both share, LoRA of the one would change the other too.
    """
    outer = [model.get_output_embeddings(), model.get_input_embeddings()]
    inner = [getattr(layer, "base_layer", layer) for layer in outer]
    weights = [getattr(layer, "weight", None) for layer in inner]
    if outer == inner or weights[0] is None or weights[0] is not weights[1]:
        return False
    inner[0].weight = nn.Parameter(weights[0].detach().clone(), requires_grad=False)
    return True


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
