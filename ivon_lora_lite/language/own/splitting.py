"""Training, validation and test questions out of one file, or of several."""

import hashlib

from ..questions import Question
from .reading import SPLITS

HELD_OUT = 0.2  # of the questions of one file, for validation and for test each


def _key(question: Question) -> str:
    return " ".join(question.stem.lower().split())


def divided(source, made: dict[str, list[Question]]) -> tuple[dict[str, list[Question]], str]:
    """Training, validation and test questions, and by which rule.

    Questions with the same words are kept together, in the order of a hash of their words, so that the order of rows
    does not matter.
    """
    if "train" in made:
        keys = {split: {_key(q) for q in questions} for split, questions in made.items()}
        shared = ""
        for a, b in (("train", "test"), ("train", "validation"), ("validation", "test")):
            if both := len(keys[a] & keys.get(b, set())) if a in keys else 0:
                shared += f"; in {a} and in {b}: {both}"
        if "validation" in made:
            return {s: made[s] for s in SPLITS}, f"by file{shared}"
        train, validation = _held_out(source, made["train"], 1)
        parts = {"train": train, "validation": validation, "test": made["test"]}
        return parts, f"by file{shared}; validation from train"
    train, validation, test = _held_out(source, next(iter(made.values())), 2)
    share = f"{1 - 2 * HELD_OUT:.0%} / {HELD_OUT:.0%} / {HELD_OUT:.0%}"
    return {"train": train, "validation": validation, "test": test}, f"{share} by a hash of the question"


def _held_out(source, questions: list[Question], parts: int) -> list[list[Question]]:
    """What is left, then so many held-out parts."""
    groups: dict[str, list[Question]] = {}
    for q in questions:
        groups.setdefault(_key(q), []).append(q)
    if len(groups) <= parts:
        raise ValueError(
            f"{source} has {len(groups)} different questions, too few to be split: give a folder with train, "
            "validation and test files."
        )
    order = sorted(groups, key=lambda key: hashlib.sha256(key.encode()).digest())
    size = max(1, round(HELD_OUT * len(order)))
    bounds = [0, *(len(order) - size * (parts - k) for k in range(parts)), len(order)]
    chosen = [set(order[a:b]) for a, b in zip(bounds, bounds[1:])]
    return [[q for q in questions if _key(q) in keys] for keys in chosen]
