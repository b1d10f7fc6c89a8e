"""Files and folders that are whole or absent, and the facts that a recorded result carries."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


PACKAGES = ("torch", "transformers", "peft", "ivon-lora-lite")


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside ``path``; on success it takes the place of ``path``, on failure it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def whole_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """A new folder beside ``folder``; on success it takes the place of ``folder``, on failure it is removed.

    A folder that is there already is moved aside first, and comes back if the new one cannot take its place.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        if folder.exists():
            os.replace(folder, aside)
        try:
            os.replace(temporary, folder)
        except BaseException:
            if aside.exists():
                os.replace(aside, folder)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file, all or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, "utf8")


def write_json(path: str | os.PathLike, content: object) -> None:
    """Write a JSON file, all or nothing."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike) -> dict:
    """Read a JSON file; a damaged one is a ``ValueError`` that names it."""
    try:
        return json.loads(Path(path).read_text("utf8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def write_tensors(path: str | os.PathLike, format: str, tensors: Mapping[str, Tensor], facts: object) -> Path:
    """Write a safetensors file, all or nothing; its header has ``format``, JSON-able ``facts`` and ``provenance``."""
    from safetensors.torch import save_file

    # contiguous copies: safetensors refuses tensors that share memory
    copies = {name: t.contiguous().clone() for name, t in tensors.items()}
    header = {"format": format, "facts": json.dumps(facts), "provenance": json.dumps(provenance())}
    with atomic_path(path) as temporary:
        save_file(copies, temporary, header)
    return Path(path)


def read_tensors(path: str | os.PathLike, format: str, what: str) -> tuple[dict[str, Tensor], dict]:
    """Tensors and facts of a file of :func:`write_tensors`; ``what`` it should hold is for the messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or of another format.
    """
    with _opened(path, what) as file:
        header = file.metadata() or {}
        if header.get("format") != format:
            raise ValueError(f"{path} holds no {what} of this package (format {header.get('format')!r}).")
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    try:
        return tensors, json.loads(header.get("facts", "{}"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def format_of(path: str | os.PathLike, what: str) -> str | None:
    """The format that a safetensors file states in its header; raises as :func:`read_tensors` does."""
    with _opened(path, what) as file:
        return (file.metadata() or {}).get("format")


@contextmanager
def _opened(path: str | os.PathLike, what: str) -> Iterator:
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no {what} at {path}.")
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error


def data_path(*parts: str) -> Path:
    """A file or folder of ``data/`` that the package carries (installed), or of the checkout that it runs from."""
    here = Path(__file__).resolve().parent
    for base in (here, here.parent):
        if (path := base.joinpath("data", *parts)).exists():
            return path
    raise FileNotFoundError(f"data/{'/'.join(parts)} is missing: reinstall ivon-lora-lite.")


def first_line(error: BaseException) -> str:
    """An error's first line, shortened."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def provenance() -> dict:
    """Date, versions, device and git commit: what a recorded result needs to be believed."""
    import torch

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": _commit(),
        "device": device,
        "versions": versions,
    }


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, marked if the tree differs from it."""
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():  # installed: a repository further up is somebody else's
        return None
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip() or None
