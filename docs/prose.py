"""Every decimal number that prose shows has a source: a cell of the same notebook, or a record in data/ that it names.

A number may also stand in a formula, in backticks or in a link. Generated tables are compared with `data/` by tests.
Whole numbers are not looked at. `python docs/prose.py` lists what has no source; the tests ask for an empty list.
"""

from __future__ import annotations

import bisect
import csv
import json
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# (file, number as written) → why it needs no source
ALLOWED: dict[tuple[str, str], str] = {
    ("results.md", "4.2 M"): "parameters of LoRA at rank 8 on q and v of Llama-2-7B: 32 · 2 · 8 · (4096 + 4096)",
    ("02_ivon.ipynb", "4.2 million"): "the same",
    ("05_lora.ipynb", "6.7"): "billions of weights of Llama-2-7B",
    ("05_lora.ipynb", "0.024"): "1/√(3·576), as the sentence says",
    ("05_lora.ipynb", "0.75"): "6/8, as the sentence says",
    ("solutions/01_objective.md", "0.56"): "printed by the code above it",
    ("solutions/01_objective.md", "0.64"): "printed by the code above it",
    ("methods.md", "0.3 %"): "TFB's default tolerance, in methods/tfb.py",
    ("methods.md", "0.001"): "BLoB's default weight of the KL, in methods/blob.py",
    ("README.md", "0.006"): "smallest σ of the paper's preset, 1/√(1e8 · 3e-4) in presets.py",
}

NOT_PROSE = re.compile(
    r"<!-- ([\w ]+) table, made by .*?<!-- end of \1 table -->"  # generated
    r"|^ *(`{3,}|~{3,}).*?^ *\2"  # code
    r"|(?<!`)(`+)(?!`)(?:(?!\n\n).)+?(?<!`)\3(?!`)"
    r"|\$\$.+?\$\$|\$[^$\n]+\$"  # formulas
    r"|\]\([^)]*\)|https?://\S+|</?[a-zA-Z][^>\n]*>"  # links and tags
    r"|\b\d{4}\.\d{5}\b"  # arXiv
    r"|^[CG]PU · [^\n]*$"  # what a notebook needs
    r"|(?:[Ss]ections?|[Ee]quations?|[Ee]q\.|[Tt]able|[Ff]igure|§) ?\(?\d+\.\d+"
    r"|Python (?:≥|>=)? ?3\.\d+",
    re.S | re.M,
)
DECIMAL = re.compile(
    r"(?<![\w.])(?<![A-Za-z]-)(\d*)\.(\d+)"  # not v1.2, not Apache-2.0
    r"(?:[eE]([-+]?\d+))?"
    r"(?:\s?(%|M\b|million\b))?"
    r"(?!\.?\d|B\b)"  # not 0.1.2, not 0.5B
)
LONG = ("history", "p_right", "measures", "tensors")  # in records: logs, and a number for each question or weight
LONGEST = 20  # entries of a list that a reader looks through
ANY_NUMBER = re.compile(r"(?<![\w.])\d*\.?\d+(?:[eE][-+]?\d+)?")
FENCE = re.compile(r"^ *(`{3,}|~{3,})[^\n]*\n(.*?)^ *\1", re.S | re.M)


class Number(NamedTuple):
    text: str  # as written
    values: tuple[float, ...]  # what it may mean: 68.5 % is 68.5 or 0.685
    tolerances: tuple[float, ...]  # half a unit of the last digit shown


def decimals(markdown: str) -> list[Number]:
    """The decimal numbers in prose, without sign."""
    found = []
    for match in DECIMAL.finditer(NOT_PROSE.sub(" ¦ ", markdown)):
        whole, digits, exponent, unit = match.groups()
        power = int(exponent or 0)
        value, half = float(f"{whole or 0}.{digits}e{power}"), 0.5 * 10.0 ** (power - len(digits))
        scales = {"%": (1, 0.01), "M": (1, 1e6), "million": (1, 1e6)}.get(unit, (1,))
        found.append(Number(match[0], tuple(value * s for s in scales), tuple(half * s for s in scales)))
    return found


def without_source(markdown: str, sources: list[float]) -> list[str]:
    """The decimal numbers of a text that no source rounds to, as written."""
    ordered = sorted(map(abs, sources))

    def known(value: float, half: float) -> bool:
        slack = half * (1 + 1e-6)
        at = bisect.bisect_left(ordered, value - slack)
        return at < len(ordered) and ordered[at] <= value + slack

    return [n.text for n in decimals(markdown) if not any(map(known, n.values, n.tolerances))]


# ------------------------------------------------------------------------------------------------------------- sources


def numbers_in(text: str) -> list[float]:
    return [float(number) for number in ANY_NUMBER.findall(text)]


def numbers_of_json(content: object) -> list[float]:
    """The numbers of a JSON value, but no logs and no long lists: among their hundreds any number could be found."""
    if isinstance(content, dict):
        return [n for key, value in content.items() if key not in LONG for n in numbers_of_json(value)]
    if isinstance(content, list):
        return [n for value in content for n in numbers_of_json(value)] if len(content) <= LONGEST else []
    if isinstance(content, str):
        return []
    return [float(content)] if isinstance(content, (int, float)) and not isinstance(content, bool) else []


@lru_cache(maxsize=1)
def records() -> dict[str, tuple[float, ...]]:
    """Numbers per record: a folder or a file directly within data/ or data/runs/."""
    out: dict[str, list[float]] = {}
    for path in sorted((ROOT / "data").rglob("*")):
        parts = path.relative_to(ROOT / "data").parts
        name = parts[1] if parts[0] == "runs" and len(parts) > 1 else parts[0]
        if path.suffix == ".json":
            named = map(float, re.findall(r"\d+\.\d+", path.stem))  # such as ivon-lr0.2-sigma0.025
            out.setdefault(name, []).extend([*named, *numbers_of_json(json.loads(path.read_text("utf8")))])
        elif path.suffix == ".csv":
            with path.open(encoding="utf8", newline="") as file:
                cells = [cell for row in csv.reader(file) for cell in row]
            out.setdefault(name, []).extend(n for cell in cells for n in numbers_in(cell))
    return {name: tuple(numbers) for name, numbers in out.items()}


def numbers_of_named_records(text: str) -> list[float]:
    """Numbers of every record that the text names as a path or as code, so that a reader can look them up."""
    return [
        n
        for name, numbers in records().items()
        if re.search(rf"""(?:runs/|paper/|[`"'(]){re.escape(name)}(?![\w-])""", text)
        for n in numbers
    ]


def code_and_outputs(notebook: Path) -> str:
    """What a reader sees in and below the code cells, as text. Figures are not text."""
    out = []
    for cell in json.loads(notebook.read_text("utf8"))["cells"]:
        if cell["cell_type"] == "code":
            out.append("".join(cell["source"]))
            for output in cell["outputs"]:
                out.append("".join(output.get("text", "")))
                out.append("".join(output.get("data", {}).get("text/plain", "")))
                page = "".join(output.get("data", {}).get("text/html", ""))
                out.append(re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", page, flags=re.S))
    return "\n".join(out)


def prose_of(notebook: Path) -> str:
    content = json.loads(notebook.read_text("utf8"))
    return "\n\n".join("".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "markdown")


def violations(name: str, prose: str, shown: str) -> list[str]:
    """Numbers of ``prose`` that are neither in ``shown`` (code, outputs) nor in a named record nor allowed."""
    sources = numbers_in(shown) + numbers_of_named_records(prose + shown)
    return [text for text in without_source(prose, sources) if (name, text) not in ALLOWED]


def unsourced(path: Path) -> list[str]:
    """The numbers without a source of a notebook, of its solutions, or of a page."""
    if path in NOTEBOOKS:
        return violations(path.name, prose_of(path), code_and_outputs(path))
    text = path.read_text("utf8")
    shown = "\n".join(code for _, code in FENCE.findall(text))
    if path not in SOLUTIONS:
        return violations(path.name, text, shown)
    shown += code_and_outputs(ROOT / "notebooks" / f"{path.stem}.ipynb")
    return violations(f"solutions/{path.name}", text, shown)


def links(text: str) -> list[str]:
    """Relative links of a page, inline and by reference."""
    prose = FENCE.sub("", text)
    return re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose) + re.findall(r"^\[[^]]+\]: (?!https?:)(\S+)", prose, re.M)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


if __name__ == "__main__":
    found = {path: unsourced(path) for path in (*NOTEBOOKS, *SOLUTIONS, *PAGES)}
    for path, numbers in found.items():
        if numbers:
            print(f"{path.relative_to(ROOT)}: {', '.join(numbers)}")
    sys.exit(any(found.values()))
