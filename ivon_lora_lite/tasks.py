"""Multiple-choice tasks: the paper's six data sets, the embedded one, MMLU and GLUE, as plain questions.

Prompts of the six are those of Laplace-LoRA (Yang et al. 2024), which Cong et al. (2024) use too; GLUE's are questions
of ours, which a language model answers in words, and a sequence classifier by its head (the answer format ``class``).
Data sets come from the Hugging Face Hub, or from a local folder laid out like it (``hub=DIR`` or the variable
``IVON_LORA_HUB``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["TASKS", "Question", "Task", "load_task"]

SELECT = "Select one of the choices that answers the following question: "
HELD_OUT = 10  # where the source has no validation split, every 10th training question is held out


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


@dataclass(frozen=True)
class Task:
    """Training, validation and test questions of one data set.

    ``validation`` is for choosing hyperparameters, ``test`` for reporting. ``splits`` says where each comes from.
    """

    name: str
    train: list[Question]
    validation: list[Question]
    test: list[Question]
    splits: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}={len(getattr(self, name))}" for name in ("train", "validation", "test"))
        return f"Task({self.name!r}, {sizes})"


@dataclass(frozen=True)
class Source:
    """Where a task lives and how its rows become questions."""

    path: str  # Hub id, or "" for the embedded one
    config: str | None
    columns: tuple[str, ...]
    convert: Callable[[dict], Question | None]
    test: str  # the split with public labels that results are reported on
    about: str
    train: str = "train"  # the split to train on


def letter_prompt(stem: str, choices: Iterable[str]) -> str:
    """The prompt of ARC and OpenBookQA: choices get a capital first letter and a final full stop.

    >>> letter_prompt("Which is wet?", ["water", "sand."])
    'Select one of the choices that answers the following question: Which is wet? Choices: A. Water. B. Sand. Answer:'
    """
    listed = " ".join(f"{letter}. {_sentence(choice)}" for letter, choice in zip("ABCDEFGH", choices))
    return f"{SELECT}{stem} Choices: {listed} Answer:"


def load_task(name: str = "everyday", *, hub: str | os.PathLike | None = None) -> Task:
    """Load a task by name.

    Args:
        name: one of ``TASKS``: everyday (embedded), arc_easy, arc_challenge, openbookqa, winogrande_s, winogrande_m,
            boolq, mmlu, and GLUE's classification tasks as glue/rte, glue/mnli ….
        hub: a folder laid out like the Hub (``DIR/allenai/ai2_arc`` …). Default: the variable ``IVON_LORA_HUB``, else
            the Hub.

    Returns:
        A :class:`Task`. Questions that do not have four choices are left out of ARC and OpenBookQA, as in the paper.

    Raises:
        ValueError: unknown name; missing columns, an answer outside the choices, a single choice, an empty split.
        FileNotFoundError: neither the Hub nor the folder has the data set.
    """
    if name not in TASKS:
        raise ValueError(f"There is no task {name!r}. Known tasks: {', '.join(TASKS)}.")
    source = TASKS[name]
    hub = hub or os.environ.get("IVON_LORA_HUB")
    rows = _embedded(name) if not source.path else _downloaded(name, source, hub)
    held_out = "" if "validation" in rows and source.test != "validation" else f"every {HELD_OUT}th of train"
    splits = {"train": source.train, "validation": held_out or "validation", "test": source.test}
    for split in (source.train, source.test):
        if split not in rows:
            raise ValueError(f"{name}: the data set has no {split!r} split; it has {', '.join(rows) or 'none'}.")
    parsed = {
        split: _questions(name, split, rows[split], source) for split in dict.fromkeys((source.train, source.test))
    }
    if held_out:
        train = [q for i, q in enumerate(parsed[source.train]) if i % HELD_OUT]
        validation = parsed[source.train][::HELD_OUT]
        splits["train"] = f"{source.train} without {held_out}"
    else:
        train, validation = parsed[source.train], _questions(name, "validation", rows["validation"], source)
    task = Task(name, train, validation, parsed[source.test], splits)
    for split in ("train", "validation", "test"):
        if not getattr(task, split):
            raise ValueError(f"{name}: no usable question is left in the {split} split.")
    return task


def _questions(name: str, split: str, rows: Iterable[dict], source: Source) -> list[Question]:
    out = []
    for number, row in enumerate(rows):
        where = f"{name}, {split} row {number}"
        missing = [column for column in source.columns if column not in row]
        if missing:
            raise ValueError(f"{where}: column {missing[0]!r} is missing; the row has {', '.join(sorted(row))}.")
        empty = [column for column in source.columns if row[column] is None]
        if empty:
            raise ValueError(f"{where}: column {empty[0]!r} is empty.")
        try:
            question = source.convert(row)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{where} does not fit the format of {source.path or name}: {error}") from error
        if question is None:
            continue
        if len(question.choices) < 2:
            raise ValueError(f"{where}: a question needs at least two choices, this one has {len(question.choices)}.")
        out.append(question)
    return out


def _arc(row: dict) -> Question | None:
    return _lettered(row["question"], row["choices"], row["answerKey"], row["id"])


def _openbookqa(row: dict) -> Question | None:
    return _lettered(row["question_stem"], row["choices"], row["answerKey"], row["id"])


def _lettered(stem: str, choices: dict, key: str, id: str) -> Question | None:
    texts, labels = list(choices["text"]), [str(label) for label in choices["label"]]
    if len(texts) != len(labels):
        raise ValueError(f"{len(texts)} choices have {len(labels)} labels")
    if str(key) not in labels:
        raise ValueError(f"the answer {key!r} is not among the labels {', '.join(labels)}")
    if len(texts) == 1:
        return Question("", tuple(texts), 0, stem, ("A",), id)  # refused by the caller, which knows the row
    if len(texts) != 4:
        return None
    return Question(letter_prompt(stem, texts), tuple(texts), labels.index(str(key)), stem, tuple("ABCD"), id)


def _winogrande(row: dict) -> Question:
    if str(row["answer"]) not in ("1", "2"):
        raise ValueError(f"the answer is {row['answer']!r}, expected '1' or '2'")
    first, second = row["option1"], row["option2"]
    # the template has a full stop after A and none after B
    prompt = f"{SELECT}{row['sentence']} Choices: A. {first}. B {second}. Answer:"
    return Question(prompt, (first, second), int(row["answer"]) - 1, row["sentence"], ("A", "B"))


def _boolq(row: dict) -> Question:
    if not isinstance(row["answer"], bool):
        raise ValueError(f"the answer is {row['answer']!r}, expected true or false")
    prompt = f"Answer the question with only True or False: {row['question']} Context: {row['passage']}"
    words = ("False", "True")
    return Question(prompt, words, int(row["answer"]), f"{row['passage']}\n{row['question']}?", words)


def _mmlu(row: dict) -> Question:
    choices, answer = tuple(row["choices"]), row["answer"]
    _check_label(answer, len(choices))
    return Question(letter_prompt(row["question"], choices), choices, answer, row["question"], tuple("ABCD"))


def _glue(question: str, columns: tuple[str, ...], words: tuple[str, ...]) -> Callable[[dict], Question]:
    """How rows of a GLUE task become a question with one word per label."""

    def convert(row: dict) -> Question:
        _check_label(row["label"], len(words))
        stem = question.format(*(row[column].strip() for column in columns))
        return Question(f"{stem} Answer:", words, row["label"], stem, words, f"{row['idx']}")

    return convert


def _check_label(label: object, count: int) -> None:
    if not (isinstance(label, int) and 0 <= label < count):  # -1 marks a hidden label
        raise ValueError(f"the label is {label!r}, expected a number from 0 to {count - 1}")


# the words stand in the order of the labels; STS-B is left out because it is a regression
_GLUE = {
    "cola": ("Is this an acceptable English sentence? {}", ("sentence",), ("no", "yes")),
    "sst2": ("Is this review negative or positive? {}", ("sentence",), ("negative", "positive")),
    "mrpc": ("Do these sentences say the same? {} {}", ("sentence1", "sentence2"), ("no", "yes")),
    "qqp": ("Do these questions ask the same? {} {}", ("question1", "question2"), ("no", "yes")),
    "mnli": ("{} Is it true that: {}", ("premise", "hypothesis"), ("yes", "maybe", "no")),
    "qnli": ("Does the sentence answer the question? {} {}", ("question", "sentence"), ("yes", "no")),
    "rte": ("{} Does it follow that: {}", ("sentence1", "sentence2"), ("yes", "no")),
    "wnli": ("{} Does it follow that: {}", ("sentence1", "sentence2"), ("no", "yes")),
}

_ARC = ("id", "question", "choices", "answerKey")
TASKS: dict[str, Source] = {
    "everyday": Source("", None, _ARC, _arc, "test", "everyday knowledge, embedded in this package"),
    "arc_easy": Source("allenai/ai2_arc", "ARC-Easy", _ARC, _arc, "test", "easy science exam questions"),
    "arc_challenge": Source("allenai/ai2_arc", "ARC-Challenge", _ARC, _arc, "test", "hard science exam questions"),
    "openbookqa": Source(
        "allenai/openbookqa",
        "main",
        ("id", "question_stem", "choices", "answerKey"),
        _openbookqa,
        "test",
        "elementary science with one open book",
    ),
    **{
        f"winogrande_{size}": Source(
            "allenai/winogrande",
            f"winogrande_{size}",
            ("sentence", "option1", "option2", "answer"),
            _winogrande,
            "validation",  # its test split has no labels
            f"pronoun resolution, {words} training set",
        )
        for size, words in (("s", "small"), ("m", "medium"))
    },
    "boolq": Source(
        "google/boolq", None, ("question", "passage", "answer"), _boolq, "validation", "yes/no questions on a passage"
    ),
    "mmlu": Source(
        "cais/mmlu",
        "all",
        ("question", "choices", "answer"),
        _mmlu,
        "test",
        "exam questions of 57 subjects",
        train="auxiliary_train",
    ),
    **{
        f"glue/{name}": Source(
            "nyu-mll/glue",
            name,
            (*columns, "label", "idx"),
            _glue(question, columns, words),
            "validation_matched" if name == "mnli" else "validation",  # its test split has no labels
            f"{name.upper()} of GLUE, as a question",
        )
        for name, (question, columns, words) in _GLUE.items()
    },
}


def _embedded(name: str) -> dict[str, list[dict]]:
    here = Path(__file__).parent
    for folder in (here / "data" / name, here.parent / "data" / name):
        if folder.is_dir():
            return {
                split: [json.loads(line) for line in (folder / f"{split}.jsonl").read_text("utf8").splitlines()]
                for split in ("train", "validation", "test")
            }
    raise FileNotFoundError(f"The embedded data set {name!r} is missing: reinstall ivon-lora-lite.")


def _downloaded(name: str, source: Source, hub: str | os.PathLike | None) -> dict[str, Iterable[dict]]:
    import datasets

    path = source.path
    if hub:
        folder = Path(hub).expanduser() / source.path
        if not folder.is_dir():
            raise FileNotFoundError(f"{name}: the folder {hub} has no {source.path}. Is it laid out like the Hub?")
        path = str(folder)
    datasets.utils.logging.disable_progress_bar()
    try:
        loaded = datasets.load_dataset(path, source.config)
    except Exception as error:  # datasets raises a dozen types for the same three causes
        cause = error
        while cause.__cause__ is not None:  # datasets wraps what went wrong
            cause = cause.__cause__
        raise FileNotFoundError(
            f"{name}: could not load {source.path} from {'the folder ' + str(hub) if hub else 'the Hugging Face Hub'} "
            f"({_first_line(cause)}). Check the connection, or name a folder laid out like the Hub with --hub DIR or "
            "the variable IVON_LORA_HUB."
        ) from error
    return {split: loaded[split] for split in loaded}


def _sentence(text: str) -> str:
    text = text.strip()
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else text + "."


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
