"""Tasks from tiny folders laid out like the Hub: prompts, labels, splits, and errors that name the problem."""

import json
import os
from pathlib import Path

import datasets
import pytest
import yaml

from ivon_lora_lite import TASKS, load_task
from ivon_lora_lite.language import letter_prompt, name_in_record

REAL_HUB = os.environ.get("IVON_LORA_HUB")  # read once: the fixture below hides it from every test
SELECT = "Select one of the choices that answers the following question: "
FROM_HUB = ("arc_easy", "arc_challenge", "openbookqa", "winogrande_s", "winogrande_m", "boolq")


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory, monkeypatch):
    """No network, no cache of the user's, no hub folder from outside."""

    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.delenv("IVON_LORA_HUB", raising=False)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_hub(hub: Path, repo: str, configs: dict[str, dict[str, list[dict]]]) -> None:
    """Write ``{config: {split: rows}}`` as the Hub stores it: parquet files, listed in the header of README.md."""
    header = []
    for config, splits in configs.items():
        files = []
        for split, rows in splits.items():
            path = f"{config}/{split}-00000-of-00001.parquet"
            (hub / repo / config).mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_list(rows).to_parquet(str(hub / repo / path))
            files.append({"split": split, "path": path})
        header.append({"config_name": config, "data_files": files})
    (hub / repo / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': header})}---\n", "utf8")


def arc_row(number: int = 0, choices: int = 4, labels: str = "ABCDEFGH", answer: str = "A") -> dict:
    text = [f"choice {number}{letter}" for letter in "abcdefgh"[:choices]]
    choices = {"text": text, "label": list(labels[:choices])}
    return {"id": f"id-{number}", "question": f"Question {number}?", "choices": choices, "answerKey": answer}


def openbookqa_row(number: int = 0) -> dict:
    row = arc_row(number)
    return {"question_stem": row.pop("question"), **row}


def winogrande_row(number: int = 0, answer: str = "1") -> dict:
    return {"sentence": f"_ is {number}.", "option1": f"one {number}", "option2": f"two {number}", "answer": answer}


def boolq_row(number: int = 0, answer: object = True) -> dict:
    return {"question": f"is {number} even", "answer": answer, "passage": f"Some text on {number}."}


ROW = {"arc": arc_row, "ope": openbookqa_row, "win": winogrande_row, "boo": boolq_row}


def tiny(hub: Path, name: str, **splits: list[dict]) -> Path:
    """A hub folder with the one data set ``name``; splits not given get two rows each."""
    reported = TASKS[name].test
    rows = {split: [ROW[name[:3]](i) for i in range(2)] for split in ("train", reported)} | splits
    write_hub(hub, TASKS[name].path, {TASKS[name].config or "default": rows})
    return hub


# --- prompts and labels ----------------------------------------------------------------------------------------------


def test_letter_prompt_capitalises_strips_and_ends_every_choice_with_one_full_stop():
    found = letter_prompt("Which is wet?", ["water", " sand. ", "éclairs", "3 stones", "NASA"])
    assert found == f"{SELECT}Which is wet? Choices: A. Water. B. Sand. C. Éclairs. D. 3 stones. E. NASA. Answer:"


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge"])
def test_arc_question(tmp_path, name):
    row = {
        "id": "Mercury_7",
        "question": "What is hot?",
        "choices": {"text": ["ice", "the Sun", "snow.", "old iron"], "label": ["A", "B", "C", "D"]},
        "answerKey": "B",
    }
    (question,) = load_task(name, hub=tiny(tmp_path, name, test=[row])).test
    assert question.prompt == (
        "Select one of the choices that answers the following question: What is hot? "
        "Choices: A. Ice. B. The Sun. C. Snow. D. Old iron. Answer:"
    )
    assert (question.answer, question.stem, question.id) == (1, "What is hot?", "Mercury_7")
    assert question.choices == ("ice", "the Sun", "snow.", "old iron")  # as they stand, for the text format
    assert question.labels == ("A", "B", "C", "D")


def test_openbookqa_question_uses_its_stem_column(tmp_path):
    row = {
        "id": "7-980",
        "question_stem": "The sun is responsible for",
        "choices": {"text": ["puppies", "plants", "prices", "pens"], "label": ["A", "B", "C", "D"]},
        "answerKey": "D",
    }
    (question,) = load_task("openbookqa", hub=tiny(tmp_path, "openbookqa", test=[row])).test
    assert question.prompt == (
        "Select one of the choices that answers the following question: The sun is responsible for "
        "Choices: A. Puppies. B. Plants. C. Prices. D. Pens. Answer:"
    )
    assert (question.answer, question.stem, question.id) == (3, "The sun is responsible for", "7-980")


@pytest.mark.parametrize("name", ["winogrande_s", "winogrande_m"])
def test_winogrande_question_has_no_full_stop_after_b_and_keeps_its_options_as_they_are(tmp_path, name):
    row = {"sentence": "The cup fell off the table as _ was wet.", "option1": "cup", "option2": "table", "answer": "2"}
    (question,) = load_task(name, hub=tiny(tmp_path, name, validation=[row])).test
    assert question.prompt == (
        "Select one of the choices that answers the following question: The cup fell off the table as _ was wet. "
        "Choices: A. cup. B table. Answer:"
    )
    assert (question.choices, question.answer, question.labels) == (("cup", "table"), 1, ("A", "B"))
    assert question.stem == "The cup fell off the table as _ was wet."


@pytest.mark.parametrize(("truth", "index"), [(False, 0), (True, 1)])
def test_boolq_question_decides_between_the_words_false_and_true(tmp_path, truth, index):
    row = {"question": "is water wet", "answer": truth, "passage": "Water is a liquid."}
    (question,) = load_task("boolq", hub=tiny(tmp_path, "boolq", validation=[row])).test
    assert question.prompt == ("Answer the question with only True or False: is water wet Context: Water is a liquid.")
    assert question.labels == question.choices == ("False", "True")
    assert question.answer == index
    assert question.stem == "Water is a liquid.\nis water wet?"


@pytest.mark.parametrize(("key", "index"), [("1", 0), ("3", 2), ("4", 3)])
def test_labels_one_to_four_are_mapped_to_letters(tmp_path, key, index):
    rows = [arc_row(0, labels="1234", answer=key), arc_row(1)]
    question = load_task("arc_easy", hub=tiny(tmp_path, "arc_easy", test=rows)).test[0]
    assert (question.answer, question.labels) == (index, ("A", "B", "C", "D"))
    assert "Choices: A. Choice 0a. B. Choice 0b." in question.prompt


@pytest.mark.parametrize("name", ["arc_easy", "openbookqa"])
def test_questions_with_three_or_five_choices_are_left_out(tmp_path, name):
    rows = [arc_row(0), arc_row(1, choices=3), arc_row(2, choices=5), arc_row(3, labels="1234", answer="2")]
    if name == "openbookqa":
        rows = [{"question_stem": row.pop("question"), **row} for row in rows]
    assert [q.id for q in load_task(name, hub=tiny(tmp_path, name, test=rows)).test] == ["id-0", "id-3"]


# --- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["arc_easy", "openbookqa"])
def test_the_validation_split_is_used_where_there_is_one(tmp_path, name):
    row = ROW[name[:3]]
    splits = {"train": range(20), "validation": range(20, 25), "test": range(30, 33)}
    hub = tiny(tmp_path, name, **{split: [row(i) for i in numbers] for split, numbers in splits.items()})
    task = load_task(name, hub=hub)
    for split, numbers in splits.items():
        assert [q.id for q in getattr(task, split)] == [f"id-{i}" for i in numbers], split
    assert task.splits == {"train": "train", "validation": "validation", "test": "test"}
    assert repr(task) == f"Task('{name}', train=20, validation=5, test=3)"


def test_without_a_validation_split_every_tenth_training_question_is_held_out(tmp_path):
    hub = tiny(tmp_path, "arc_easy", train=[arc_row(i) for i in range(25)], test=[arc_row(i) for i in range(30, 33)])
    task = load_task("arc_easy", hub=hub)
    assert [q.id for q in task.validation] == ["id-0", "id-10", "id-20"]
    assert [q.id for q in task.train] == [f"id-{i}" for i in range(25) if i % 10]
    assert [q.id for q in task.test] == ["id-30", "id-31", "id-32"]
    assert task.splits["validation"] == "every 10th of train"
    assert "without" in task.splits["train"]


def test_held_out_questions_are_counted_after_leaving_out_those_without_four_choices(tmp_path):
    rows = [arc_row(i, choices=3 if i < 5 else 4) for i in range(25)]  # 20 usable: the first one is id-5
    task = load_task("arc_easy", hub=tiny(tmp_path, "arc_easy", train=rows))
    assert [q.id for q in task.validation] == ["id-5", "id-15"]
    assert len(task.train) == 18


@pytest.mark.parametrize("name", ["winogrande_s", "boolq"])
def test_winogrande_and_boolq_report_on_the_validation_split_and_never_read_the_test_split(tmp_path, name):
    row = ROW[name[:3]]
    unlabelled = {**row(99), "answer": "" if name == "winogrande_s" else None}
    splits = {"train": [row(i) for i in range(20)], "validation": [row(50), row(51)], "test": [unlabelled]}
    task = load_task(name, hub=tiny(tmp_path, name, **splits))
    assert ["50" in q.prompt or "51" in q.prompt for q in task.test] == [True, True]
    assert task.splits["test"] == "validation"
    # so the validation questions must come from train, and be gone from there
    assert (len(task.train), len(task.validation)) == (18, 2)
    assert not {q.prompt for q in task.train} & {q.prompt for q in task.validation}
    assert not {q.prompt for q in task.test} & {q.prompt for q in task.train + task.validation}


def test_each_name_loads_its_own_configuration(tmp_path):
    for repo, row, names in (
        ("allenai/ai2_arc", arc_row, {"arc_easy": "ARC-Easy", "arc_challenge": "ARC-Challenge"}),
        ("allenai/winogrande", winogrande_row, {"winogrande_s": "winogrande_s", "winogrande_m": "winogrande_m"}),
    ):
        splits = [
            {split: [row(start + i) for i in range(2)] for split in ("train", "validation", "test")}
            for start in (10, 20)
        ]
        write_hub(tmp_path, repo, dict(zip(names.values(), splits, strict=True)))
        for name, start in zip(names, ("1", "2"), strict=True):
            assert all(f"{start}0" in q.prompt or f"{start}1" in q.prompt for q in load_task(name, hub=tmp_path).test)


def test_rows_edited_in_the_folder_are_seen(tmp_path):
    hub = tiny(tmp_path, "arc_easy")
    assert load_task("arc_easy", hub=hub).test[0].choices[0] == "choice 0a"
    file = hub / "allenai/ai2_arc/ARC-Easy/test-00000-of-00001.parquet"
    rows = datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache")).to_list()
    rows[0]["choices"]["text"][0] = "another"
    datasets.Dataset.from_list(rows).to_parquet(str(file))  # the README beside it stays as it was
    assert load_task("arc_easy", hub=hub).test[0].choices[0] == "another"


def test_everyday_comes_with_the_repository_and_needs_no_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("IVON_LORA_HUB", str(tmp_path))  # empty, and not asked
    task = load_task()
    assert task.name == "everyday@2"
    folder = Path(__file__).parents[2] / "data" / "everyday"
    for split in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text("utf8").splitlines()]
        questions = getattr(task, split)
        assert [q.id for q in questions] == [row["id"] for row in rows]
        assert ["ABCD"[q.answer] for q in questions] == [row["answerKey"] for row in rows]
        assert [list(q.choices) for q in questions] == [row["choices"]["text"] for row in rows]


def test_a_former_edition_is_loaded_by_its_name():
    first, second = load_task("everyday@1"), load_task("everyday@2")
    assert first.name == "everyday@1" and len(first.test) == 456 and second == load_task("everyday")
    assert {q.id for q in first.test} < {q.id for q in second.test} and first.test != second.test


@pytest.mark.parametrize("name", ["everyday@3", "everyday@0", "everyday@first", "arc_easy@1"])
def test_an_unknown_edition_is_refused(name):
    with pytest.raises(ValueError, match="There is no edition .* Known editions: (1, 2|none)"):
        load_task(name)


def test_a_result_that_names_no_edition_is_of_the_first():
    assert [name_in_record(n) for n in ("everyday", "everyday@2", "arc_easy")] == [
        "everyday@1",
        "everyday@2",
        "arc_easy",
    ]


# --- where the hub is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, Path])
def test_the_variable_names_the_hub(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("IVON_LORA_HUB", str(tiny(tmp_path, "boolq")))
    assert len(load_task("boolq").test) == 2
    assert load_task("boolq", hub=kind(tmp_path)) == load_task("boolq")


def test_the_argument_wins_over_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("IVON_LORA_HUB", str(tiny(tmp_path / "a", "boolq")))
    other = tiny(tmp_path / "b", "boolq", validation=[boolq_row(i) for i in range(5)])
    assert len(load_task("boolq", hub=other).test) == 5


def test_a_tilde_in_the_variable_means_the_home_folder(tmp_path, monkeypatch):
    tiny(tmp_path / "hub", "boolq")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("IVON_LORA_HUB", "~/hub")
    assert len(load_task("boolq").test) == 2


# --- errors: one line that names the problem -------------------------------------------------------------------------


def message(error: type[Exception], name: str, hub: Path | None = None) -> str:
    """The message of the ``error`` that loading raises, which must fit on one line."""
    with pytest.raises(error) as caught:
        load_task(name, hub=hub)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_an_unknown_task_lists_the_known_ones():
    found = message(ValueError, "arc-easy")
    assert "'arc-easy'" in found
    assert all(name in found for name in (*FROM_HUB, "everyday"))


@pytest.mark.parametrize("name", FROM_HUB)
def test_a_folder_without_the_data_set_is_named_with_what_it_lacks(tmp_path, name):
    found = message(FileNotFoundError, name, tmp_path)
    assert name in found and str(tmp_path) in found and TASKS[name].path in found


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    assert str(tmp_path / "nowhere") in message(FileNotFoundError, "boolq", tmp_path / "nowhere")


def test_a_missing_configuration_is_named(tmp_path):
    assert "ARC-Challenge" in message(FileNotFoundError, "arc_challenge", tiny(tmp_path, "arc_easy"))


def test_without_hub_and_network_the_error_says_what_to_do():
    found = message(FileNotFoundError, "boolq")
    assert "google/boolq" in found and "IVON_LORA_HUB" in found


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("arc_easy", "answerKey"),
        ("arc_easy", "id"),
        ("openbookqa", "question_stem"),
        ("winogrande_s", "option2"),
        ("boolq", "passage"),
    ],
)
def test_a_missing_column_is_named_with_the_task_and_split(tmp_path, name, column):
    row = ROW[name[:3]]()
    del row[column]
    found = message(ValueError, name, tiny(tmp_path, name, train=[row], **{TASKS[name].test: [row]}))
    # both splits lack it, so either may be the one that is named
    assert f"{name}, train row 0" in found or f"{name}, {TASKS[name].test} row 0" in found
    assert f"column '{column}' is missing" in found


@pytest.mark.parametrize(
    ("name", "bad", "shown"),
    [
        ("arc_easy", arc_row(2, answer="E"), "'E'"),
        ("arc_easy", arc_row(2, answer="1"), "'1'"),
        ("arc_challenge", arc_row(2, answer=""), "''"),
        ("winogrande_s", winogrande_row(2, answer="3"), "'3'"),
        ("winogrande_m", winogrande_row(2, answer=""), "''"),
    ],
)
def test_an_answer_outside_the_labels_is_named_with_its_row(tmp_path, name, bad, shown):
    rows = [ROW[name[:3]](i) for i in range(2)]
    found = message(ValueError, name, tiny(tmp_path, name, train=[*rows, bad]))
    assert f"{name}, train row 2" in found
    assert f"answer {shown}" in found or f"answer is {shown}" in found


@pytest.mark.parametrize("answer", ["no", 1])  # bool("no") would be true; 1 might be the first or the second choice
def test_boolq_answers_that_are_not_booleans_are_refused(tmp_path, answer):
    rows = [boolq_row(i, answer=answer) for i in range(2)]
    found = message(ValueError, "boolq", tiny(tmp_path, "boolq", train=rows, validation=rows))
    assert "row 0" in found and f"the answer is {answer!r}" in found


def test_choices_and_labels_of_different_number_are_refused(tmp_path):
    row = arc_row(0)
    row["choices"]["label"] = ["A", "B", "C"]
    found = message(ValueError, "arc_easy", tiny(tmp_path, "arc_easy", test=[row]))
    assert "arc_easy, test row 0" in found and "4 choices have 3 labels" in found


def test_a_question_with_a_single_choice_is_refused(tmp_path):
    found = message(ValueError, "arc_easy", tiny(tmp_path, "arc_easy", test=[arc_row(0), arc_row(1, choices=1)]))
    assert "arc_easy, test row 1" in found and "at least two choices" in found and "has 1" in found


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("arc_easy", "question"),
        ("arc_easy", "choices"),
        ("arc_easy", "answerKey"),
        ("openbookqa", "question_stem"),
        ("winogrande_s", "sentence"),
        ("winogrande_s", "option2"),
        ("boolq", "passage"),
        ("boolq", "answer"),
    ],
)
def test_a_row_with_an_empty_column_is_refused(tmp_path, name, column):
    # otherwise the model would be asked about the word "None"
    row = ROW[name[:3]]
    rows = [row(0), {**row(1), column: None}]
    assert f"{name}, train row 1" in message(ValueError, name, tiny(tmp_path, name, train=rows))


def test_a_choice_without_text_is_refused(tmp_path):
    row = arc_row(1)
    row["choices"]["text"][2] = None
    hub = tiny(tmp_path, "arc_easy", train=[arc_row(0), row])
    assert "arc_easy, train row 1" in message(ValueError, "arc_easy", hub)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_without_usable_questions_is_named(tmp_path, split):
    splits = {"train": [arc_row(i) for i in range(20)], "validation": [arc_row(30)], "test": [arc_row(31)]}
    splits[split] = [arc_row(i, choices=3) for i in range(20)]
    found = message(ValueError, "arc_easy", tiny(tmp_path, "arc_easy", **splits))
    assert "arc_easy" in found and f"the {split} split" in found


def test_one_training_question_is_not_enough_to_hold_one_out(tmp_path):
    hub = tiny(tmp_path, "arc_easy", train=[arc_row()])
    assert "the train split" in message(ValueError, "arc_easy", hub)


@pytest.mark.parametrize(("name", "needed"), [("arc_easy", "test"), ("boolq", "validation")])
def test_a_data_set_without_the_reported_split_is_refused(tmp_path, name, needed):
    write_hub(tmp_path, TASKS[name].path, {TASKS[name].config or "default": {"train": [ROW[name[:3]]()]}})
    assert f"'{needed}' split" in message(ValueError, name, tmp_path)


def test_a_package_without_its_embedded_data_set_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("ivon_lora_lite.files.__file__", str(tmp_path / "package" / "files.py"))
    assert "everyday" in message(FileNotFoundError, "everyday")


# --- the real data sets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FROM_HUB)
def test_real_data_sets_load(name, monkeypatch):
    if not REAL_HUB:
        pytest.skip("IVON_LORA_HUB is not set to a folder with the six data sets")
    if not (Path(REAL_HUB).expanduser() / TASKS[name].path).is_dir():
        pytest.skip(f"IVON_LORA_HUB has no {TASKS[name].path}")
    monkeypatch.setenv("IVON_LORA_HUB", REAL_HUB)
    task = load_task(name)
    letters = 2 if name.startswith(("winogrande", "boolq")) else 4
    for questions in (task.train, task.validation, task.test):
        assert questions
        assert {len(q.choices) for q in questions} == {len(q.labels) for q in questions} == {letters}
        assert all(q.stem and q.prompt and all(q.choices) for q in questions)
    assert {q.answer for q in task.train + task.test} == set(range(letters))
    if "every 10th" in task.splits["validation"]:
        assert len(task.validation) == -(-(len(task.train) + len(task.validation)) // 10)
