"""Folders that one process alone writes to."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = ".writing"  # in a folder that a process has reserved


@contextmanager
def reserved(folder: str | os.PathLike) -> Iterator[Path]:
    """Within the context a folder is this process's to write to: it can be written, and no other process does.

    Raises:
        FileExistsError: another process that still runs on this machine has reserved it.
        OSError: it cannot be written; the message says why.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _lock(lock)
    except FileExistsError:
        raise
    except OSError as error:
        raise type(error)(
            f"{folder} cannot be written to ({error.strerror or error}): choose another folder."
        ) from error
    try:
        yield folder
    finally:
        lock.unlink(missing_ok=True)
        for path in made:
            with suppress(OSError):
                path.rmdir()


def _lock(lock: Path) -> None:
    mine = {"pid": os.getpid(), "host": platform.node()}
    try:
        with lock.open("x", encoding="utf8") as file:
            json.dump(mine, file)
        return
    except FileExistsError:
        if lock.parent.is_file():
            raise FileExistsError(f"{lock.parent} is a file, not a folder: choose another one.") from None
    other = _holder(lock)
    # if its process is no more, one of those that see this moves the lock away
    if other.get("host") in (None, platform.node()) and not _runs(other.get("pid")):
        aside = lock.with_name(f"{LOCK}.{os.getpid()}")
        with suppress(FileNotFoundError):
            os.replace(lock, aside)
            if (moved := _holder(aside)) != other:  # another one was faster, and this is its own lock
                os.replace(aside, lock)
                other = moved
            aside.unlink(missing_ok=True)
        if not _runs(other.get("pid")):
            return _lock(lock)
    raise FileExistsError(
        f"{lock.parent} is being written by process {other.get('pid')} on {other.get('host')}: choose another folder "
        f"(or delete {lock.name} there, if no such process exists)."
    )


def _holder(lock: Path) -> dict:
    """Who holds a lock; of one that is not written to its end, after a moment, nobody."""
    for _ in range(10):
        try:
            found = json.loads(lock.read_text("utf8"))
            return found if isinstance(found, dict) else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            time.sleep(0.05)
    return {}


def _runs(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def in_use(path: Path) -> bool:
    """Whether it is a lock, or the stage of a process that still runs."""
    pid, _, kind = path.name[1:].partition(".")
    return path.name == LOCK or (path.name[0] == "." and kind == "tmp" and pid.isdigit() and _runs(int(pid)))
