"""Static checks of every committed notebook: run in order, no errors, small, no machine's paths, links that exist."""

import ast
import json
import re
import symtable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# tomllib is only in Python ≥ 3.11
REPOSITORY = re.search(r'^Repository = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf8"), re.M)[1]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.name)
def notebook(request):
    return request.param, json.loads(request.param.read_text("utf8"))


def cells(content, kind):
    return [c for c in content["cells"] if c["cell_type"] == kind and "".join(c["source"]).strip()]


def test_there_are_notebooks():
    assert NOTEBOOKS[0].name == "00_start_here.ipynb"


def test_code_was_run_top_to_bottom_without_errors(notebook):
    _, content = notebook
    code = cells(content, "code")
    assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1))
    assert not [o for c in code for o in c["outputs"] if o["output_type"] == "error"]


def test_it_is_small_and_carries_no_widget_state(notebook):
    path, content = notebook
    assert path.stat().st_size < 300_000
    assert len(content["cells"]) <= 36
    assert "widgets" not in content["metadata"]


def test_no_paths_of_a_machine_and_no_tokens(notebook):
    path, _ = notebook
    text = path.read_text("utf8")
    assert not re.search(r"/(home|Users|root|work|tmp)/|hf_[A-Za-z0-9]{20,}", text)


def test_badges_and_set_up_cell_come_from_the_repository_setting(notebook):
    path, content = notebook
    head = "".join(content["cells"][0]["source"])
    slug = REPOSITORY.removeprefix("https://github.com/")
    assert f"(https://colab.research.google.com/github/{slug}/blob/main/notebooks/{path.name})" in head
    assert f"(https://kaggle.com/kernels/welcome?src={REPOSITORY}/blob/main/notebooks/{path.name})" in head
    setup = "".join(cells(content, "code")[0]["source"])
    assert REPOSITORY in setup and "install" in setup
    assert not re.search(r"pip.*install.*\btorch\b", setup)  # Colab's own torch stays


def test_cells_are_short_and_figures_have_a_fallback(notebook):
    _, content = notebook
    for cell in cells(content, "code")[1:]:
        assert len("".join(cell["source"]).splitlines()) <= 25
        for output in cell["outputs"]:
            if "application/vnd.plotly.v1+json" in output.get("data", {}):
                assert "image/png" in output["data"]
        kinds = [kind for output in cell["outputs"] for kind in output.get("data", {})]
        if "application/vnd.jupyter.widget-view+json" in kinds:
            assert {"image/png", "text/html"}.intersection(kinds)  # a still, for readers without a kernel


def markdown(content):
    return ["".join(c["source"]) for c in cells(content, "markdown")]


def test_it_opens_with_title_question_and_the_only_set_up_cell(notebook):
    path, content = notebook
    assert [c["cell_type"] for c in content["cells"][:3]] == ["markdown", "markdown", "code"]
    title, question = markdown(content)[:2]
    number, _ = path.stem.split("_", 1)
    assert re.match(rf"# {number} · \S", title)
    assert re.search(r"^(CPU|GPU).* · .*\d.* (seconds?|minutes?) · .*\d [GM]B", title, re.M)  # device · time · memory
    for part in (r"\*\*The question\.\*\*", r"After this notebook you can\b.*\n+- ", r"\bYou need\b"):
        assert re.search(part, question), part
    setup, *rest = ["".join(c["source"]) for c in cells(content, "code")]
    assert len(setup.splitlines()) <= 12 and "renderers" not in setup  # plotly knows where it is
    assert "ivon_lora_lite.__version__" in setup and "torch.__version__" in setup
    assert not [source for source in rest if re.search(r"\bpip\b.*\binstall\b", source)]


def test_it_lets_the_reader_predict_and_checks_what_it_claims(notebook):
    _, content = notebook
    text = "\n".join(markdown(content))
    assert "**Predict first" in text and "**What to notice" in text
    assert sum("assert " in "".join(c["source"]) for c in cells(content, "code")) >= 3


def test_it_ends_with_exercises_solutions_recap_and_a_next_step(notebook):
    path, content = notebook
    text = markdown(content)
    _, exercises = "\n\n".join(text).split("\n## Exercises\n")
    exercises = exercises.split("\n## ")[0]
    asked = re.findall(r"^(\d)\. ", exercises, re.M)
    assert asked == [str(i + 1) for i in range(len(asked))] and 2 <= len(asked) <= 4
    assert f"](solutions/{path.stem}.md)" in exercises
    solutions = (path.parent / "solutions" / f"{path.stem}.md").read_text("utf8")
    assert solutions.startswith(f"# Solutions to {path.stem[:2]} · ")
    assert re.findall(r"^(\d)\. ", solutions, re.M) == asked
    assert re.search(r"^## Recap", text[-1], re.M) and re.search(r"\*\*Next\.\*\*", text[-1])
    if path != NOTEBOOKS[-1]:
        assert re.search(r"\]\(\d\d_\w+\.ipynb[)#]", text[-1].split("**Next.**")[1])


def test_links_lead_somewhere(notebook):
    path, content = notebook
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", "\n".join(markdown(content))):
        assert (path.parent / link).exists(), link


def test_every_solution_belongs_to_a_notebook_and_its_links_lead_somewhere():
    for path in sorted((ROOT / "notebooks" / "solutions").glob("*.md")):
        assert (ROOT / "notebooks" / f"{path.stem}.ipynb").is_file()
        for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", path.read_text("utf8")):
            assert (path.parent / link).exists(), (path.name, link)


SCOPES = (ast.FunctionDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def bound(tree: ast.AST) -> set[str]:
    """Names that a cell gives a value at its top level, also in loops."""
    inner = {id(n) for f in ast.walk(tree) if isinstance(f, SCOPES) for n in ast.walk(f)}
    names = (n for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    return {n.id for n in names if id(n) not in inner}


def globals_of(source: str) -> dict[str, set[str]]:
    """Function → the global names that it and what is defined in it read."""

    def read(table: symtable.SymbolTable) -> set[str]:
        return {s.get_name() for s in table.get_symbols() if s.is_global()}.union(*map(read, table.get_children()))

    return {child.get_name(): read(child) for child in symtable.symtable(source, "", "exec").get_children()}


def rebound(sources: list[str]) -> list[tuple[int, str]]:
    """(cell, name): later cells that give another value to what a control's callback reads, or a function in it."""
    functions: dict[str, set[str]] = {}
    found = []
    for k, source in enumerate(sources):
        functions |= globals_of(source)
        needed = set(re.findall(r"\.(?:observe|on_click)\((\w+)", source))
        while more := {name for f in needed for name in functions.get(f, ())} - needed:
            needed |= more
        if needed:
            found += [(j, n) for j, later in enumerate(sources) if j > k for n in bound(ast.parse(later)) & needed]
    return found


def test_no_cell_takes_away_what_a_slider_above_it_needs(notebook):
    """A callback that fails does so in silence: the slider moves, and nothing else does."""
    _, content = notebook
    code = ["".join(c["source"]) for c in cells(content, "code")]
    assert rebound([re.sub(r"(?m)^( *)[%!].*", r"\1pass", source) for source in code]) == []


def test_a_slider_that_is_taken_away_is_found():
    widget = "place = 1\ndef height():\n    return place\ndef redraw(_):\n    height()\nslider.observe(redraw)"
    assert rebound([widget, "x = [place for place in range(3)]", "for place in range(3):\n    pass"]) == [(2, "place")]
    assert rebound([widget.replace("def height()", "def height(place=place)"), "place = 2"]) == []
