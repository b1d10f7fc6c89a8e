"""Checks of the embedded data set data/everyday: format, balance, leaks between splits, and its dataset card."""

import itertools
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from statistics import mean

import datasets
import pytest
import yaml
from conftest import load_script

FOLDER = Path(__file__).parents[2] / "data" / "everyday"
SPLITS = ("train", "validation", "test")
LETTERS = "ABCD"
AT_LEAST = {"train": 640, "validation": 160, "test": 400}


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
def test_split_is_large_enough(split):
    assert len(ROWS[split]) >= AT_LEAST[split]


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
    assert set(kind) == {"kind", "topic", "phrasings", "facts"}
    assert len(set(kind["phrasings"])) >= 3
    assert all(phrasing.count("{}") == 1 and phrasing.endswith("?") for phrasing in kind["phrasings"])
    assert all(len(fact) == 5 and all(isinstance(text, str) for text in fact) for fact in kind["facts"])
    subjects, answers = ({fact[i].casefold() for fact in kind["facts"]} for i in (0, 1))
    assert len(subjects) == len(kind["facts"])
    assert len(answers) >= 8  # so that the kind alone does not give the answer


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["kind"])
def test_kind_is_in_every_split_in_the_stated_shares(kind):
    ids = [f"{kind['kind']}-{number:02d}" for number in range(len(kind["facts"]))]
    assert Counter(SPLIT_OF[id] for id in ids) == {"train": 12, "validation": 4, "test": 8}


def test_every_question_shows_the_choices_of_its_fact_and_names_its_subject():
    assert SPLIT_OF.keys() == FACTS.keys()
    for row in itertools.chain(*ROWS.values()):
        subject, right, *wrong = FACTS[row["id"]]
        assert right_of(row) == right, row
        assert sorted(row["choices"]["text"]) == sorted([right, *wrong]), row
        assert subject[1:] in row["question"], row  # its first letter may have become a capital


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


@pytest.mark.parametrize("split", ["validation", "test"])
def test_choices_that_were_right_or_wrong_in_train_give_little_away(split):
    right = Counter(right_of(row) for row in ROWS["train"])
    wrong = Counter(text for row in ROWS["train"] for text in row["choices"]["text"]) - right
    assert share_right(split, lambda text: right[text]) <= 0.3
    # most right answers occur once and wrong ones recur, so that the opposite is worth a little: see the card
    assert share_right(split, lambda text: (-right[text], wrong[text])) <= 0.4


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
    }
    out = build.questions_of(kind)
    assert {split: len(rows) for split, rows in out.items()} == {"train": 12, "validation": 4, "test": 8}
    rows = list(itertools.chain(*out.values()))
    assert sorted(row["id"] for row in rows) == [f"made_up-{i:02d}" for i in range(24)]
    assert Counter(row["question"].split()[0] for row in rows) == {"What": 8, "Name": 8, "Which": 8}
    for row in rows:
        number = int(row["id"][-2:])
        assert row["question"].endswith(f" subject {number}?")
        assert row["choices"] == kind["facts"][number][1:]


def test_build_refuses_a_kind_with_too_few_facts(build):
    with pytest.raises(ValueError):
        build.questions_of({"kind": "short", "phrasings": ["{}?"], "facts": [["s", "a", "b", "c", "d"]] * 23})


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
