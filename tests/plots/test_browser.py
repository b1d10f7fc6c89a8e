"""What a reader sees: the self-contained page from a file without network, and the explorer in JupyterLab."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("plotly")

import ivon_lora_lite
from ivon_lora_lite import Linearized, TauSweep, reliability
from ivon_lora_lite.evaluation import METRICS
from ivon_lora_lite.plots import MEAN, flips_html, line_taus, report_html, sweep_html

TAUS = (0.0, 0.1, 0.5, 1.0)


@pytest.fixture(scope="module")
def sweep():
    """Random overconfident logits of 60 questions; no model is involved."""
    generator = torch.Generator().manual_seed(4)
    n, c = 60, 4
    labels = torch.randint(c, (n,), generator=generator)
    mean = 2 * torch.randn(n, c, generator=generator)
    mean[torch.arange(n), labels] += 2
    root = torch.randn(n, c, c, generator=generator)
    noise = torch.einsum("nij,snj->sni", root, torch.randn(5, n, c, generator=generator))
    logits = torch.stack([mean + tau**0.5 * noise for tau in TAUS])
    return TauSweep(TAUS, logits, labels, Linearized(mean, root @ root.mT, labels))


def texts(scores):
    """The text of the four cells of a table's row."""
    return ["{:.3f} [{:.3f}, {:.3f}]".format(scores[name], *scores.intervals[name]) for name in METRICS]


def flips_text(sweep, tau, linear, samples=5):
    return re.sub("<[^>]*>", "", flips_html(sweep, sweep.at(tau, samples, linear=linear), None))


# what stands in the last row of the table, and where plotly has the markers, the bars and the title above them
SHOWN = """
table => {
  const [curves, diagram] = document.querySelectorAll('.js-plotly-plot');
  const row = table.querySelector('tbody tr:last-child');
  const now = curves.data.filter(trace => trace.legendgroup === 'now');
  return {
    rows: [...table.querySelectorAll('tbody th')].map(cell => cell.textContent),
    cells: [...row.querySelectorAll('td')].map(cell => cell.textContent),
    markers: now.map(trace => [trace.x[0], trace.y[0]]),
    legend: now[0].name,
    bars: Array.from(diagram.data[0].y),
    counts: Array.from(diagram.data[0].customdata),
    title: diagram.layout.annotations[0].text,
  };
}
"""


def assert_shown(shown, sweep, tau, linear, samples=5):
    scores, probs = sweep.scores(tau, samples, linear=linear), sweep.at(tau, samples, linear=linear)
    name = f"τ = {tau:g}, {'linearised' if linear else f'{samples} draws'}"
    assert shown["rows"] == [MEAN, name]
    assert shown["cells"] == texts(scores)
    assert [x for x, _ in shown["markers"]] == pytest.approx([tau] * 4)
    assert [y for _, y in shown["markers"]] == pytest.approx([scores[name] for name in METRICS], abs=6e-5)
    assert shown["legend"] == f"τ = {tau:g}" and shown["title"] == f"<b>{name}</b>"
    table = reliability(probs.double(), sweep.labels)
    assert shown["bars"] == pytest.approx(table.accuracy.nan_to_num(0.0).tolist(), abs=6e-5)
    assert shown["counts"] == (table.weight * len(sweep.labels)).round().tolist()


def assert_tidy(page, plots):
    """The figures do not cover each other, nothing is cut at the sides, and no label is too small to read."""
    boxes = [plot.bounding_box() for plot in plots.all()]
    assert len(boxes) >= 2
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            beside = a["x"] + a["width"] <= b["x"] + 1 or b["x"] + b["width"] <= a["x"] + 1
            below = a["y"] + a["height"] <= b["y"] + 1 or b["y"] + b["height"] <= a["y"] + 1
            assert beside or below, (a, b)
    sizes = "plots => plots.flatMap(p => [...p.querySelectorAll('text')].map(t => getComputedStyle(t).fontSize))"
    assert min(float(size.removesuffix("px")) for size in plots.evaluate_all(sizes)) >= 12
    for plot in plots.all():  # the drawing is as wide as its place
        inner = plot.locator("svg.main-svg").first.bounding_box()
        assert inner["width"] <= plot.bounding_box()["width"] + 1


# ---------------------------------------------------------------------------------------------------------------- page


@pytest.mark.slow
def test_the_slider_of_the_page_shows_what_scores_gives(sweep, offline, tmp_path):
    page = offline(sweep_html(sweep, tmp_path / "sweep.html", "A <b>title</b>"))
    assert page.title() == page.locator("h1").inner_text() == "A <b>title</b>"
    table, slider, grids = page.locator("#live table"), page.locator("#tau"), {False: TAUS, True: line_taus(sweep)}

    def check(tau, linear):
        assert_shown(table.evaluate(SHOWN), sweep, tau, linear)
        scores = sweep.scores(tau, 5, linear=linear, intervals=False)
        last = "plot => { const now = plot.data.at(-1); return [now.x[0], now.y[0]]; }"
        on_path = page.locator("#path .js-plotly-plot").evaluate(last)
        assert on_path == pytest.approx([scores["nll"], scores["acc"]], abs=6e-5)
        assert page.locator("#value").inner_text() == slider.get_attribute("aria-valuetext") == f"τ = {tau:g}"
        assert page.locator("#flips").inner_text() == flips_text(sweep, tau, linear)

    check(1.0, False)  # it starts at the posterior, with draws
    slider.focus()
    for tau in TAUS[-2::-1]:
        page.keyboard.press("ArrowLeft")
        check(tau, False)
    page.get_by_text("linearised, any τ").click()
    check(0.0, True)
    for tau in grids[True][1:4]:
        slider.focus()
        page.keyboard.press("ArrowRight")
        check(tau, True)
    for index in (20, 7):  # 1 and 0.35, as when the slider is dragged
        slider.evaluate("(s, i) => { s.value = i; s.dispatchEvent(new Event('input')); }", index)
        check(grids[True][index], True)
    page.get_by_role("radio", name="5 draws").check(force=True)
    check(0.5, False)  # of 0, 0.1, 0.5 and 1 the nearest to 0.35
    page.get_by_role("radio", name="linearised").focus()
    page.keyboard.press("Space")
    check(0.5, True)


@pytest.mark.slow
def test_the_labels_below_the_slider_are_the_taus(sweep, offline, tmp_path):
    page = offline(sweep_html(sweep, tmp_path / "sweep.html"))
    assert page.locator("#ticks span").all_inner_texts() == ["0", "0.1", "0.5", "1"]
    page.get_by_text("linearised, any τ").click()
    assert page.locator("#ticks span").all_inner_texts() == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


@pytest.mark.slow
def test_a_sweep_without_a_linear_part_offers_draws_only(sweep, offline, tmp_path):
    plain = TauSweep(sweep.taus, sweep.logits, sweep.labels)
    page = offline(sweep_html(plain, tmp_path / "sweep.html"))
    assert page.locator("[name=mode]").count() == 1
    page.locator("#tau").press("Home")
    assert_shown(page.locator("#live table").evaluate(SHOWN), sweep, 0.0, False)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 800, 390])
def test_the_report_is_tidy_at_every_width(sweep, offline, tmp_path, width):
    scores = {"AdamW": sweep.scores(0.0), "IVON": sweep.scores(1.0)}
    diagrams = {title: (sweep.at(tau), sweep.labels) for title, tau in (("AdamW", 0.0), ("IVON", 1.0))}
    page = offline(report_html(tmp_path / "report.html", "Report", scores, diagrams, sweep, "made <by> hand"))
    page.set_viewport_size({"width": width, "height": 900})
    page.reload()
    assert page.get_by_text("made <by> hand").is_visible()
    assert page.locator("table").first.locator("td").all_text_contents()[:4] == texts(scores["AdamW"])
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert_tidy(page, page.locator(".js-plotly-plot"))


# ---------------------------------------------------------------------------------------------------------- JupyterLab


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab of its own, which sees nothing of the user's settings and asks nothing of the net."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    pytest.importorskip("anywidget", reason="anywidget is not installed")
    folder, home = tmp_path / "notebooks", tmp_path / "home"
    folder.mkdir()
    places = {"HOME": "", "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    environment = {**os.environ, **{name: str(home / place) for name, place in places.items()}}
    environment |= {"IPYTHONDIR": str(home / "ipython"), "PYTHONPATH": str(Path(ivon_lora_lite.__file__).parents[1])}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0", "--ip=127.0.0.1"]
    command += ["--IdentityProvider.token=secret", f"--ServerApp.root_dir={folder}"]
    command += [
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly",
    ]
    log = tmp_path / "lab.log"
    with open(log, "w") as out:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 120
        while not (found := list((home / "runtime").glob("jpserver-*.json"))):  # it says where it listens
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        port = json.loads(found[0].read_text())["port"]
        yield f"http://127.0.0.1:{port}/lab/tree/explore.ipynb?reset&token=secret", folder
    finally:
        server.send_signal(signal.SIGTERM)  # it stops the kernel too
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def code(source):
    return {"cell_type": "code", "id": "c1", "metadata": {}, "execution_count": None, "outputs": [], "source": source}


@pytest.mark.slow
def test_the_explorer_in_jupyterlab_shows_what_scores_gives(sweep, browser, lab):
    address, folder = lab
    sweep.save(folder / "sweep.safetensors")
    source = (
        "from ivon_lora_lite import TauExplorer, TauSweep\n\n"
        "sweep = TauSweep.load('sweep.safetensors')\nTauExplorer(sweep)"
    )
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = {"cells": [code(source)], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (folder / "explore.ipynb").write_text(json.dumps(notebook))

    page = browser.new_page(viewport={"width": 1400, "height": 1200})
    page.set_default_timeout(120_000)
    page.goto(address)
    page.get_by_text("| Idle").wait_for()  # before that, cells would run in a kernel that is about to be replaced
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    output = page.locator(".jp-OutputArea")
    plots, table = output.locator(".js-plotly-plot"), output.locator(".ivon table").first
    plots.nth(1).wait_for()

    def check(tau, linear=False, samples=5):
        deadline = time.monotonic() + 30  # kernel and page talk in several messages
        while True:
            try:
                assert flips_text(sweep, tau, linear, samples) in output.first.inner_text()
                return assert_shown(table.evaluate(SHOWN), sweep, tau, linear, samples)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
            page.wait_for_timeout(100)

    def slider(label):
        return output.locator(".widget-hslider:visible", has_text=label).locator(".noUi-handle")

    check(1.0)
    assert_tidy(page, plots)
    for tau in (0.5, 0.1):
        slider("τ").press("ArrowLeft")
        check(tau)
    slider("draws S").press("ArrowLeft")
    check(0.1, samples=4)
    output.get_by_role("button", name="linearised").click()
    check(0.1, linear=True)
    slider("τ").press("ArrowRight")
    check(0.11, linear=True)
    assert output.locator(".widget-hslider:visible").count() == 1  # the number of draws means nothing here
    assert output.locator("[data-mime-type*=error], [data-mime-type*=stderr]").count() == 0
    page.close()
