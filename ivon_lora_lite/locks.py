"""What one alone may change at a time: a folder of one process, a model's weights of one thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock, RLock
from weakref import WeakKeyDictionary

import psutil
from filelock import FileLock, Timeout

LOCK = ".writing"  # in a folder that a process has reserved
_OF_MODELS: WeakKeyDictionary = WeakKeyDictionary()
_MAKING = Lock()


def lock_of(model):
    """The lock that a thread holds while a model has other weights than its own, or is predicted with.

    It may be taken again by the thread that holds it. It is kept beside the model, which can so be copied and pickled.
    """
    with _MAKING:
        return _OF_MODELS.setdefault(model, RLock())


@contextmanager
def reserved(folder: str | os.PathLike) -> Iterator[Path]:
    """Within the context a folder is this process's to write to: it can be written, and no other process does.

    The operating system holds the lock and lets it go when the process ends, however it ends.

    Raises:
        FileExistsError: another process, or another part of this one, has reserved it.
        OSError: it cannot be written; the message says why.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        _take(folder, lock)
    except Timeout:
        raise FileExistsError(f"{folder} is being written by another process: choose another folder.") from None
    except OSError as error:
        why = "it is a file, not a folder" if folder.is_file() else error.strerror or error
        raise type(error)(f"{folder} cannot be written to ({why}): choose another folder.") from error
    try:
        yield folder
    finally:
        with suppress(OSError):  # on Windows it goes with its release
            (folder / LOCK).unlink()
        lock.release()
        for path in made:
            with suppress(OSError):
                path.rmdir()


def _take(folder: Path, lock: FileLock, tries: int = 20) -> None:
    for left in reversed(range(tries)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            return
        except (FileNotFoundError, FileExistsError):  # a process that leaves takes an empty folder with it at any time
            if not left:
                raise


def in_use(path: Path) -> bool:
    """Whether it is a lock, or the stage of a process that still runs."""
    pid, _, kind = path.name[1:].partition(".")
    return path.name == LOCK or (
        path.name[0] == "." and kind == "tmp" and pid.isdigit() and psutil.pid_exists(int(pid))
    )
