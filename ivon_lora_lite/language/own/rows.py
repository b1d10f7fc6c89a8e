"""Which columns hold what, and rows → question, choices and answer as text."""

import json
from dataclasses import dataclass
from string import ascii_lowercase

from ..questions import LETTERS

QUESTION = ("question", "stem", "question_stem", "text", "sentence", "prompt")
CHOICES = ("choices", "options")
SINGLE = ("{}", "choice{}", "choice_{}", "option{}", "option_{}", "answer{}", "answer_{}")  # one column a choice
MARKS = (ascii_lowercase, *([str(first + k) for k in range(26)] for first in (0, 1)))
ANSWER = ("answer", "label", "answerkey", "answer_key", "correct", "correct_answer", "target", "gold")


@dataclass(frozen=True)
class Columns:
    """Which columns hold what. ``choices`` is empty for classification: then all rows share the classes."""

    question: str
    choices: tuple[str, ...]
    answer: str | None  # None: the questions have no known answer


@dataclass(frozen=True)
class Row:
    """A row that was read but whose answer is not yet understood."""

    where: str
    stem: str
    choices: tuple[str, ...]
    names: tuple[str, ...]  # of the choices, where the data set has its own
    answer: str
    id: str


def find_columns(
    source, there: list[str], question: str | None, choices, answer: str | None, with_answer: bool = True
) -> Columns:
    """Which columns hold what; a name that the caller gives counts, else the usual ones are looked for."""
    lower: dict[str, str] = {}
    for name in there:
        lower.setdefault(name.strip().lower().replace(" ", "_").replace("-", "_"), name)
    listed = [choices] if isinstance(choices, str) else list(choices or ())
    for name in (question, *listed, answer):
        if name is not None and name not in there:
            raise ValueError(f"{source} has no column {name!r}; it has {', '.join(there)}.")
    listed = listed or [lower[name] for name in CHOICES if name in lower][:1]
    listed = listed or _single(source, {key: name for key, name in lower.items() if name not in (question, answer)})
    usual = (lower[name] for name in ANSWER if name in lower and lower[name] not in (question, *listed))
    answer = answer or next(usual, None)
    usual = (lower[name] for name in QUESTION if name in lower and lower[name] not in (answer, *listed))
    question = question or next(usual, None)
    for role, found, names in (("question", question, QUESTION), ("answer", answer, ANSWER)):
        if found is None and (with_answer or role == "question"):
            raise ValueError(
                f"{source}: no column of the {role} was found among {', '.join(there)}. Rename it, or name it with "
                f"{role}=…; usual names are {', '.join(names)}."
            )
    return Columns(question, tuple(listed), answer if with_answer else None)


def _single(source, lower: dict[str, str]) -> list[str]:
    """Columns that hold a choice each, such as a, b, c or option1, option2; a gap among them is refused."""
    for pattern in SINGLE:
        for marks in MARKS:
            names = [pattern.format(mark) for mark in marks]
            count = next((k for k, name in enumerate(names) if name not in lower), len(names))
            if count >= 2:
                found = [lower[name] for name in names[:count]]
                beyond = next((lower[name] for name in names[count : len(LETTERS) + 1] if name in lower), None)
                if beyond is not None:
                    raise ValueError(
                        f"{source} has the columns {', '.join(found)} and {beyond}, but no {names[count]}: rename "
                        "them, or name those that are choices with choices=…."
                    )
                return found
    return []


def read_row(where: str, number: int, split: str, row: dict, columns: Columns) -> Row:
    answered = [] if columns.answer is None else [columns.answer]
    for name in (columns.question, *columns.choices[:2], *answered):  # rows of JSON may lack the last choices
        if name not in row:
            raise ValueError(f"{where}: {name!r} is missing; the row has {', '.join(map(str, row))}.")
    texts = {name: text_of(row[name], where, name) for name in (columns.question, *answered)}
    for name, text in texts.items():
        if not text:
            raise ValueError(f"{where}: {name!r} is empty.")
    choices, names = (), ()
    if columns.choices:
        choices, names = _choices(where, [row.get(name) for name in columns.choices])
    own = text_of(row.get("id"), where, "id")
    stem, answer = texts[columns.question], texts[columns.answer] if answered else ""
    return Row(where, stem, choices, names, answer, own or f"{split or 'row'}-{number}")


def text_of(value: object, where: str, what: str) -> str:
    """A cell as text.

    Raises:
        ValueError: it is no text and no number, or no text that can be written.
    """
    if isinstance(value, float) and value.is_integer():  # an index in a column of floats
        value = int(value)
    try:
        if isinstance(value, bytes):
            value = value.decode()
        text = "" if value is None or value != value else str(value).strip()  # NaN is no text either
        text.encode()
    except UnicodeError:
        raise ValueError(f"{where}: {what!r} is no text in UTF-8: {value!r:.60}.") from None
    if isinstance(value, dict | list | tuple | set | bytearray):
        raise ValueError(f"{where}: {what!r} is {text[:60]!r}; expected text.")
    return text


def _choices(where: str, cells: list) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts of a row's choices, and the names that the row has for them (ARC's labels)."""
    names: tuple[str, ...] = ()
    if len(cells) == 1:
        cells = cells[0]
        if isinstance(cells, str):
            try:
                cells = json.loads(cells)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: the choices {cells[:60]!r} are no JSON list.") from error
        if isinstance(cells, list) and all(isinstance(c, dict) and {"text", "label"} <= c.keys() for c in cells):
            cells = {name: [cell[name] for cell in cells] for name in ("label", "text")}
        if isinstance(cells, dict) and {"text", "label"} <= cells.keys():
            names, cells = tuple(text_of(cell, where, "label") for cell in cells["label"]), cells["text"]
        if not isinstance(cells, list | tuple):
            raise ValueError(f"{where}: the choices are {str(cells)[:60]!r}; expected a list.")
    texts = [text_of(cell, where, "a choice") for cell in cells]
    while texts and not texts[-1]:  # a question may have fewer choices than there are columns
        texts.pop()
    if not 2 <= len(texts) <= len(LETTERS):
        raise ValueError(f"{where}: it has {len(texts)} choices; expected 2 to {len(LETTERS)}.")
    if "" in texts:
        raise ValueError(f"{where}: choice {texts.index('') + 1} is empty.")
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise ValueError(f"{where}: the choice {twice[:60]!r} is there twice.")
    return tuple(texts), names


def check_ids(rows: list[Row]) -> None:
    seen: dict[str, str] = {}
    for row in rows:
        if row.id in seen:
            raise ValueError(f"{row.where}: the id {row.id!r} is also that of {seen[row.id]}; ids have to be unique.")
        seen[row.id] = row.where
