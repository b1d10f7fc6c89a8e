"""What the answers of all rows are (letters, texts, indices, classes), and rows → questions."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..questions import LETTERS, Question, letter_prompt
from .rows import Row

MOST_CLASSES = 26


def _number(answer: str, least: int, count: int) -> int | None:
    whole = _whole(answer)
    return int(whole) - least if whole.isdecimal() and 0 <= int(whole) - least < count else None


def _whole(answer: str) -> str:
    """2.0 as 2, as tables of numbers have it that were written with empty cells; all else as it is."""
    return re.sub(r"^(\d+)\.0+$", r"\1", answer)


def _place(answer: str, among: Sequence[str]) -> int | None:
    return list(among).index(answer) if answer in among else None


# what an answer may be → the index that it means in a row, or None
KINDS: dict[str, Callable[[Row], int | None]] = {
    "label": lambda row: _place(row.answer, row.names[: len(row.choices)]),
    "letter": lambda row: _place(row.answer.upper(), LETTERS[: len(row.choices)]) if len(row.answer) == 1 else None,
    "text": lambda row: _place(row.answer, row.choices),
    "index0": lambda row: _number(row.answer, 0, len(row.choices)),
    "index1": lambda row: _number(row.answer, 1, len(row.choices)),
}
WORDS = {
    "label": "the choices' own labels", "letter": "letters", "text": "the choices' texts", "index0": "indices from 0",
    "index1": "indices from 1",
}  # fmt: skip


def understood(rows: dict[str, list[Row]], answer_as: str | None) -> tuple[str, dict[str, list[Question]]]:
    """What the answers of all rows are, and the questions."""
    every = [row for part in rows.values() for row in part]
    if answer_as is not None and answer_as not in KINDS:
        raise ValueError(f"answer_as is {answer_as!r}; expected one of {', '.join(KINDS)}.")
    found = {kind: [KINDS[kind](row) for row in every] for kind in ([answer_as] if answer_as else KINDS)}
    fitting = {kind: places for kind, places in found.items() if None not in places}
    if not fitting:
        best = max(found, key=lambda kind: len(every) - found[kind].count(None))
        row = every[found[best].index(None)]
        some = any(place is not None for place in found[best])
        expected = f"{WORDS[best]}, as most rows have," if some else " or ".join(WORDS[kind] for kind in found)
        raise ValueError(
            f"{row.where}: the answer is {row.answer[:60]!r}; expected {expected} for the choices "
            f"{', '.join(choice[:30] for choice in row.choices)}."
        )
    if len({tuple(places) for places in fitting.values()}) > 1:
        raise ValueError(
            f"{every[0].where}: the answer {every[0].answer[:60]!r} could be {' or '.join(WORDS[k] for k in fitting)}, "
            f"and so could all others. Say which with answer_as={' or '.join(map(repr, fitting))}."
        )
    kind, places = next(iter(fitting.items()))
    numbers = iter(places)
    made = {
        split: [
            Question(
                letter_prompt(r.stem, r.choices),
                r.choices,
                next(numbers),
                r.stem,
                tuple(LETTERS[: len(r.choices)]),
                r.id,
            )
            for r in part
        ]
        for split, part in rows.items()
    }
    return WORDS[kind], made


def classified(
    source,
    rows: dict[str, list[Row]],
    labels: Sequence[str] | None,
    others: Sequence[str] = (),
    answer_as: str | None = None,
) -> tuple[str, dict[str, list[Question]]]:
    """Classification: every row has the same choices, the classes; ``others`` are columns that are not used."""
    if answer_as not in (None, "label", "index0", "index1"):
        raise ValueError(f"answer_as is {answer_as!r}; a class is given as 'label', 'index0' or 'index1'.")
    if all(_whole(row.answer).isdecimal() for part in rows.values() for row in part):
        rows = {split: [replace(row, answer=_whole(row.answer)) for row in part] for split, part in rows.items()}
    every = [row for part in rows.values() for row in part]
    values = sorted({row.answer for row in every}, key=lambda v: (not v.isdecimal(), int(v) if v.isdecimal() else 0, v))
    words = list(labels) if labels else values
    if not labels and rows.get("train"):
        known = {row.answer for row in rows["train"]}
        if odd := [row for row in every if row.answer not in known]:
            raise ValueError(
                f"{odd[0].where}: no training row has the class {odd[0].answer[:60]!r}. If it hides the answer, leave "
                "that file out; if it is a class, list all of them with labels=…."
            )
    if not labels and len(others) >= 2 and all(v.upper() in tuple(LETTERS) for v in values):
        raise ValueError(
            f"{source}: the answers are {', '.join(values)}, and the columns {', '.join(others)} are not used. If "
            "these hold choices, name them with choices=…; if the answers are classes, list these with labels=…."
        )
    if not 2 <= len(words) <= MOST_CLASSES or len(set(words)) < len(words):
        raise ValueError(
            f"{source}: the classes are {', '.join(words[:10])}{' …' if len(words) > 10 else ''}; expected 2 to "
            f"{MOST_CLASSES} different ones. If the rows are questions with choices, name these with choices=…."
        )
    made: dict[str, list[Question]] = {split: [] for split in rows}
    for split, part in rows.items():
        for row in part:
            place = None if answer_as in ("index0", "index1") else _place(row.answer, words)
            if place is None and answer_as != "label":
                place = _number(row.answer, int(answer_as == "index1"), len(words))
            if place is None:
                raise ValueError(
                    f"{row.where}: the class is {row.answer[:60]!r}; expected {', '.join(words)}, or a number."
                )
            made[split].append(Question(f"{row.stem} Answer:", tuple(words), place, row.stem, tuple(words), row.id))
    return f"one of the classes {', '.join(words)}", made
