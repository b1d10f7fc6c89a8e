"""Questions of your own: what is read, how it is divided, and one sentence with the row for what is wrong."""

from __future__ import annotations

import json
import math

import datasets
import pytest

from ivon_lora_lite import Predictions, finetune, load_task, predict, suggest_hyperparameters
from ivon_lora_lite.cli import main
from ivon_lora_lite.language import read_stems

PARTS = ("train", "validation", "test")


def csv(path, rows, header="question,a,b,c,answer"):
    path.write_text("\n".join([header, *rows]) + "\n", "utf8")
    return path


def quiz(path, count=10, **changes):
    rows = [f"What is {i}?,red {i},blue {i},green {i},{'ABC'[i % 3]}" for i in range(count)]
    for number, row in changes.items():
        rows[int(number[3:]) - 1] = row  # row1, row2 …
    return csv(path, rows)


def every(task):
    return [q for part in PARTS for q in getattr(task, part)]


def test_a_csv_with_a_column_a_choice_needs_no_options(tmp_path):
    task = load_task(quiz(tmp_path / "quiz.csv"))
    assert [len(getattr(task, part)) for part in PARTS] == [6, 2, 2]
    found = {q.stem: q for q in every(task)}
    assert len(found) == 10 and len({q.id for q in every(task)}) == 10
    for i in range(10):
        q = found[f"What is {i}?"]
        assert (
            q.choices == (f"red {i}", f"blue {i}", f"green {i}") and q.answer == i % 3 and q.labels == ("A", "B", "C")
        )
        assert q.prompt.endswith(f"Choices: A. Red {i}. B. Blue {i}. C. Green {i}. Answer:")
    assert "answers are letters" in task.about and "columns: question, answer and a, b, c" in task.about
    assert "6 train, 2 validation, 2 test (60% / 20% / 20% by a hash of the question)" in task.about


def jsonl(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), "utf8")
    return path


def test_json_lines_with_a_list_of_choices(tmp_path):
    rows = [{"question": f"q {i}", "choices": [f"x{i}", f"y{i}"][: 2 + i % 2], "answer": i % 2} for i in range(6)]
    task = load_task(jsonl(tmp_path / "quiz.jsonl", rows))
    assert {q.stem: q.answer for q in every(task)} == {f"q {i}": i % 2 for i in range(6)}
    assert "indices from 0" in task.about
    (tmp_path / "quiz.json").write_text(json.dumps(rows), "utf8")
    assert every(load_task(tmp_path / "quiz.json")) == every(task)
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "quiz.parquet"))
    assert every(load_task(tmp_path / "quiz.parquet")) == every(task)


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        (["A", "b", "C"], "letters"),
        (["red 0", "blue 1", "green 2"], "the choices' texts"),
        (["0", "1", "2"], "indices from 0"),
        (["1", "2", "3"], "indices from 1"),
    ],
)
def test_what_answers_are_is_worked_out(tmp_path, answers, kind):
    rows = [f"What is {i}?,red {i},blue {i},green {i},{answer}" for i, answer in enumerate(answers)]
    task = load_task(csv(tmp_path / "quiz.csv", rows))
    assert {q.stem: q.answer for q in every(task)} == {f"What is {i}?": i for i in range(3)}
    assert f"answers are {kind};" in task.about


def test_an_answer_that_can_be_read_in_two_ways_has_to_be_explained(tmp_path):
    path = csv(tmp_path / "quiz.csv", [f"What is {i}?,3,4,2,{1 + i % 2}" for i in range(4)])
    with pytest.raises(
        ValueError, match=r"row 1: the answer '1' could be indices from 0 or indices from 1, and so could"
    ):
        load_task(path)
    assert {q.answer for q in every(load_task(path, answer_as="index1"))} == {0, 1}
    assert {q.answer for q in every(load_task(path, answer_as="index0"))} == {1, 2}
    with pytest.raises(ValueError, match="answer_as is 'number'; expected one of label, letter, text"):
        load_task(path, answer_as="number")


def test_other_columns_are_named(tmp_path):
    rows = [f"{i},Frage {i},ja {i},nein {i},{i % 2}" for i in range(5)]
    path = csv(tmp_path / "quiz.csv", rows, "nr,Frage,erste,zweite,richtig")
    with pytest.raises(ValueError, match="no column of the question was found among nr, Frage, erste, zweite, richtig"):
        load_task(path)
    task = load_task(path, question="Frage", choices=["erste", "zweite"], answer="richtig")
    assert {q.stem: q.choices for q in every(task)} == {f"Frage {i}": (f"ja {i}", f"nein {i}") for i in range(5)}
    with pytest.raises(ValueError, match="has no column 'frage'; it has nr, Frage"):
        load_task(path, question="frage", choices=["erste", "zweite"], answer="richtig")


@pytest.mark.parametrize(
    "header",
    [
        "question,answer0,answer1,answer2,label",
        "question,Option A,Option B,Option C,answer",
        "question, a, b, c, answer",
        "Question,choice-1,choice-2,choice-3,Correct Answer",
    ],
)
def test_columns_of_choices_are_found_however_they_are_written(tmp_path, header):
    rows = [f"What is {i}?,red {i},blue {i},green {i},{i % 3}" for i in range(6)]
    task = load_task(csv(tmp_path / "quiz.csv", rows, header))
    assert {q.stem: (q.choices[0], q.answer) for q in every(task)} == {
        f"What is {i}?": (f"red {i}", i % 3) for i in range(6)
    }


def test_a_gap_among_the_columns_of_choices_is_refused(tmp_path):
    path = csv(tmp_path / "q.csv", [f"q {i},x,y,z,x" for i in range(6)], "question,option1,option2,option4,answer")
    with pytest.raises(ValueError, match="columns option1, option2 and option4, but no option3: rename"):
        load_task(path)
    assert load_task(path, choices=["option1", "option2", "option4"]).train[0].choices == ("x", "y", "z")


def test_a_choice_that_the_first_row_lacks_is_read_in_the_others(tmp_path):
    rows = [{"question": f"q {i}", "a": "x", "b": "y", **({"c": "z"} if i else {}), "answer": "B"} for i in range(6)]
    found = {q.stem: q.choices for q in every(load_task(jsonl(tmp_path / "quiz.jsonl", rows)))}
    assert found["q 0"] == ("x", "y") and found["q 5"] == ("x", "y", "z")
    csv(tmp_path / "train.csv", [f"q {i},x,y,A" for i in range(5)], "question,a,b,answer")
    csv(tmp_path / "test.csv", ["t,x,y,z,C"])
    assert load_task(tmp_path).test[0].choices == ("x", "y", "z")


def test_letters_beside_unread_columns_may_be_choices_or_classes(tmp_path):
    path = csv(tmp_path / "q.csv", [f"q {i},x,y,{'AB'[i % 2]}" for i in range(6)], "question,erste,zweite,answer")
    with pytest.raises(ValueError, match="the answers are A, B, and the columns erste, zweite are not used. If these"):
        load_task(path)
    assert "; not used: erste, zweite; answers are one of the classes A, B" in load_task(path, labels=["A", "B"]).about
    assert load_task(path, choices=["erste", "zweite"]).train[0].choices == ("x", "y")


@pytest.mark.parametrize("kind", ["list", "json"])
def test_a_list_of_labelled_choices(tmp_path, kind):
    choices = [{"label": "1", "text": "x"}, {"label": "2", "text": "y"}]
    choices = json.dumps(choices) if kind == "json" else choices
    rows = [{"question": f"q {i}", "choices": choices, "answer": "2"} for i in range(4)]
    assert {(q.choices, q.answer) for q in every(load_task(jsonl(tmp_path / "q.jsonl", rows)))} == {(("x", "y"), 1)}


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"question": {"stem": "q"}}, r"row 1: 'question' is \"\{'stem': 'q'\}\"; expected text"),
        ({"question": ["q"]}, "row 1: 'question' is .*; expected text"),
        ({"answer": ["A"]}, "row 1: 'answer' is .*; expected text"),
        ({"choices": [["x"], "y"]}, "row 1: 'a choice' is .*; expected text"),
        ({"question": "cut \ud83d"}, "row 1: 'question' is no text in UTF-8"),
        ({"choices": {"text": ["x", "y", ""], "label": ["A", "B", "C"]}, "answer": "C"}, "row 1: the answer is 'C'"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, row, sentence):
    rows = [{"question": f"q {i}", "choices": ["x", "y"], "answer": "A"} for i in range(5)]
    with pytest.raises(ValueError, match=sentence):
        load_task(jsonl(tmp_path / "quiz.jsonl", [{**rows[0], **row}, *rows[1:]]))


def test_bytes_are_text_in_utf8(tmp_path):
    rows = [{"question": f"é {i}".encode(), "choices": ["x", "y"], "answer": "A"} for i in range(5)]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "quiz.parquet"))
    assert {q.stem for q in every(load_task(tmp_path / "quiz.parquet"))} == {f"é {i}" for i in range(5)}
    rows[2]["question"] = b"\xff"
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "quiz.parquet"))
    with pytest.raises(ValueError, match="row 3: 'question' is no text in UTF-8"):
        load_task(tmp_path / "quiz.parquet")


def test_numbers_with_a_point_are_indices_and_classes(tmp_path):
    task = load_task(csv(tmp_path / "q.csv", [f"q {i},x,y,{i % 2}.0" for i in range(6)], "question,a,b,answer"))
    assert {q.stem: q.answer for q in every(task)} == {f"q {i}": i % 2 for i in range(6)}
    path = csv(tmp_path / "c.csv", [f"t {i},{i % 2}.0" for i in range(6)], "text,label")
    assert load_task(path).train[0].choices == ("0", "1")
    assert load_task(path, labels=["bad", "good"]).train[0].choices == ("bad", "good")


def test_fewer_choices_may_be_left_empty_at_the_end(tmp_path):
    task = load_task(quiz(tmp_path / "quiz.csv", row1="Wet?,water,sand,,A"))
    assert next(q for q in every(task) if q.stem == "Wet?").choices == ("water", "sand")


def test_the_rows_of_arc_are_read_by_their_own_labels(tmp_path):
    rows = [
        {"id": f"a{i}", "question": f"q {i}", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}
        for i in range(4)
    ]
    task = load_task(jsonl(tmp_path / "arc.jsonl", rows))
    assert {q.answer for q in every(task)} == {1} and {q.id for q in every(task)} == {"a0", "a1", "a2", "a3"}


@pytest.mark.parametrize("file", ["quiz.json", "quiz.parquet"])
def test_indices_in_a_column_of_floats_are_indices(tmp_path, file):
    rows = [{"question": f"q {i}", "choices": ["x", "y"], "answer": float(i % 2)} for i in range(6)]
    (tmp_path / "quiz.json").write_text(json.dumps(rows), "utf8")
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "quiz.parquet"))
    task = load_task(tmp_path / file)
    assert {q.stem: q.answer for q in every(task)} == {f"q {i}": i % 2 for i in range(6)}
    assert "indices from 0" in task.about


def test_numbers_that_are_choices_are_read_as_such(tmp_path):
    choices = [3.0, 1.5, 2.0]
    rows = [{"question": f"q {i}", "choices": choices, "answer": choices[i % 3]} for i in range(9)]
    (tmp_path / "quiz.json").write_text(json.dumps(rows), "utf8")
    task = load_task(tmp_path / "quiz.json")
    assert {q.stem: q.answer for q in every(task)} == {f"q {i}": i % 3 for i in range(9)}
    assert task.train[0].choices == ("3", "1.5", "2")


@pytest.mark.parametrize("mark", ["\u2028", "\x85"])
def test_only_a_newline_ends_a_line_of_json(tmp_path, mark):
    rows = [{"question": f"What{mark}is {i}?", "choices": ["x", "y"], "answer": i % 2} for i in range(6)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "quiz.jsonl").write_text("\n".join(lines), "utf8")
    assert {q.stem for q in every(load_task(tmp_path / "quiz.jsonl"))} == {row["question"] for row in rows}


def test_a_choice_that_is_not_a_number_is_an_empty_cell(tmp_path):
    rows = [{"question": f"q {i}", "a": "x", "b": "y", "c": "z" if i else math.nan, "answer": "x"} for i in range(6)]
    (tmp_path / "quiz.json").write_text(json.dumps(rows), "utf8")
    found = {q.stem: q.choices for q in every(load_task(tmp_path / "quiz.json"))}
    assert found["q 0"] == ("x", "y") and found["q 1"] == ("x", "y", "z")


def test_classification_has_the_same_choices_everywhere(tmp_path):
    rows = [f"I {'love' if i % 2 else 'hate'} it {i},{'good' if i % 2 else 'bad'}" for i in range(8)]
    task = load_task(csv(tmp_path / "reviews.csv", rows, "text,label"))
    assert {q.choices for q in every(task)} == {("bad", "good")}
    assert all((q.answer == 1) == ("love" in q.stem) for q in every(task))
    numbers = csv(tmp_path / "numbers.csv", [f"text {i},{i % 2}" for i in range(8)], "text,label")
    named = load_task(numbers, labels=["negative", "positive"])
    assert {q.choices[q.answer] for q in every(named)} == {"negative", "positive"}
    with pytest.raises(
        ValueError, match=r"row 2: the class is '1'; expected one, or a number|the classes are one; exp"
    ):
        load_task(numbers, labels=["one"])
    many = csv(tmp_path / "many.csv", [f"text {i},word {i}" for i in range(40)], "text,label")
    with pytest.raises(ValueError, match="expected 2 to 26 different ones. If the rows are questions with choices"):
        load_task(many)


# ------------------------------------------------------------------------------------------------ splits


def test_equal_questions_stay_together_and_the_order_of_rows_does_not_matter(tmp_path):
    rows = [f"What is {i // 2}?,red {i},blue {i},green {i},A" for i in range(40)]
    task = load_task(csv(tmp_path / "one.csv", rows))
    parts = [{q.stem for q in getattr(task, part)} for part in PARTS]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert [len(p) for p in parts] == [12, 4, 4] and len(task.train) == 24
    again = load_task(csv(tmp_path / "two.csv", rows[::-1]))
    assert [{q.stem for q in getattr(again, part)} for part in PARTS] == parts


def test_a_folder_has_a_file_a_split(tmp_path):
    for name, count in (("train", 5), ("dev", 2), ("test", 3)):
        rows = [f"{name} {i}?,red,blue,green,{'ABC'[i % 3]}" for i in range(count)]
        csv(tmp_path / f"{name}.csv", rows)
    task = load_task(tmp_path)
    assert [len(getattr(task, part)) for part in PARTS] == [5, 2, 3] and "(by file)" in task.about
    (tmp_path / "dev.csv").unlink()
    task = load_task(tmp_path)
    assert [len(getattr(task, part)) for part in PARTS] == [4, 1, 3] and "validation from train" in task.about
    csv(tmp_path / "validation.csv", ["train 1?,red,blue,green,A", "train 2?,red,blue,green,A"])
    assert "(by file; in train and in validation: 2)" in load_task(tmp_path).about
    (tmp_path / "validation.csv").unlink()
    csv(tmp_path / "test.csv", ["train 1?,red,blue,green,A"])
    assert "by file; in train and in test: 1; validation from train" in load_task(tmp_path).about
    (tmp_path / "test.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no test file: expected train, validation and test"):
        load_task(tmp_path)


def test_files_may_number_their_rows_each_for_itself(tmp_path):
    for name in ("train", "test"):
        csv(tmp_path / f"{name}.csv", [f"{i},{name} {i}?,x,y,A" for i in range(8)], "id,question,a,b,answer")
    assert len(every(load_task(tmp_path))) == 16


def test_a_data_set_laid_out_like_the_hub(tmp_path):
    folder = tmp_path / "hub" / "someone" / "quiz"
    folder.mkdir(parents=True)
    rows = [{"frage": f"q {i}", "options": ["x", "y"], "richtig": i % 2} for i in range(10)]
    jsonl(folder / "train.jsonl", rows)
    task = load_task("someone/quiz", hub=tmp_path / "hub", question="frage", answer="richtig")
    assert len(every(task)) == 10 and task.name == "someone/quiz" and task.data["path"] == "someone/quiz"


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("What is 3?,red,blue,green,E", r"row 4: the answer is 'E'; expected letters, as most rows have"),
        ("What is 3?,red,blue,green,", r"row 4: 'answer' is empty"),
        (",red,blue,green,A", r"row 4: 'question' is empty"),
        ("What is 3?,red,,green,A", r"row 4: choice 2 is empty"),
        ("What is 3?,red,,,A", r"row 4: it has 1 choices; expected 2 to 8"),
        ("What is 3?,red,red,green,A", r"row 4: the choice 'red' is there twice"),
        ("What is 3?,red, blue,green, x,A", r"row 4: it has 6 cells, the header 5. Quote commas"),
        ("What is 3?,red,A", r"row 4: it has 3 cells, the header 5"),
    ],
)
def test_a_bad_row_is_named_with_its_value(tmp_path, row, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_task(quiz(tmp_path / "quiz.csv", row4=row))


@pytest.mark.parametrize("name", ["question", "answer"])
def test_not_a_number_is_refused_with_its_row(tmp_path, name):
    rows = [{"question": f"q {i}", "choices": ["x", "y"], "answer": i % 2} for i in range(6)]
    rows[3][name] = math.nan
    (tmp_path / "quiz.json").write_text(json.dumps(rows), "utf8")
    with pytest.raises(ValueError, match=f"row 4: '{name}' is empty"):
        load_task(tmp_path / "quiz.json")


def test_no_choice_of_many_is_left_out(tmp_path):
    header = ",".join(["question", *(f"option{i}" for i in range(1, 11)), "answer"])
    rows = [",".join([f"q {i}", *(f"o{j}" for j in range(10)), f"o{i}"]) for i in range(6)]
    with pytest.raises(ValueError, match="row 1: it has 10 choices; expected 2 to 8"):
        load_task(csv(tmp_path / "ten.csv", rows, header))


def test_questions_without_an_answer_are_read_from_one_file(tmp_path):
    for name in ("train", "test"):
        csv(tmp_path / f"{name}.csv", [f"{name} {i}?,x,y" for i in range(3)], "question,a,b")
    assert read_stems(tmp_path / "test.csv")[2] == ("test 2?", ("x", "y"))
    with pytest.raises(ValueError, match="is a folder with several files: name one of them"):
        read_stems(tmp_path)


def test_two_columns_of_one_name_are_refused(tmp_path):
    rows = [f"q {i},red,green,red" for i in range(6)]
    with pytest.raises(ValueError, match="twice.csv has several columns named 'choice': give each a name of its own"):
        load_task(csv(tmp_path / "twice.csv", rows, "question,choice,choice,answer"))


def test_a_file_that_is_not_in_utf_8_is_named(tmp_path):
    path = tmp_path / "windows.csv"
    path.write_bytes(csv(path, ["Où est-ce ?,x,y,A"] * 6, "question,a,b,answer").read_text("utf8").encode("cp1252"))
    with pytest.raises(ValueError, match=r"windows.csv is not in UTF-8"):
        load_task(path)


def test_what_is_no_file_of_questions_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file .*nothing.csv"):
        load_task(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match="There is no task 'nothing'"):
        load_task("nothing")
    (tmp_path / "bad.jsonl").write_text('{"question": "q"}\n{oops}\n')
    with pytest.raises(ValueError, match=r"bad.jsonl, line 2: this is no JSON"):
        load_task(tmp_path / "bad.jsonl")
    (tmp_path / "list.json").write_text('[\n{"question": "q"},\n{"question" "q"}\n]')
    with pytest.raises(ValueError, match=r"list.json, line 3: this is no JSON"):
        load_task(tmp_path / "list.json")
    (tmp_path / "quiz.xlsx").write_text("text")
    with pytest.raises(ValueError, match="quiz.xlsx is of a kind that cannot be read here: use one of .csv"):
        load_task(tmp_path / "quiz.xlsx")
    with pytest.raises(ValueError, match="and no such file or folder"):
        load_task("q.ndjson")
    (tmp_path / "bad.parquet").write_text("text")
    with pytest.raises(ValueError, match="no Parquet file"):
        load_task(tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match="holds no rows"):
        load_task(csv(tmp_path / "empty.csv", []))
    with pytest.raises(ValueError, match="too few to be split"):
        load_task(quiz(tmp_path / "two.csv", 2))
    with pytest.raises(ValueError, match="everyday is a known task with columns of its own"):
        load_task("everyday", answer="x")
    twice = csv(tmp_path / "ids.csv", [f"7,q {i},x,y,A" for i in range(4)], "id,question,a,b,answer")
    with pytest.raises(ValueError, match=r"row 2: the id '7' is also that of .*row 1"):
        load_task(twice)


# ------------------------------------------------------------------------------------------------ downstream


def test_everything_takes_it(tiny_model, tmp_path):
    task, model = load_task(quiz(tmp_path / "quiz.csv", 12)), tiny_model()
    run = finetune(model, task, steps=2, progress=False)
    assert run.config["data"]["question"] == "question"
    for format in ("text", "letter"):
        assert predict(run, task.test, samples=2, format=format).logits.shape == (2, len(task.test), 3)
    assert suggest_hyperparameters(model, task, steps=2, questions=2, draws=1, train_size=4).ess > 0


def test_the_commands_take_it(tiny_folder, tmp_path, capsys):
    path = quiz(tmp_path / "quiz.csv", 15)
    common = ["--model", str(tiny_folder), "--steps", "2", "--quiet"]
    main(["finetune", "--data", str(path), *common, "--samples", "2", "--out", str(tmp_path / "run")])
    said = capsys.readouterr().out
    assert "15 questions; columns: question, answer and a, b, c" in said
    printed = said[said.index("IVON, 2 draws: ") + len("IVON, 2 draws: ") :].splitlines()[0]
    main(["evaluate", str(tmp_path / "run"), "--quiet", "--samples", "2"])
    assert printed in capsys.readouterr().out
    table = ["table1", "--model", str(tiny_folder), "--tasks", str(path), "--methods", "adamw", "ivon", "--seeds", "1"]
    main([*table, "--steps", "2", "--samples", "2", "--out", str(tmp_path / "table")])
    assert f"| metric | method | {path} |" in capsys.readouterr().out


def run_of(folder, path, *more):
    common = ["--model", str(folder), "--steps", "2", "--quiet", "--samples", "2", "--optimizer", "adamw"]
    out = path.with_suffix("")
    assert main(["finetune", "--data", str(path), *common, *more, "--out", str(out)]) == 0
    return str(out)


def test_a_file_that_has_changed_is_not_evaluated(tiny_folder, tmp_path, capsys):
    path = quiz(tmp_path / "quiz.csv", 15)
    run, before = run_of(tiny_folder, path), path.read_text("utf8")
    path.write_text("\n".join(before.splitlines()[:9]) + "\n", "utf8")
    assert main(["evaluate", run, "--quiet"]) == 2
    assert "quiz.csv has changed since this run was trained" in capsys.readouterr().err
    path.write_text(before, "utf8")
    assert main(["evaluate", run, "--quiet"]) == 0


def test_other_files_are_read_as_the_runs_own_was(tiny_folder, tmp_path, capsys):
    rows = [f"Frage {i},ja {i},nein {i},{'AB'[i % 2]}" for i in range(10)]
    path = csv(tmp_path / "fr.csv", rows, "Frage,erste,zweite,richtig")
    run = run_of(tiny_folder, path, "--question", "Frage", "--choices", "erste", "zweite", "--answer", "richtig")
    moved = path.rename(tmp_path / "moved.csv")
    capsys.readouterr()
    assert main(["evaluate", run, "--quiet", "--task", str(moved)]) == 0
    assert "10 questions; columns: Frage, richtig and erste, zweite" in capsys.readouterr().out
    assert main(["ask", run, "--quiet", "--json", "--file", str(moved)]) == 0
    asked = [json.loads(line)["question"] for line in capsys.readouterr().out.splitlines()]
    assert asked == [f"Frage {i}" for i in range(10)]
    assert main(["ask", run, "--json", "--quiet", "Was ist?", "ja", "nein"]) == 0
    assert main(["ask", run, "Was ist?", "--quiet", "ja", "--json", "nein"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first == second and [choice["text"] for choice in first["choices"]] == ["ja", "nein"]
    with pytest.raises(SystemExit):
        main(["ask", run, "Was ist?", "--quiet", "ja", "--jsn", "nein"])


def test_the_classes_are_the_runs_own_in_other_files_too(tiny_folder, tmp_path, capsys):
    words = ("bad", "fair", "good")
    run = run_of(tiny_folder, csv(tmp_path / "three.csv", [f"t {i},{words[i % 3]}" for i in range(15)], "text,label"))
    two = csv(tmp_path / "two.csv", [f"u {i},{words[i % 2]}" for i in range(10)], "text,label")
    one = csv(tmp_path / "one.csv", [f"u {i},good" for i in range(10)], "text,label")
    for path in (two, one):
        file = tmp_path / "logits.safetensors"
        assert main(["evaluate", run, "--quiet", "--task", str(path), "--save", str(file)]) == 0
        assert "answers are one of the classes bad, fair, good" in capsys.readouterr().out
        assert Predictions.load(file).logits.shape == (1, 2, 3)
        file.unlink()


@pytest.mark.parametrize("part", PARTS)
def test_a_question_that_is_too_long_is_found_before_training(tiny_folder, tmp_path, capsys, part, monkeypatch):
    for name in PARTS:
        rows = [f"{name} {i}?,red,blue,green,A" for i in range(4)]
        csv(tmp_path / f"{name}.csv", [*rows, f"{'long ' * 5000},red,blue,green,A"] if name == part else rows)
    monkeypatch.setattr("transformers.Trainer.train", lambda *_, **__: 1 / 0)
    common = ["--model", str(tiny_folder), "--steps", "2", "--quiet"]
    assert main(["finetune", "--data", str(tmp_path), *common, "--out", str(tmp_path / "run")]) == 2
    assert "tokens, more than the limit of" in capsys.readouterr().err
    common += ["--methods", "adamw", "--seeds", "1", "--out", str(tmp_path / "table")]
    assert main(["table1", "--tasks", str(tmp_path), *common]) == 2
    assert "tokens, more than the limit of" in capsys.readouterr().err


def test_columns_without_a_file_are_refused(capsys):
    assert main(["finetune", "--question", "q"]) == 2
    assert "--question describes your own data: name the file with --data" in capsys.readouterr().err


def test_classes_heed_what_answers_are(tmp_path):
    rows = [f"A text {i},{1 + i % 3}" for i in range(12)]
    file = csv(tmp_path / "rated.csv", rows, "text,label")
    labels = ["low", "mid", "high"]
    task = load_task(file, labels=labels, answer_as="index1")
    found = {q.stem: q.choices[q.answer] for q in every(task)}
    assert found == {f"A text {i}": labels[i % 3] for i in range(12)}
    with pytest.raises(ValueError, match="the class is '3'; expected low, mid, high"):
        load_task(file, labels=labels)
    for wrong in ("letter", "rubbish"):
        with pytest.raises(ValueError, match=f"answer_as is '{wrong}'; a class is given as"):
            load_task(file, labels=labels, answer_as=wrong)
    with pytest.raises(ValueError, match="these rows have some"):
        load_task(quiz(tmp_path / "quiz.csv"), labels=["x", "y"])


def test_a_hidden_answer_is_no_class(tmp_path):
    for part, answers in (("train", "0101"), ("validation", "01"), ("test", ("-1", "-1"))):
        csv(tmp_path / f"{part}.csv", [f"{part} {i},{a}" for i, a in enumerate(answers)], "sentence,label")
    with pytest.raises(ValueError, match="no training row has the class '-1'. If it hides the answer"):
        load_task(tmp_path)


def test_a_tsv_is_read_by_its_tabs(tmp_path):
    file = tmp_path / "quiz.tsv"
    rows = [f"What, then, is {i}?\tred\tblue\t{'AB'[i % 2]}" for i in range(8)]
    file.write_text("\n".join(["question, in full, or so,\ta\tb\tanswer", *rows]), "utf8")
    task = load_task(file, question="question, in full, or so,")
    assert all(q.choices == ("red", "blue") for q in every(task)) and len(every(task)) == 8
