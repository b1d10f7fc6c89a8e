"""Files and folders that are whole or absent, and the facts that a recorded result carries."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from .locks import LOCK, in_use, reserved  # noqa: F401 (found here, beside the folders that they are about)

if TYPE_CHECKING:
    from torch import Tensor


PACKAGES = ("torch", "transformers", "peft", "ivon-lora-lite")


@contextmanager
def _writing() -> Iterator[None]:
    """What cannot be written is an ``OSError``: safetensors has an error of its own for a full disk."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside ``path``; on success it takes the place of ``path``, on failure it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _writing():
            yield temporary
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def whole_folder(folder: str | os.PathLike, last: str, own: Collection[str] | None = None) -> Iterator[Path]:
    """A new folder within ``folder`` whose files move up when all of them are there; on failure it is removed.

    The folder itself is never replaced, so it may be the working folder, a link, or a mounted volume. Files that were
    there are moved aside first, and come back if the new ones cannot take their place.

    Args:
        folder: made if it is not there.
        last: the file that moves last: where it is, all others are.
        own: names of what is replaced; other files and folders stay. Default: all that is there.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    stage, aside = (folder / f".{os.getpid()}.{kind}" for kind in ("tmp", "old"))
    shutil.rmtree(stage, ignore_errors=True)
    try:
        stage.mkdir()
        with _writing():
            yield stage
        former = [path for path in folder.iterdir() if path != stage and not in_use(path)]
        former = [path for path in former if own is None or path.name in own]
        _move_all(aside, former, last, False)
        new = [path.name for path in stage.iterdir()]
        try:
            _move_all(folder, [stage / name for name in new], last, True)
        except BaseException:  # the former files come back below
            for path in (folder / name for name in new):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if aside.exists():
            _move_all(folder, list(aside.iterdir()), last, True)
            shutil.rmtree(aside, ignore_errors=True)
        for path in made:  # the innermost first; those with something in them stay
            with suppress(OSError):
                path.rmdir()


def _move_all(target: Path, paths: list[Path], last: str, ascending: bool) -> None:
    """Move files and folders; ``last`` moves last, or, not ``ascending``, first."""
    if not paths:
        return
    target.mkdir(exist_ok=True)
    for path in sorted(paths, key=lambda path: (path.name == last) == ascending):
        if (target / path.name).is_dir():
            shutil.rmtree(target / path.name)
        os.replace(path, target / path.name)


def write_or_keep(write: Callable[[Path], object], folder: Path) -> None:
    """Call ``write(folder)``; if that fails, write to a temporary folder instead, so that the result is not lost.

    Raises:
        OSError: ``folder`` could not be written; the message says where the result is.
    """
    try:
        write(folder)
    except OSError as error:
        other = Path(tempfile.mkdtemp(prefix=f"{folder.resolve().name}-"))
        try:
            write(other)
        except OSError:
            raise error from None
        raise OSError(f"{folder} could not be written ({error}): the result is in {other} instead.") from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file, all or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, "utf8")


def write_json(path: str | os.PathLike, content: object) -> None:
    """Write a JSON file, all or nothing."""
    write_text(path, to_json(content, indent=1) + "\n")


def to_json(content: object, **options) -> str:
    """JSON text; numbers may be NumPy's or torch's."""
    return json.dumps(content, default=_plain, ensure_ascii=False, **options)


def _plain(value: object) -> object:
    if getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError(f"{value!r} is of the type {type(value).__name__}, which JSON does not know.")


def read_json(path: str | os.PathLike) -> dict:
    """Read a JSON file; a damaged one is a ``ValueError`` that names it."""
    try:
        return json.loads(Path(path).read_text("utf8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def finished(path: str | os.PathLike, options: Mapping[str, object], key: str = "options") -> bool:
    """Whether a record is there already; what is known of its options, under ``key``, must be what is asked for now.

    Raises:
        ValueError: it was made with other options.
    """
    if not Path(path).exists():
        return False
    known = read_json(path).get(key, {})
    for name, value in json.loads(to_json(options)).items():
        if known.get(name, value) != value:
            raise ValueError(
                f"{path} was made with {name}={known[name]}, and now {name}={value} is asked for: choose another --out."
            )
    return True


def keep_options(folder: str | os.PathLike, options: Mapping[str, object]) -> None:
    """Write ``options.json`` into a folder of results; one that is there must name the same options.

    Raises:
        ValueError: the folder's results were made with other options.
    """
    file = Path(folder) / "options.json"
    if not finished(file, options):
        write_json(file, {"options": options, "provenance": provenance()})


def write_tensors(path: str | os.PathLike, format: str, tensors: Mapping[str, Tensor], facts: object) -> Path:
    """Write a safetensors file, all or nothing; its header has ``format``, JSON-able ``facts`` and ``provenance``."""
    from safetensors.torch import save_file

    # contiguous copies: safetensors refuses tensors that share memory
    copies = {name: t.contiguous().clone() for name, t in tensors.items()}
    header = {"format": format, "facts": to_json(facts), "provenance": json.dumps(provenance())}
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
        describe = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        out = subprocess.run(describe, cwd=here, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip() or None
