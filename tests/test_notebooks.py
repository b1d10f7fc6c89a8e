"""Static checks of every committed notebook: run in order, no errors, small, no machine's paths, links that exist."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
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


def test_badge_and_set_up_cell_come_from_the_repository_setting(notebook):
    path, content = notebook
    head = "".join(content["cells"][0]["source"])
    slug = REPOSITORY.removeprefix("https://github.com/")
    assert f"https://colab.research.google.com/github/{slug}/blob/main/notebooks/{path.name}" in head
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


def test_linked_solutions_exist(notebook):
    path, content = notebook
    for link in re.findall(r"\]\((solutions/[^)#]+)\)", "".join("".join(c["source"]) for c in content["cells"])):
        assert (path.parent / link).is_file()
