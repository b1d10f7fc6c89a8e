"""MMLU and GLUE from rows of ours in the Hub's schema, and one of them through finetune on a tiny model."""

import datasets
import pytest
import torch
import yaml

from ivon_lora_lite import TASKS, finetune, load_task, predict
from ivon_lora_lite.gates import GateSettings

TEXT, PAIR = ("sentence",), ("sentence1", "sentence2")
# columns, and the names of the labels in their order, as the Hub has them
SCHEMA = {
    "cola": (TEXT, ("unacceptable", "acceptable")),
    "sst2": (TEXT, ("negative", "positive")),
    "mrpc": (PAIR, ("not_equivalent", "equivalent")),
    "qqp": (("question1", "question2"), ("not_duplicate", "duplicate")),
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "qnli": (("question", "sentence"), ("entailment", "not_entailment")),
    "rte": (PAIR, ("entailment", "not_entailment")),
    "wnli": (PAIR, ("not_entailment", "entailment")),
}
YES = {"acceptable", "equivalent", "duplicate", "entailment"}


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory, monkeypatch):
    monkeypatch.delenv("IVON_LORA_HUB", raising=False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def write(hub, repo, config, features, splits):
    """One configuration as the Hub stores it: parquet files with typed columns, listed in the header of README.md."""
    files = []
    for split, rows in splits.items():
        path = f"{config}/{split}-00000-of-00001.parquet"
        (hub / repo / config).mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows, features=datasets.Features(features)).to_parquet(str(hub / repo / path))
        files.append({"split": split, "path": path})
    header = yaml.safe_dump({"configs": [{"config_name": config, "data_files": files}]})
    (hub / repo / "README.md").write_text(f"---\n{header}---\n", "utf8")
    return hub


def glue(hub, name, count=20, **changes):
    columns, labels = SCHEMA[name]
    text = {column: datasets.Value("string") for column in columns}
    features = {**text, "label": datasets.ClassLabel(names=list(labels)), "idx": datasets.Value("int32")}

    def rows(split, number, label=None):
        texts = [{c: f"Text {i} of {split}, {c}. " for c in columns} for i in range(number)]
        return [t | {"label": i % len(labels) if label is None else label, "idx": i} for i, t in enumerate(texts)]

    reported = TASKS[f"glue/{name}"].test
    splits = {"train": rows("train", count), reported: rows("validation", 6), "test": rows("test", 3, -1)}
    if name == "mnli":
        splits |= {"validation_mismatched": rows("mismatched", 4), "test_matched": splits.pop("test")}
    return write(hub, "nyu-mll/glue", name, features, splits | changes)


@pytest.mark.parametrize("name", SCHEMA)
def test_glue_rows_become_questions_with_the_word_of_their_label(tmp_path, name):
    task = load_task(f"glue/{name}", hub=glue(tmp_path, name))
    columns, labels = SCHEMA[name]
    question = task.test[1]  # label 1
    for column in columns:
        assert f"Text 1 of validation, {column}." in question.stem
    assert question.prompt == f"{question.stem} Answer:" and question.labels == question.choices
    word, meaning = question.choices[question.answer], labels[1]
    if name == "sst2":
        assert word == meaning
    elif name == "mnli":
        assert question.choices == ("yes", "maybe", "no")  # entailment, neutral, contradiction
    else:
        assert word == ("yes" if meaning in YES else "no")
    assert len(question.choices) == len(labels) and question.id == "1"


@pytest.mark.parametrize("name", ["rte", "mnli"])
def test_glue_reports_on_the_labelled_validation_split(tmp_path, name):
    task = load_task(f"glue/{name}", hub=glue(tmp_path, name))
    assert len(task.test) == 6 and all("of validation" in q.stem for q in task.test)
    assert (len(task.train), len(task.validation)) == (18, 2)
    assert task.splits["test"] == ("validation_matched" if name == "mnli" else "validation")


def test_a_hidden_label_is_refused(tmp_path):
    columns, labels = SCHEMA["rte"]
    rows = [{"sentence1": "a", "sentence2": "b", "label": -1, "idx": 7}]
    with pytest.raises(ValueError, match="glue/rte, validation row 0 .* label is -1"):
        load_task("glue/rte", hub=glue(tmp_path, "rte", validation=rows))


MMLU = {
    "question": datasets.Value("string"),
    "subject": datasets.Value("string"),
    "choices": datasets.Sequence(datasets.Value("string")),
    "answer": datasets.ClassLabel(names=list("ABCD")),
}


def mmlu_rows(split, count, choices=4):
    texts = [[f"{split} {i}{letter}" for letter in "abcde"[:choices]] for i in range(count)]
    return [
        {"question": f"{split}: what is {i}?", "subject": "logic", "choices": text, "answer": i % 4}
        for i, text in enumerate(texts)
    ]


def test_a_subject_of_mmlu_is_for_evaluation_only(tmp_path, tiny_model):
    splits = {split: mmlu_rows(split, count) for split, count in {"dev": 2, "validation": 3, "test": 5}.items()}
    task = load_task("mmlu/college_chemistry", hub=write(tmp_path, "cais/mmlu", "college_chemistry", MMLU, splits))
    assert (len(task.train), len(task.validation), len(task.test)) == (0, 3, 5)
    assert task.name == "mmlu/college_chemistry" and task.splits["train"] == "none"
    with pytest.raises(ValueError, match="no training questions"):
        finetune(tiny_model(), task, steps=1, progress=False)
    with pytest.raises(ValueError, match="no task 'mmlu2/x'"):
        load_task("mmlu2/x")


def test_mmlu_trains_on_its_auxiliary_split_and_reports_on_test(tmp_path):
    sizes = {"auxiliary_train": 9, "dev": 2, "validation": 3, "test": 5}
    splits = {split: mmlu_rows(split, count) for split, count in sizes.items()}
    task = load_task("mmlu", hub=write(tmp_path, "cais/mmlu", "all", MMLU, splits))
    assert (len(task.train), len(task.validation), len(task.test)) == (9, 3, 5)
    assert task.splits == {"train": "auxiliary_train", "validation": "validation", "test": "test"}
    question = task.test[2]
    assert question.prompt == (
        "Select one of the choices that answers the following question: test: what is 2? "
        "Choices: A. Test 2a. B. Test 2b. C. Test 2c. D. Test 2d. Answer:"
    )
    assert (question.answer, question.labels, question.stem) == (2, tuple("ABCD"), "test: what is 2?")
    assert task.train[0].stem.startswith("auxiliary_train")


@pytest.mark.parametrize("format", ["letter", "text"])
def test_a_gated_run_on_glue(tmp_path, tiny_model, format):
    task = load_task("glue/rte", hub=glue(tmp_path, "rte"))
    run = finetune(
        tiny_model("qwen2"), task, optimizer="adamw", steps=4, batch_size=2, format=format, progress=False,
        gates=GateSettings(prior=1.0),
    )  # fmt: skip
    logits = predict(run, task.test).logits
    assert logits.shape == (1, 6, 2) and torch.isfinite(logits).all()
    assert run.config["task"] == "glue/rte" and run.gates is not None
