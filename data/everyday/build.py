"""Build train/validation/test.jsonl from facts/*.yaml: `python data/everyday/build.py` (deterministic).

Needs PyYAML and networkx, which come with this package's environment.

Every fact becomes exactly one question in exactly one split. Within each kind of fact, 4 facts go to train, 4 to
validation and 16 to test; phrasings rotate; right answers are spread evenly over A–D within each split.

The three wrong choices of a question are right answers of other facts of its kind. In test every answer is a wrong
choice exactly three times as often as it is the right one, so that nothing about an answer alone, learned wherever it
may be, tells whether it is right. Validation takes its wrong choices from the facts of validation and test, train from
all facts of the kind, each fact at most once a split: answers of train never serve as wrong choices in the other two,
where a model could rule them out because it has seen their questions. `also_true` lists, for a fact, the facts whose
answers would be true of it too; `alike` groups facts whose answers have the same form.
"""

import json
import random
from collections import Counter
from pathlib import Path

import networkx
import yaml

HERE = Path(__file__).parent
DEAL = ["train"] * 4 + ["test"] * 8 + ["validation"] * 4 + ["test"] * 8  # keeps the first edition's test in test
WRONG_FROM = {"train": ("train", "validation", "test"), "validation": ("validation", "test"), "test": ("test",)}
LABELS = "ABCD"
WRONG = len(LABELS) - 1


def questions_of(kind: dict) -> dict[str, list[dict]]:
    """The questions of one kind, by split; choices in the order right, wrong, wrong, wrong."""
    rng = random.Random(kind["kind"])
    facts = kind["facts"]
    order = list(range(len(facts)))
    rng.shuffle(order)
    split_of = dict(zip(order, DEAL, strict=True))
    wrong = {split: wrong_choices(kind, split, split_of, rng) for split in WRONG_FROM}
    out: dict[str, list[dict]] = {split: [] for split in WRONG_FROM}
    for position, number in enumerate(order):
        split, (subject, right, *_) = split_of[number], facts[number]
        phrasing = kind["phrasings"][position % len(kind["phrasings"])]
        question = phrasing.format(subject)
        out[split].append(
            {
                "id": f"{kind['kind']}-{number:02d}",
                "question": question[0].upper() + question[1:],
                "choices": [right, *wrong[split][number]],
            }
        )
    return out


def wrong_choices(kind: dict, split: str, split_of: dict[int, str], rng: random.Random) -> dict[int, list[str]]:
    """Three wrong choices for every fact of a split: the cheapest flow from facts to answers.

    An answer is best if it was chosen for this fact by hand, next if it is alike; ties are broken at random.

    Raises:
        networkx.NetworkXUnfeasible: too many answers are also true.
    """
    facts, too_true = kind["facts"], kind.get("also_true", {})
    group_of = {number: i for i, group in enumerate(kind["alike"]) for number in group}
    answers = [number for number, where in split_of.items() if where in WRONG_FROM[split]]
    uses = Counter(facts[number][1] for number in answers)  # an answer may be right for two facts
    each = WRONG if split == "test" else 1
    asked = [number for number, where in split_of.items() if where == split]
    graph = networkx.DiGraph()
    for number in asked:
        graph.add_edge("source", number, capacity=WRONG, weight=0)
        untrue = {facts[n][1]: group_of[n] == group_of[number] for n in answers if n not in too_true.get(number, [])}
        for n in too_true.get(number, []):
            untrue.pop(facts[n][1], None)
        untrue.pop(facts[number][1], None)
        for answer, alike in untrue.items():
            cost = 0 if answer in facts[number][2:] else 10 if alike else 100
            graph.add_edge(number, ("answer", answer), capacity=1, weight=cost + rng.randrange(10))
    for answer, count in uses.items():
        graph.add_edge(("answer", answer), "sink", capacity=each * count, weight=0)
    graph.add_node("source", demand=-WRONG * len(asked))
    graph.add_node("sink", demand=WRONG * len(asked))
    flow = networkx.min_cost_flow(graph)
    return {number: [answer for (_, answer), taken in flow[number].items() if taken] for number in asked}


def arrange(rows: list[dict], seed: str) -> list[dict]:
    """Shuffle questions and choices; every letter is right equally often (± 1)."""
    rng = random.Random(seed)
    rng.shuffle(rows)
    places = [i % len(LABELS) for i in range(len(rows))]
    rng.shuffle(places)
    out = []
    for row, place in zip(rows, places, strict=True):
        right, *wrong = row["choices"]
        rng.shuffle(wrong)
        texts = [*wrong[:place], right, *wrong[place:]]
        out.append({**row, "choices": {"text": texts, "label": list(LABELS)}, "answerKey": LABELS[place]})
    return out


def main() -> None:
    kinds = [
        kind for path in sorted((HERE / "facts").glob("*.yaml")) for kind in yaml.safe_load(path.read_text("utf8"))
    ]
    pools: dict[str, list[dict]] = {split: [] for split in WRONG_FROM}
    for kind in kinds:
        for split, rows in questions_of(kind).items():
            pools[split] += rows
    for split, rows in pools.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in arrange(rows, f"everyday {split}")]
        (HERE / f"{split}.jsonl").write_text("\n".join(lines) + "\n", "utf8")
        print(f"{split}: {len(lines)} questions of {len(kinds)} kinds")


if __name__ == "__main__":
    main()
