"""What a multiple-choice question and a task are."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Integral

LETTERS = "ABCDEFGH"  # as many choices as a question may have
SELECT = "Select one of the choices that answers the following question: "


@dataclass(frozen=True)
class Question:
    """One multiple-choice question.

    Attributes:
        prompt: what the ``letter`` format shows the model; ends where the answer's letter or word follows.
        choices: the answers' texts, which the ``text`` format compares.
        answer: index of the right choice.
        stem: the bare question, which the ``text`` format asks.
        labels: the words between which the ``letter`` format decides.
        id: the source's id.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int
    stem: str
    labels: tuple[str, ...]
    id: str = ""

    def __post_init__(self) -> None:
        if not (isinstance(self.answer, Integral) and 0 <= self.answer < len(self.choices)):
            raise ValueError(
                f"The answer of the question {self.stem[:60]!r} is {self.answer!r}; expected the index of one of its "
                f"{len(self.choices)} choices, from 0."
            )


@dataclass(frozen=True)
class Task:
    """Training, validation and test questions of one data set.

    ``validation`` is for choosing hyperparameters, ``test`` for reporting. ``splits`` says where each comes from. A
    task from a file of your own has ``data``, arguments that load it again, and ``about``, what was read.
    """

    name: str
    train: list[Question]
    validation: list[Question]
    test: list[Question]
    splits: dict[str, str] = field(default_factory=dict)
    data: dict | None = None
    about: str = ""

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={len(getattr(self, name))}" for name in ("train", "validation", "test"))
        return f"Task({self.name!r}, {sizes})"


def letter_prompt(stem: str, choices: Iterable[str]) -> str:
    """The prompt of ARC and OpenBookQA: choices get a capital first letter and a final full stop.

    >>> letter_prompt("Which is wet?", ["water", "sand."])
    'Select one of the choices that answers the following question: Which is wet? Choices: A. Water. B. Sand. Answer:'
    """
    listed = " ".join(f"{letter}. {_sentence(choice)}" for letter, choice in zip(LETTERS, choices))
    return f"{SELECT}{stem} Choices: {listed} Answer:"


def _sentence(text: str) -> str:
    text = text.strip()
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else text + "."
