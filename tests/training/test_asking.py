"""Questions put to a run: the same numbers as predicting them, and when a person should answer."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from ivon_lora_lite import Question, finetune, load_model, load_run, load_task, predict
from ivon_lora_lite.cli import main
from ivon_lora_lite.training import ask, question_for, with_threshold

SHORT = {"steps": 2, "train_size": 8, "progress": False, "eval_every": 0}


@pytest.fixture(scope="module")
def task():
    return load_task("everyday@1")


@pytest.fixture
def run(tiny_model, task):
    return finetune(tiny_model(trained=True), task, **SHORT, ess=2e3)


@pytest.mark.parametrize("format", ["text", "letter"])
def test_answers_are_what_predict_gives(tiny_model, task, format):
    run = finetune(tiny_model(trained=True), task, **SHORT, ess=2e3, format=format)
    for q, answer in zip(task.test[:3], ask(run, task.test[:3], samples=4, seed=7)):
        one = run.ask(q.stem, q.choices, samples=4, seed=7)
        expected = predict(run, [q], samples=4, seed=7).probabilities[:, 0]
        for found in (answer, one):
            torch.testing.assert_close(found.draws, expected, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(found.mean, predict(run, [q]).probabilities[0, 0], atol=1e-5, rtol=1e-4)
        assert one.best == q.choices[int(expected.mean(0).argmax())] and one.abstains is None
        assert one.disagreement > 0 and f"{one.confidence:.3f}" in str(one) and "average of 4" in str(one)


def test_a_point_does_not_disagree_with_itself(tiny_model, task):
    run = finetune(tiny_model(trained=True), task, optimizer="adamw", **SHORT)
    answer = run.ask("Wet?", ["water", "sand"])
    assert answer.disagreement == 0.0 and answer.draws.shape == (1, 2) and torch.equal(answer.average, answer.mean)


def test_the_threshold_answers_the_share_that_was_asked_for(run, task, tmp_path):
    ready = with_threshold(run, task.validation[:20], 0.75, samples=3)
    facts = ready.config["abstain"]
    assert facts["coverage"] == 0.75 and facts["questions"] == 20
    answers = ask(ready, task.validation[:20], samples=3)
    assert sum(answer.abstains for answer in answers) == 5
    assert "ask a person" in str(answers[0])
    ready.save(tmp_path / "run")
    again = load_run(tmp_path / "run", run.model)
    assert [a.abstains for a in ask(again, task.validation[:20], samples=3)] == [a.abstains for a in answers]


def test_a_run_that_another_method_made_has_no_threshold_of_the_first(run, task):
    ready = with_threshold(run, task.validation[:8], 0.75, samples=3)
    point = with_threshold(replace(run, posterior=None), task.validation[:8], 0.75)  # a point's
    tuned = replace(ready, config={**ready.config, "tau": {"value": 0.5}})
    other = tuned.derived("tfb", weights=run.weights, config={"more": 1})
    assert (
        other.config["method"] == "tfb" and other.config["more"] == 1 and not {"abstain", "tau"} & other.config.keys()
    )
    assert ask(other, task.test[:1])[0].threshold is None and ask(ready, task.test[:1])[0].threshold
    assert ask(replace(point, posterior=run.posterior), task.test[:1])[0].threshold is None  # draws are not the point


def test_the_threshold_is_for_the_draws_with_which_it_was_chosen(run, task):
    questions = task.validation[:8]
    ready = with_threshold(run, questions, 0.75, samples=3)
    assert ready.config["abstain"]["samples"] == 3 and ready.config["abstain"]["tau"] == 1.0
    answers = ask(ready, questions)
    assert sum(a.abstains for a in answers) == 2 and {len(a.draws) for a in answers} == {3}
    for other in ({"samples": 4}, {"samples": 0}, {"tau": 0.5}):
        assert all(a.abstains is None for a in ask(ready, questions, **other))
    at_mean = with_threshold(run, questions, 0.75, samples=0)
    assert sum(a.abstains for a in ask(at_mean, questions)) == 2
    assert ask(at_mean, questions, samples=3)[0].abstains is None


@pytest.fixture
def classifier(tiny_folder):
    """A run whose classes are bad and good."""
    model = load_model(tiny_folder, labels=2, dtype="fp32", device="cpu", progress=False)
    rows = [
        Question(f"{word}? Answer:", ("bad", "good"), i % 2, f"{word}?", ("A", "B")) for i, word in enumerate("abcd")
    ]
    return finetune(model, rows, optimizer="adamw", format="class", **SHORT)


def test_a_classifier_answers_with_its_own_classes_in_their_order(classifier):
    assert classifier.config["classes"] == ["bad", "good"]
    answer, same = classifier.ask("I like it."), classifier.ask("I like it.", ["bad", "good"])
    assert answer.choices == ("bad", "good") and torch.equal(answer.mean, same.mean)
    for others in (["good", "bad"], ["tree", "stone"], ["bad", "good", "fair"]):
        with pytest.raises(ValueError, match=f"classes are bad, good, in this order.* has {', '.join(others)}"):
            classifier.ask("I like it.", others)


def test_classes_are_kept_as_they_are_and_other_choices_are_few(run):
    spaced = replace(run, config={**run.config, "classes": [" bad", "good"]})
    assert (
        question_for(spaced, "I like it.").choices
        == (" bad", "good")
        == question_for(spaced, "?", ["bad", "good"]).choices
    )
    with pytest.raises(ValueError, match="There are 9 choices; expected at most 8"):
        question_for(spaced, "Which?", list("abcdefghi"))


def test_what_is_no_question_is_refused(run):
    for choices in ([], ["one"], ["same", "same"], ["same", " same "], ["one", ""], ["one", " "]):
        with pytest.raises(ValueError, match="expected at least two different ones"):
            run.ask("Which?", choices)
    with pytest.raises(ValueError, match="There are 9 choices; expected at most 8"):
        run.ask("Which?", list("abcdefghi"))
    with pytest.raises(ValueError, match="The question is empty"):
        run.ask(" ", ["a", "b"])
    for stem, choices in (("cut \ud83d", ["a", "b"]), ("Which?", ["a", "cut \ud83d"])):
        with pytest.raises(ValueError, match="is no text in UTF-8"):
            run.ask(stem, choices)


def test_the_command_asks_one_or_a_file(tiny_folder, tmp_path, capsys):
    out = tmp_path / "run"
    common = ["--model", str(tiny_folder), "--steps", "2", "--quiet", "--train-size", "8", "--test-size", "4"]
    assert main(["finetune", *common, "--samples", "2", "--out", str(out)]) == 0
    capsys.readouterr()
    choices = ["salt", "sand", "wood"]
    assert main(["ask", str(out), "Which one melts ice?", *choices, "--quiet"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {choice}" in said for choice in choices) and "the draws disagree by" in said
    assert "ask a person" in said  # finetune chose a threshold
    assert main(["ask", str(out), "Which one melts ice?", *choices, "--json", "--samples", "3", "--quiet"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["draws"] == 3 and [c["text"] for c in facts["choices"]] == choices
    assert sum(c["average"] for c in facts["choices"]) == pytest.approx(1.0, abs=1e-3)
    assert all(c["lowest"] <= c["average"] <= c["highest"] for c in facts["choices"])

    (tmp_path / "more.csv").write_text("question,a,b\nWet?,water,sand\nDry?,water,sand\n")
    assert main(["ask", str(out), "--file", str(tmp_path / "more.csv"), "--json", "--quiet"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["question"] for line in lines] == ["Wet?", "Dry?"]
    assert main(["ask", str(out), "--quiet"]) == 2 and main(["ask", str(out), "Wet?", "water", "--quiet"]) == 2
    (tmp_path / "bad.csv").write_text("question,a,b\nWet?,water,\n")
    assert main(["ask", str(out), "--file", str(tmp_path / "bad.csv"), "--quiet"]) == 2
    assert "row 1: it has 1 choices" in capsys.readouterr().err


def test_a_run_is_saved_before_its_threshold_is_chosen(tiny_folder, tmp_path, capsys, monkeypatch):
    def broken(*_, **__):
        raise FloatingPointError("the draws are too wide")

    monkeypatch.setattr("ivon_lora_lite.training.with_threshold", broken)
    common = ["--model", str(tiny_folder), "--steps", "2", "--quiet", "--train-size", "8", "--samples", "2"]
    assert main(["finetune", *common, "--out", str(tmp_path / "run")]) == 2
    assert "the draws are too wide" in capsys.readouterr().err
    assert len(load_run(tmp_path / "run").history) > 0


def test_a_run_on_classes_knows_its_choices(tiny_folder, tmp_path, capsys):
    rows = [f"I {'love' if i % 2 else 'hate'} it {i},{'good' if i % 2 else 'bad'}" for i in range(10)]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label", *rows]))
    out = tmp_path / "run"
    common = ["--model", str(tiny_folder), "--steps", "2", "--quiet", "--samples", "2", "--out", str(out)]
    assert main(["finetune", "--data", str(tmp_path / "reviews.csv"), *common]) == 0
    capsys.readouterr()
    assert main(["ask", str(out), "I like it", "--json", "--quiet"]) == 0
    assert [c["text"] for c in json.loads(capsys.readouterr().out)["choices"]] == ["bad", "good"]
    run = load_run(out)
    task = load_task(tmp_path / "reviews.csv")
    assert question_for(run, task.test[0].stem).prompt == task.test[0].prompt


@pytest.mark.parametrize("name", ["boolq", "winogrande_s", "glue/sst2"])
def test_a_task_with_a_form_of_its_own_is_not_asked_in_another(run, name):
    asked = replace(run, config={**run.config, "task": name, "format": "letter"})
    with pytest.raises(ValueError, match=f"{name} asks in a form of its own"):
        question_for(asked, "Is water wet?", ["yes", "no"])
