"""The site: built without a warning, read without a network."""

from __future__ import annotations

import pytest
from conftest import ROOT, load_script


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for name in ("sphinx", "myst_nb", "furo"):
        pytest.importorskip(name)
    target = tmp_path_factory.mktemp("built") / "site"
    assert load_script("docs/site.py").main(target) == 0  # warnings are errors, broken links among them
    return target


@pytest.mark.slow
def test_three_pages_are_whole_without_a_network(site, offline):
    start = offline(site / "index.html")
    assert "Finetune a language model" in start.inner_text("article")
    assert start.locator("article img").count() >= 1
    names = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    linked = start.eval_on_selector_all(".sidebar-tree a", "links => links.map(a => a.getAttribute('href'))")
    assert {f"notebooks/{name}.html" for name in names} <= set(linked)

    lesson = offline(site / "notebooks" / "00_start_here.html")
    lesson.wait_for_selector(".js-plotly-plot .main-svg")  # a live figure, not its picture
    lesson.wait_for_selector("mjx-container")
    assert lesson.locator(".js-plotly-plot").count() >= 2

    explorer = offline(site / "_static" / "tau.html")
    before = explorer.inner_text("#live tbody tr:last-child")
    explorer.locator("#tau").focus()
    explorer.keyboard.press("ArrowLeft")
    assert explorer.inner_text("#live tbody tr:last-child") != before


@pytest.mark.slow
def test_every_subpackage_has_its_reference(site):
    page = (site / "docs" / "api.html").read_text("utf8")
    for name in ("ivon.IVON", "posterior.GaussianPosterior", "training.finetune"):
        assert f'id="ivon_lora_lite.{name}"' in page
    rooms = {path.parent.name for path in (ROOT / "ivon_lora_lite").glob("*/__init__.py")} - {"cli"}
    assert set(load_script("docs/site.py").ROOMS) == rooms
