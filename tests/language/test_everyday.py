"""Checks of the embedded data set data/everyday: format, balance, leaks between splits, and its dataset card."""

import hashlib
import itertools
import json
import re
import shutil
from collections import Counter
from math import log
from pathlib import Path
from statistics import mean

import datasets
import networkx
import pytest
import yaml
from conftest import load_script

FOLDER = Path(__file__).parents[2] / "data" / "everyday"
SPLITS = ("train", "validation", "test")
LETTERS = "ABCD"
SHARES = {"train": 4, "validation": 4, "test": 16}  # of the 24 facts of a kind


def read(split: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text("utf8").splitlines()]


def right_of(row: dict) -> str:
    return row["choices"]["text"][LETTERS.index(row["answerKey"])]


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold()))


STOPWORDS = words(
    "a all an and are as at be by for from has have in into is it its of on one or that the their this to was when "
    "where which who whose with within"
)


def content(text: str) -> frozenset[str]:
    """Words that carry meaning, without a plural s, so that "the hardest of all minerals" is "hardest mineral"."""
    return frozenset(word.removesuffix("s") if len(word) > 3 else word for word in words(text) - STOPWORDS)


def jaccard(a: frozenset, b: frozenset) -> float:
    return len(a & b) / len(a | b)


ROWS = {split: read(split) for split in SPLITS}
SPLIT_OF = {row["id"]: split for split in SPLITS for row in ROWS[split]}
KINDS = [kind for path in sorted((FOLDER / "facts").glob("*.yaml")) for kind in yaml.safe_load(path.read_text("utf8"))]
FACTS = {
    f"{kind['kind']}-{number:02d}": fact for kind in KINDS for number, fact in enumerate(kind["facts"])
}  # id → [subject, right, wrong, wrong, wrong]
KIND_OF = {f"{kind['kind']}-{number:02d}": kind for kind in KINDS for number in range(len(kind["facts"]))}
FIRST_EDITION = "23f9440f37c9583e8194aa023d62771922438c4092203e454caf9ce74d7ca3d9"
each_split = pytest.mark.parametrize("split", SPLITS)


MEANING = {id: (content(subject), content(right)) for id, (subject, right, *_) in FACTS.items()}


def across_splits():
    """Every two facts that are in different splits, as ``id, (subject, right), id, (subject, right)``."""
    for (a, fact_a), (b, fact_b) in itertools.combinations(MEANING.items(), 2):
        if SPLIT_OF[a] != SPLIT_OF[b]:
            yield a, fact_a, b, fact_b


def shown(a: str, b: str) -> str:
    return " = ".join(f"{SPLIT_OF[id]} {id} ({FACTS[id][0]}: {FACTS[id][1]})" for id in (a, b))


# --- format ----------------------------------------------------------------------------------------------------------


@each_split
def test_split_has_its_share_of_every_kind(split):
    assert len(ROWS[split]) == len(KINDS) * SHARES[split]


@each_split
def test_rows_have_exactly_the_schema_of_ai2_arc(split):
    for row in ROWS[split]:
        assert list(row) == ["id", "question", "choices", "answerKey"], row
        assert list(row["choices"]) == ["text", "label"], row
        assert row["choices"]["label"] == list(LETTERS), row
        assert len(row["choices"]["text"]) == 4, row
        assert row["answerKey"] in LETTERS and len(row["answerKey"]) == 1, row
        assert all(isinstance(text, str) for text in (row["id"], row["question"], *row["choices"]["text"])), row


def test_ids_are_unique_over_all_splits():
    counts = Counter(row["id"] for rows in ROWS.values() for row in rows)
    assert [id for id, count in counts.items() if count > 1] == []


@each_split
def test_questions_and_choices_are_clean_text(split):
    for row in ROWS[split]:
        question, choices = row["question"], row["choices"]["text"]
        assert question.endswith("?") and question[0] == question[0].upper(), question
        for text in (question, *choices):
            assert text and text == text.strip() and "  " not in text and not set(text) & set("{}\n\t"), row
        assert not any(choice.endswith(".") for choice in choices), row  # the prompt adds the full stop


@each_split
def test_the_four_choices_are_distinct_whatever_their_case(split):
    for row in ROWS[split]:
        assert len({choice.casefold() for choice in row["choices"]["text"]}) == 4, row


@each_split
def test_the_right_answer_does_not_stand_in_the_question(split):
    for row in ROWS[split]:
        assert right_of(row).casefold() not in row["question"].casefold(), row


# --- facts -----------------------------------------------------------------------------------------------------------


def test_there_are_at_least_fifty_kinds_with_distinct_names():
    names = [kind["kind"] for kind in KINDS]
    assert len(names) == len(set(names)) >= 50


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["kind"])
def test_kind_has_three_phrasings_and_enough_different_facts(kind):
    assert {"kind", "topic", "phrasings", "facts", "alike"} <= set(kind) <= {*kind, "also_true"}
    assert len(set(kind["phrasings"])) >= 3
    assert all(phrasing.count("{}") == 1 and phrasing.endswith("?") for phrasing in kind["phrasings"])
    assert all(len(fact) in (2, 5) and all(isinstance(text, str) for text in fact) for fact in kind["facts"])
    subjects, answers = ({fact[i].casefold() for fact in kind["facts"]} for i in (0, 1))
    assert len(subjects) == len(kind["facts"])
    assert len(answers) >= 8  # so that the kind alone does not give the answer
    numbers = range(len(kind["facts"]))
    assert sorted(n for group in kind["alike"] for n in group) == list(numbers)
    for number, others in kind.get("also_true", {}).items():
        assert number in numbers and set(others) <= set(numbers) - {number} and len(others) == len(set(others))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["kind"])
def test_kind_is_in_every_split_in_the_stated_shares(kind):
    ids = [f"{kind['kind']}-{number:02d}" for number in range(len(kind["facts"]))]
    assert Counter(SPLIT_OF[id] for id in ids) == SHARES


def test_every_question_shows_its_right_answer_and_names_its_subject():
    assert SPLIT_OF.keys() == FACTS.keys()
    for row in itertools.chain(*ROWS.values()):
        subject, right, *_ = FACTS[row["id"]]
        assert right_of(row) == right, row
        assert subject[1:] in row["question"], row  # its first letter may have become a capital


def test_wrong_choices_are_right_answers_of_the_same_kind_and_not_true():
    for row in itertools.chain(*ROWS.values()):
        kind = KIND_OF[row["id"]]
        number = int(row["id"][-2:])
        too_true = {kind["facts"][n][1] for n in kind.get("also_true", {}).get(number, [])}
        wrong = set(row["choices"]["text"]) - {right_of(row)}
        assert len(wrong) == 3 and wrong <= {fact[1] for fact in kind["facts"]} - too_true, row


def test_the_first_edition_stays_as_it_was():
    # results that name it stand on these very questions
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update((FOLDER / "editions" / "1" / f"{split}.jsonl").read_bytes())
    assert digest.hexdigest() == FIRST_EDITION


def test_no_question_of_the_first_editions_test_was_moved_to_training():
    # so that a model trained on the second edition may be scored on the first
    first = {row["id"] for row in read("editions/1/test")}
    assert first <= {row["id"] for row in ROWS["test"]}


# --- leaks between splits --------------------------------------------------------------------------------------------


def test_no_pair_of_subject_and_right_answer_is_in_two_splits():
    # either way round, and whatever the articles, case and word order
    leaks = [shown(a, b) for a, fact_a, b, fact_b in across_splits() if fact_a in (fact_b, fact_b[::-1])]
    assert leaks == []


def test_no_fact_is_reworded_in_another_split():
    # nearly the same words, or the same answer to subjects that share two words ("writing core of a pencil" and "leaves
    # the mark of a writing pencil"): the same fact may be in two kinds, which the deal of build.py cannot know
    leaks = [
        shown(a, b)
        for a, (subject_a, right_a), b, (subject_b, right_b) in across_splits()
        if jaccard(subject_a | right_a, subject_b | right_b) >= 0.75
        or (right_a == right_b and len(subject_a & subject_b) >= 2)
    ]
    assert leaks == []


def test_no_fact_is_asked_backwards_in_another_split():
    # "a cloth made from flax: linen" and "gives the fibre for linen: flax": each subject contains the other's answer
    leaks = [
        shown(a, b)
        for a, (subject_a, right_a), b, (subject_b, right_b) in across_splits()
        if right_a and right_b and right_a <= subject_b and right_b <= subject_a
    ]
    assert leaks == []


def test_no_two_questions_are_near_duplicates():
    everything = [(row["id"], words(f"{row['question']} {right_of(row)}")) for row in itertools.chain(*ROWS.values())]
    everything.sort(key=lambda pair: len(pair[1]))
    same = []
    for i, (a, words_a) in enumerate(everything):
        for b, words_b in everything[i + 1 :]:
            if len(words_a) < 0.9 * len(words_b):  # sorted by length: none of the rest can reach 0.9
                break
            if jaccard(words_a, words_b) >= 0.9:
                same.append((a, b))
    assert same == []


# --- answers that can be guessed without the question ----------------------------------------------------------------


def fitted(rows: list[dict]) -> Counter:
    """A choice's logarithmic odds of being right in these rows; 0 for one that is not in them."""
    right = Counter(right_of(row) for row in rows)
    shown = Counter(text for row in rows for text in row["choices"]["text"])
    return Counter({text: log((right[text] + 0.25) / (shown[text] - right[text] + 0.75) * 3) for text in shown})


def fitted_words(rows: list[dict]):
    """The same of single words: the mean over a choice's words."""
    right = Counter(word for row in rows for word in words(right_of(row)))
    shown = Counter(word for row in rows for text in row["choices"]["text"] for word in words(text))
    odds = Counter({w: log((right[w] + 0.25) / (shown[w] - right[w] + 0.75) * 3) for w in shown})
    return lambda text: mean(odds[word] for word in words(text))


def share_right(split: str, preference) -> float:
    """Accuracy of taking the choice that ``preference`` scores highest, ties broken at random."""
    shares = []
    for row in ROWS[split]:
        scores = [preference(text) for text in row["choices"]["text"]]
        best = [letter for letter, score in zip(LETTERS, scores, strict=True) if score == max(scores)]
        shares.append((row["answerKey"] in best) / len(best))
    return mean(shares)


@each_split
def test_every_letter_is_right_equally_often(split):
    counts = Counter(row["answerKey"] for row in ROWS[split])
    assert all(abs(counts[letter] - len(ROWS[split]) / 4) <= 1 for letter in LETTERS), counts


@each_split
def test_letters_are_not_predictable_from_the_question_before(split):
    # a balanced but regular order (ABCDABCD …) would be as easy as an unbalanced one
    keys = [LETTERS.index(row["answerKey"]) for row in ROWS[split]]
    steps = Counter((b - a) % 4 for a, b in itertools.pairwise(keys))
    assert max(steps.values()) / len(keys) < 0.34, steps


@each_split
def test_the_right_answer_is_strictly_the_longest_in_at_most_two_fifths(split):
    longest = [
        all(len(right_of(row)) > len(text) for text in row["choices"]["text"] if text != right_of(row))
        for row in ROWS[split]
    ]
    assert mean(longest) <= 0.4


@each_split
@pytest.mark.parametrize("preference", [len, lambda text: -len(text)], ids=["longest", "shortest"])
def test_taking_the_longest_or_shortest_choice_is_near_chance(split, preference):
    # chance is 0.25; 0.07 is more than two standard errors of the smallest split
    assert share_right(split, preference) == pytest.approx(0.25, abs=0.07)


def test_in_test_every_answer_is_wrong_three_times_as_often_as_right():
    # so that no score of an answer by itself, learned wherever it may be, says anything about the question at hand
    right, wrong = Counter(), Counter()
    for row in ROWS["test"]:
        kind = KIND_OF[row["id"]]["kind"]
        for text in row["choices"]["text"]:
            (right if text == right_of(row) else wrong)[kind, text] += 1
    assert wrong == Counter({key: 3 * count for key, count in right.items()})


def test_answers_of_train_are_no_wrong_choices_elsewhere():
    # a model has seen their questions, and could rule them out
    for split in ("validation", "test"):
        right = {(KIND_OF[row["id"]]["kind"], right_of(row)) for s in SPLITS[1:] for row in ROWS[s]}
        for row in ROWS[split]:
            assert {(KIND_OF[row["id"]]["kind"], text) for text in row["choices"]["text"]} <= right, row


def test_in_train_its_own_answers_are_wrong_choices_about_as_often_as_others():
    wrong = Counter()
    for row in ROWS["train"]:
        kind = KIND_OF[row["id"]]
        own = {fact[1] for n, fact in enumerate(kind["facts"]) if SPLIT_OF[f"{kind['kind']}-{n:02d}"] == "train"}
        wrong.update(text in own for text in row["choices"]["text"] if text != right_of(row))
    share = (SHARES["train"] - 1) / (sum(SHARES.values()) - 1)  # its own right answer is none of them
    assert wrong[True] / wrong.total() == pytest.approx(share, abs=0.06)  # of 684; a standard error is 0.014


@pytest.mark.parametrize(
    "learned_from", [("train",), ("train", "validation")], ids=["from train", "from train and validation"]
)
def test_a_rule_that_sees_only_the_choices_is_at_chance_on_test(learned_from):
    rows = [row for split in learned_from for row in ROWS[split]]
    odds, by_words = fitted(rows), fitted_words(rows)
    shown = Counter(text for row in rows for text in row["choices"]["text"])
    for rule in (odds.__getitem__, lambda t: -odds[t], by_words, lambda t: -by_words(t), shown.__getitem__):
        assert share_right("test", rule) == pytest.approx(0.25, abs=0.035)  # 2.4 standard errors of 912 questions


def test_a_rule_that_sees_only_the_choices_is_near_chance_on_validation():
    odds, by_words = fitted(ROWS["train"]), fitted_words(ROWS["train"])
    for rule in (odds.__getitem__, lambda t: -odds[t], by_words, lambda t: -by_words(t)):
        assert share_right("validation", rule) == pytest.approx(0.25, abs=0.07)  # 2.4 standard errors of 228


# --- build.py --------------------------------------------------------------------------------------------------------


@pytest.fixture
def build(tmp_path):
    """build.py, imported by path and writing to a temporary folder that holds a copy of the facts."""
    module = load_script("data/everyday/build.py")
    shutil.copytree(FOLDER / "facts", tmp_path / "facts")
    module.HERE = tmp_path
    return module


def test_the_files_are_exactly_what_build_makes(build, tmp_path):
    build.main()
    for split in SPLITS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (FOLDER / f"{split}.jsonl").read_bytes(), (
            f"{split}.jsonl is out of date: run python data/everyday/build.py"
        )


def test_build_deals_every_fact_to_one_split_and_uses_all_phrasings(build):
    kind = {
        "kind": "made_up",
        "phrasings": ["what is {}?", "Name {}?", "Which is {}?"],
        "facts": [[f"subject {i}", f"right {i}", f"x {i}", f"y {i}", f"z {i}"] for i in range(24)],
        "alike": [list(range(0, 24, 2)), list(range(1, 24, 2))],
        "also_true": {0: list(range(1, 10)), 5: [6]},
    }
    out = build.questions_of(kind)
    assert {split: len(rows) for split, rows in out.items()} == SHARES
    rows = list(itertools.chain(*out.values()))
    assert sorted(row["id"] for row in rows) == [f"made_up-{i:02d}" for i in range(24)]
    assert Counter(row["question"].split()[0] for row in rows) == {"What": 8, "Name": 8, "Which": 8}
    for row in rows:
        number = int(row["id"][-2:])
        assert row["question"].endswith(f" subject {number}?")
        right, *wrong = row["choices"]
        assert right == f"right {number}"
        numbers = [int(text.split()[1]) for text in wrong]
        assert len(set(numbers)) == 3 and not {number, *kind["also_true"].get(number, [])} & set(numbers)


def test_build_refuses_a_kind_with_too_few_facts(build):
    with pytest.raises(ValueError):
        build.questions_of(
            {"kind": "short", "phrasings": ["{}?"], "facts": [["s", "a", "b", "c", "d"]] * 23, "alike": [range(23)]}
        )


def test_build_refuses_a_fact_of_which_too_many_answers_are_true(build):
    facts = [[f"subject {i}", f"right {i}"] for i in range(24)]
    kind = {"kind": "true", "phrasings": ["{}?"], "facts": facts, "alike": [list(range(24))]}
    with pytest.raises(networkx.NetworkXUnfeasible):
        build.questions_of({**kind, "also_true": {n: [m for m in range(24) if m != n] for n in range(24)}})


@pytest.mark.parametrize("count", [1, 6, 41])
def test_arrange_balances_letters_and_keeps_the_right_answer(build, count):
    rows = [{"id": str(i), "question": "?", "choices": [f"right {i}", "x", "y", "z"]} for i in range(count)]
    out = build.arrange(rows, "seed")
    assert sorted(row["id"] for row in out) == sorted(str(i) for i in range(count))
    assert all(right_of(row) == f"right {row['id']}" for row in out)
    counts = Counter(row["answerKey"] for row in out)
    assert max(counts[letter] for letter in LETTERS) - min(counts[letter] for letter in LETTERS) <= 1


# --- the dataset card ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def card() -> tuple[dict, str]:
    _, header, text = (FOLDER / "README.md").read_text("utf8").split("---\n", 2)
    return yaml.safe_load(header), text


def test_card_states_the_licence_in_its_header_and_its_text(card):
    header, text = card
    assert header["license"] == "cc0-1.0"
    assert "CC0 1.0" in text


def test_card_has_the_fields_that_the_hub_shows(card):
    header, _ = card
    assert header["language"] == ["en"]
    assert header["task_categories"] == ["multiple-choice"]
    assert header["pretty_name"]
    assert 1000 < sum(map(len, ROWS.values())) < 10000
    assert header["size_categories"] == ["1K<n<10K"]


def test_card_lists_one_existing_file_per_split(card):
    header, _ = card
    (config,) = header["configs"]
    assert {entry["split"]: entry["path"] for entry in config["data_files"]} == {s: f"{s}.jsonl" for s in SPLITS}
    assert all((FOLDER / entry["path"]).is_file() for entry in config["data_files"])


def test_card_states_the_right_counts(card):
    _, text = card
    stated = {name: int(count) for name, count in re.findall(r"^\| (\w+) +\| +(\d+) \|$", text, re.MULTILINE)}
    sizes = {split: len(rows) for split, rows in ROWS.items()}
    assert stated == {**sizes, "total": sum(sizes.values())}
    assert f"{len(KINDS)} kinds of fact" in text
    assert f"{sizes['test']} test questions" in text


def test_card_shows_a_row_as_it_stands_in_the_data(card):
    _, text = card
    row = json.loads(re.search(r"```json\n(.*?)\n```", text, re.DOTALL)[1])
    assert row in ROWS["train"]


# --- loading ---------------------------------------------------------------------------------------------------------


def test_folder_loads_through_datasets_without_a_network(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    loaded = datasets.load_dataset(str(FOLDER), cache_dir=str(tmp_path))
    assert list(loaded) == list(SPLITS)
    assert {split: loaded[split].to_list() for split in SPLITS} == ROWS
