"""The known tasks: where each lives, and how its rows become questions.

A new task is one entry of ``TASKS``. Where its data set has a split called "validation" that results are not reported
on, hyperparameters are chosen on that; else every tenth training question is held out.

Prompts of the paper's six are those of Laplace-LoRA (Yang et al. 2024), which Cong et al. (2024) use too; GLUE's were
written for this package: a language model answers them in words, a sequence classifier by its head (format ``class``).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from .questions import SELECT, Question, letter_prompt


@dataclass(frozen=True)
class Source:
    """Where a task lives and how its rows become questions."""

    path: str  # Hub id, or "" for the embedded one
    config: str | None
    columns: tuple[str, ...]
    convert: Callable[[dict], Question | None]
    test: str  # the split with public labels that results are reported on
    about: str
    train: str = "train"  # the split to train on; "" if the task is for evaluation only
    edition: int = 0  # the newest, of a data set whose questions have changed


def source_of(name: str) -> Source:
    """Where a task lives, by its name without an edition.

    Raises:
        ValueError: there is no such task.
    """
    area, _, subject = name.partition("/")
    if area == "mmlu" and subject:
        about = f"exam questions of {subject.replace('_', ' ')}, for evaluation only"
        return replace(TASKS["mmlu"], config=subject, train="", about=about)
    if name not in TASKS:
        raise ValueError(
            f"There is no task {name!r}, and no such file or folder. Known tasks: {', '.join(TASKS)}, mmlu/SUBJECT. Of "
            "a data set of the Hub name the column of the questions too."
        )
    return TASKS[name]


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
    if len(texts) < 2:
        raise ValueError(f"a question needs at least two choices, this one has {len(texts)}")
    if len(texts) != 4:  # the paper keeps questions with four
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
    if len(choices) < 2:
        raise ValueError(f"a question needs at least two choices, this one has {len(choices)}")
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

OWN_FORM = ("boolq", "winogrande", "glue/")  # beginnings of tasks whose prompt is not `letter_prompt`'s
_ARC = ("id", "question", "choices", "answerKey")
TASKS: dict[str, Source] = {
    "everyday": Source("", None, _ARC, _arc, "test", "everyday knowledge, embedded in this package", edition=2),
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
