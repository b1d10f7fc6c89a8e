"""Build train/validation/test.jsonl from facts/*.yaml: `python data/everyday/build.py` (deterministic, needs PyYAML).

Every fact becomes exactly one question in exactly one split. Within each kind of fact, 12 facts go to train, 4 to
validation and 8 to test; phrasings rotate; right answers are spread evenly over A–D within each split.
"""

import json
import random
from pathlib import Path

import yaml

HERE = Path(__file__).parent
SHARES = {"train": 12, "validation": 4, "test": 8}
LABELS = "ABCD"


def questions_of(kind: dict) -> dict[str, list[dict]]:
    """The questions of one kind, by split; choices in the order right, wrong, wrong, wrong."""
    rng = random.Random(kind["kind"])
    rows = list(enumerate(kind["facts"]))
    rng.shuffle(rows)
    out: dict[str, list[dict]] = {split: [] for split in SHARES}
    splits = [split for split, share in SHARES.items() for _ in range(share)]
    for position, (split, (number, (subject, *choices))) in enumerate(zip(splits, rows, strict=True)):
        phrasing = kind["phrasings"][position % len(kind["phrasings"])]
        question = phrasing.format(subject)
        out[split].append(
            {"id": f"{kind['kind']}-{number:02d}", "question": question[0].upper() + question[1:], "choices": choices}
        )
    return out


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
    pools: dict[str, list[dict]] = {split: [] for split in SHARES}
    for kind in kinds:
        for split, rows in questions_of(kind).items():
            pools[split] += rows
    for split, rows in pools.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in arrange(rows, f"everyday {split}")]
        (HERE / f"{split}.jsonl").write_text("\n".join(lines) + "\n", "utf8")
        print(f"{split}: {len(lines)} questions of {len(kinds)} kinds")


if __name__ == "__main__":
    main()
