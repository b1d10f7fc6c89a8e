"""Which checkpoint a run continues from: the last whole one in its folder, refused if it is another run's.

``finetune(output_dir=…, save_every=…, resume=True)`` asks here and hands the answer to ``Trainer.train``, which
restores weights, random numbers and, by ``IVON.load_state_dict``, the posterior and its noise.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..files import read_json, to_json, write_json
from ..language import Question

SETTINGS = "settings.json"
STATE = "trainer_state.json"  # the Trainer writes it last


@contextmanager
def checkpoints(
    folder: str | os.PathLike | None, config: dict, files: Sequence[str], saves: bool, resume: bool
) -> Iterator[tuple[str, str | None]]:
    """The folder for a run's checkpoints (within the context a temporary one, if there is none), and where it goes on.

    Args:
        folder, config, files: as in :func:`last_checkpoint`.
        saves: whether the run will write checkpoints: from now on those in the folder are its own.
        resume: whether it goes on from one.

    Raises:
        ValueError: another run's checkpoints are there, or, without ``resume``, any; or there is no folder for them.
    """
    if folder is None:
        if saves or resume:
            raise ValueError("Checkpoints need a folder: give output_dir.")
        with tempfile.TemporaryDirectory() as temporary:
            yield temporary, None
        return
    if saves and not resume and any(Path(folder).glob("checkpoint-*")):
        raise ValueError(f"{folder} holds checkpoints: use resume=True to go on from them, or another folder.")
    last = last_checkpoint(folder, config, files) if resume else None
    if saves:
        remember(folder, config)
    yield str(folder), None if last is None else str(last)


def last_checkpoint(folder: str | os.PathLike, config: dict, files: Sequence[str] = ()) -> Path | None:
    """The newest checkpoint that was written to its end, or None: then the run starts afresh.

    One at the run's last step does not count: resumed there, the Trainer would take one step more. The steps since the
    one before are computed again, to the same weights.

    Args:
        folder: where the checkpoints are; it need not exist.
        config: the run's settings, JSON-able; ``steps`` among them.
        files: what callbacks add to a checkpoint that is whole.

    Raises:
        ValueError: the checkpoints belong to a run with other settings; the message names the first difference.
    """
    folder = Path(folder)
    found = {p: int(p.name.split("-")[1]) for p in folder.glob("checkpoint-*") if re.fullmatch(r"\w+-\d+", p.name)}
    if found and (folder / SETTINGS).exists():
        former, now = read_json(folder / SETTINGS), _identity(config)
        different = [name for name in sorted(former.keys() | now.keys()) if former.get(name) != now.get(name)]
        if different:
            name = different[0]
            raise ValueError(
                f"The checkpoints in {folder} are of another run ({name} {former.get(name)!r}, now {now.get(name)!r}): "
                "choose another folder, or delete them."
            )
    return max(
        (p for p, step in found.items() if step < config["steps"] and _whole(p, files)), key=found.get, default=None
    )


def remember(folder: str | os.PathLike, config: dict) -> None:
    """Write down whose checkpoints a folder holds (one process of several does)."""
    if os.environ.get("RANK", "0") == "0":
        write_json(Path(folder) / SETTINGS, _identity(config))


def check_attachments(attachments: Sequence, optimizer: str, checkpoints: bool, callbacks: Sequence) -> None:
    """Refuse attachments that need another optimizer, and what would keep the weights under them as if they were whole.

    An attachment that ``rewrites`` the weights, at the end or in every forward pass, does not go with callbacks that
    have ``reads_weights``.
    """
    for one in attachments:
        for callback in callbacks if getattr(one, "rewrites", False) else ():
            if getattr(callback, "reads_weights", False):
                raise ValueError(
                    f"{type(callback).__name__} keeps the weights that it sees, and under {type(one).__name__} the "
                    "model computes with others: leave one of them out."
                )
        if getattr(one, "optimizer", optimizer) != optimizer:
            raise ValueError(f"{type(one).__name__} needs optimizer={one.optimizer!r}.")
    if attachments and checkpoints:
        raise ValueError("Runs with gates or other attachments write no checkpoints: leave save_every and resume out.")


def fingerprint(questions: Sequence[Question]) -> str:
    """A short hash of what is asked and what is right: a run that goes on with other questions is another run."""
    content = json.dumps([(q.stem, q.choices, int(q.answer), q.prompt, q.labels) for q in questions])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _identity(config: dict) -> dict:
    """What makes a run this run, as JSON gives it back.

    The 16-bit type is left out: Colab may give another GPU next time.
    """
    config = json.loads(to_json(config))
    for name in ("dtype", "gradient_checkpointing"):
        config.get("model", {}).pop(name, None)
    return config


def _whole(checkpoint: Path, files: Sequence[str]) -> bool:
    try:
        return "global_step" in read_json(checkpoint / STATE) and all((checkpoint / name).is_file() for name in files)
    except (OSError, ValueError):
        return False
