"""Self-contained HTML: tables, reliability diagrams and the τ slider, without kernel and network."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping
from pathlib import Path

import plotly.io as pio
from plotly.offline import get_plotlyjs
from torch import Tensor

from .explore import LINE, PANELS, TITLES, reliability_bars, reliability_figure, table_html, tradeoff_figure
from .files import write_text
from .prediction import Scores, score
from .sweep import TauSweep

__all__ = ["report_html", "sweep_html"]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 980px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
table { border-collapse: collapse; margin: .6rem 0 } th, td { padding: .3rem .8rem; text-align: right }
thead th { border-bottom: 2px solid #1c2733 } tbody tr + tr > * { border-top: 1px solid #dde3ea }
.ci, .note { color: #5c6b7a; font-size: .85em } .note { margin-top: .2rem }
.controls { display: flex; gap: 1.4rem; align-items: center; flex-wrap: wrap }
input[type=range] { width: 320px } output { font-weight: 600; min-width: 3.2em; display: inline-block }
.side { display: flex; flex-wrap: wrap } .side > div { flex: 1 1 380px }
"""

# every number on the page was computed in Python; the script only picks the entry of the slider's position
SCRIPT = """
const data = JSON.parse(document.getElementById('data').textContent);
const slider = document.getElementById('tau'), mode = document.getElementById('mode');
const curves = document.querySelector('#curves .plotly-graph-div');
const diagram = document.querySelector('#reliability .plotly-graph-div');
function move() {
  const points = data[mode.value];
  const entry = points[Math.min(slider.value, points.length - 1)];
  document.getElementById('value').textContent = entry.tau;
  data.metrics.forEach((name, k) => {
    const [value, low, high] = entry[name], format = x => x.toFixed(3);
    document.getElementById('m-' + name).innerHTML =
      format(value) + " <span class='ci'>[" + format(low) + ', ' + format(high) + ']</span>';
    Plotly.restyle(curves, {x: [[entry.tau]], y: [[value]], name: 'τ = ' + entry.tau}, [data.markers[k]]);
  });
  Plotly.restyle(diagram, {y: [entry.bars[0]], 'marker.color': [entry.bars[1]]}, [0]);
}
function change() {
  const share = slider.value / slider.max;
  slider.max = data[mode.value].length - 1;
  slider.value = Math.round(share * slider.max);
  move();
}
slider.addEventListener('input', move); mode.addEventListener('change', change); change();
"""


def sweep_html(sweep: TauSweep, path: str | os.PathLike, title: str) -> Path:
    """The τ explorer as one file."""
    write_text(path, _page(title, _explorer(sweep)))
    return Path(path)


def report_html(
    path: str | os.PathLike,
    title: str,
    rows: Mapping[str, Scores],
    diagrams: Mapping[str, tuple[Tensor, Tensor]],
    sweep: TauSweep,
    note: str,
) -> Path:
    """The demo's report: table, reliability diagrams, τ explorer, provenance."""
    body = (
        f"<h2>Results</h2>{table_html(rows)}"
        f"<h2>Reliability</h2><p>Bars on the diagonal are calibrated; below it, overconfident. Darker bars hold more "
        f"questions.</p>{_div(reliability_figure(diagrams))}"
        f"<h2>Between the mean and the posterior</h2>{_explorer(sweep)}"
        f"<h2>Provenance</h2><p class='note'>{html.escape(note)}</p>"
    )
    write_text(path, _page(title, body))
    return Path(path)


def _explorer(sweep: TauSweep) -> str:
    figure = tradeoff_figure(sweep, sweep.taus[-1])
    sampled = [_entry(sweep, tau, False) for tau in sweep.taus]
    modes = f"<option value='sampled'>{sweep.samples} draws</option>"
    data = {"metrics": PANELS, "sampled": sampled}
    if sweep.linear is not None:
        data["linear"] = [_entry(sweep, tau, True) for tau in LINE]
        modes += "<option value='linear'>linearised, any τ</option>"
    data["markers"] = [i for i, trace in enumerate(figure.data) if trace.legendgroup == "now"]
    probs = sweep.at(sweep.taus[-1])
    cells = "".join(f"<td id='m-{name}'></td>" for name in PANELS)
    head = "".join(f"<th>{TITLES[name]}</th>" for name in PANELS)
    return (
        "<p>Draws come from N(m, τ·diag v): τ = 0 is the mean, τ = 1 the posterior.</p>"
        f"<div class='controls'><label>τ <input type='range' id='tau' min='0' max='{len(sampled) - 1}' "
        f"value='{len(sampled) - 1}'> <output id='value'></output></label><select id='mode'>{modes}</select></div>"
        f"<table><thead><tr>{head}</tr></thead><tbody><tr>{cells}</tr></tbody></table>"
        f"<div class='side'><div id='curves'>{_div(figure)}</div>"
        f"<div id='reliability'>{_div(reliability_figure({'reliability': (probs, sweep.labels)}))}</div></div>"
        f"<script type='application/json' id='data'>{json.dumps(data, ensure_ascii=False)}</script>"
        f"<script>{SCRIPT}</script>"
    )


def _entry(sweep: TauSweep, tau: float, linear: bool) -> dict:
    probs = sweep.at(tau, linear=linear)
    scores = score(probs, sweep.labels)
    entry = {name: [round(x, 4) for x in (scores[name], *scores.intervals[name])] for name in PANELS}
    return {"tau": round(tau, 4), "bars": reliability_bars(probs, sweep.labels), **entry}


def _div(figure) -> str:
    return pio.to_html(figure, full_html=False, include_plotlyjs=False, config={"displayModeBar": False})


def _page(title: str, body: str) -> str:
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body><h1>{html.escape(title)}</h1>{body}</body></html>"
    )
