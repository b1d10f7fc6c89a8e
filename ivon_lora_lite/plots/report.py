"""Self-contained HTML: tables, reliability diagrams and the τ slider, without kernel and network."""

import html
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import plotly.io as pio
from plotly.offline import get_plotlyjs
from torch import Tensor

from ..evaluation import METRICS, Scores, TauSweep, score
from ..files import write_text
from .explorer import CAPTION, MEAN
from .figures import (
    draws_text,
    first_tau,
    line_taus,
    path_figure,
    reliability_bars,
    reliability_figure,
    tradeoff_figure,
)
from .style import COLORS, INK
from .tables import STYLE, cell_html, flips_html, mean_probabilities, table_html

PAGE_STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff; max-width: 1080px; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.7rem; line-height: 1.2; margin-bottom: .4rem } h2 { font-size: 1.25rem; margin: 2.4rem 0 .4rem }
p { margin: .4rem 0 } .wide { overflow-x: auto }
body .ivon table { font-size: 15px; width: 100%; table-layout: fixed }
body .ivon .ci, body .ivon .note { font-size: 13px }
body .ivon.draws thead th { white-space: normal; vertical-align: bottom; font-size: 12px }
body .ivon.draws td { text-align: center } body .ivon.draws th { text-align: center }
body .ivon.draws th:first-child { text-align: left }
body .ivon th, body .ivon td { padding-right: 0 } body .ivon th:first-child { width: 18%; min-width: 0 }
.controls { display: flex; gap: 1rem 2.4rem; align-items: center; flex-wrap: wrap; background: #f4f7fb;
  border: 1px solid #dbe4ef; border-radius: 10px; padding: .8rem 1.2rem; margin: 1rem 0 }
.slider { flex: 1 1 300px; display: grid; grid-template-columns: 1fr 5.2em; align-items: center; column-gap: 1rem }
.slider output { font-size: 1.15rem; font-weight: 700; color: var(--now); white-space: nowrap }
input[type=range] { width: 100%; margin: 0; accent-color: var(--now) }
input[type=range]:focus-visible { outline: 3px solid var(--linear); outline-offset: 4px; border-radius: 8px }
.ticks { position: relative; height: 1.3em; font-size: 13px; opacity: .75 }
.ticks span { position: absolute; transform: translateX(-50%) }
fieldset { border: 0; margin: 0; padding: 0; display: flex }
fieldset label { cursor: pointer } fieldset input { position: absolute; opacity: 0 }
fieldset span { display: block; padding: .3rem .9rem; border: 1px solid #b9c7d8; background: #fff }
fieldset label:first-child span { border-radius: 8px 0 0 8px } fieldset label + label span { border-left: 0 }
fieldset label:last-child span { border-radius: 0 8px 8px 0 }
fieldset label:only-child span { border-radius: 8px }
fieldset input:checked + span { background: var(--ivon); border-color: var(--ivon); color: #fff }
fieldset input:focus-visible + span { outline: 3px solid var(--linear); outline-offset: 1px }
.side { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 1rem; align-items: center }
@media (max-width: 760px) {
  .side { grid-template-columns: minmax(0, 1fr) } .controls { padding: .8rem }
  body .ivon table { font-size: 13px } body .ivon th:first-child { width: 23% }
  body .ivon .ci { display: block; white-space: normal; font-size: 12px }
}
@media print { .controls { border: 0; background: none; padding: 0 } }
"""

# every number on the page was computed in Python; the script only picks the entry of the slider's position
SCRIPT = """
const data = JSON.parse(document.getElementById('data').textContent);
const slider = document.getElementById('tau'), ticks = document.getElementById('ticks');
const curves = document.querySelector('#curves .plotly-graph-div');
const diagram = document.querySelector('#reliability .plotly-graph-div');
const path = document.querySelector('#path .plotly-graph-div');
const row = document.querySelector('#live tbody tr:last-child');
let points = data.sampled;
function move() {
  const entry = points[slider.value], name = 'τ = ' + entry.tau;
  document.getElementById('value').textContent = name;
  slider.setAttribute('aria-valuetext', name);
  row.querySelector('th').textContent = entry.title;
  data.metrics.forEach((metric, k) => row.querySelector(`[data-metric=${metric}]`).innerHTML = entry.cells[k]);
  const at = {x: entry.values.map(() => [entry.tau]), y: entry.values.map(value => [value]), name: name};
  Plotly.restyle(curves, at, data.markers);
  Plotly.restyle(path, {x: [[entry.values[data.metrics.indexOf('nll')]]],
    y: [[entry.values[data.metrics.indexOf('acc')]]], hovertext: [[name]]}, [data.path]);
  const bars = entry.bars;
  Plotly.update(diagram, {y: [bars.y], customdata: [bars.customdata], 'marker.color': [bars.marker.color]},
    {'annotations[0].text': '<b>' + entry.title + '</b>'}, [0]);
  document.getElementById('flips').innerHTML = entry.flips;
}
function choose(mode) {
  // the slider stays at its τ, or at the nearest one there is
  const tau = points[Math.min(slider.value, points.length - 1)].tau;
  points = data[mode];
  const distance = points.map(entry => Math.abs(entry.tau - tau));
  slider.max = points.length - 1;
  slider.value = distance.indexOf(Math.min(...distance));
  const step = Math.max(1, Math.floor(points.length / 5));
  const label = (entry, i) => {
    const share = i / (points.length - 1 || 1);
    return `<span style='left: calc(8px + ${share} * (100% - 16px))'>${entry.tau}</span>`;
  };
  ticks.innerHTML = points.map(label).filter((_, i) => points.length < 10 || i % step == 0).join('');
  move();
}
slider.addEventListener('input', move);
for (const radio of document.querySelectorAll('[name=mode]'))
  radio.addEventListener('change', () => choose(radio.value));
choose('sampled');
"""


def sweep_html(sweep: TauSweep, path: str | os.PathLike, title: str = "The τ trade-off") -> Path:
    """Write the τ explorer as one self-contained file that needs no kernel and no network."""
    write_text(path, _page(title, _explorer(sweep)))
    return Path(path)


def report_html(
    path: str | os.PathLike,
    title: str,
    rows: Mapping[str, Scores],
    diagrams: Mapping[str, tuple[Tensor, Tensor]],
    sweep: TauSweep,
    note: str,
    verdict: Sequence[str] = (),
    example: str = "",
) -> Path:
    """The demo's report: table, verdict, reliability diagrams, τ explorer, one question's draws, provenance."""
    least = 260 * len(diagrams)  # on a phone the diagrams scroll
    said = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in verdict)
    example = f"<h2>One question, draw by draw</h2><div class='wide'>{example}</div>" if example else ""
    rivals = {title: scores for title, scores in rows.items() if title.startswith("AdamW")}
    body = (
        f"<h2>Results</h2><div class='wide'>{table_html(rows)}</div>"
        + (f"<h3>What the numbers allow to say</h3><ul id='verdict'>{said}</ul>" if said else "")
        + f"<h2>Reliability</h2><p>{CAPTION}</p><div class='wide'><div style='min-width: {least}px'>"
        f"{_div(reliability_figure(diagrams))}</div></div>"
        f"<h2>Between the mean and the posterior</h2>{_explorer(sweep, rivals)}{example}"
        f"<h2>Provenance</h2><div class='ivon'><p class='note'>{html.escape(note)}</p></div>"
    )
    write_text(path, _page(title, body))
    return Path(path)


def _explorer(sweep: TauSweep, rivals: Mapping[str, Mapping[str, float]] | None = None) -> str:
    start, mean = first_tau(sweep), mean_probabilities(sweep)
    figure, path = tradeoff_figure(sweep, start), path_figure(sweep, start, rivals)
    data = {"metrics": METRICS, "sampled": [_entry(sweep, tau, False) for tau in sweep.taus]}
    modes = {"sampled": draws_text(sweep.fewest)}
    if sweep.linear is not None:
        data["linear"] = [_entry(sweep, tau, True) for tau in line_taus(sweep)]
        modes["linear"] = "linearised, any τ"
    data["path"] = len(path.data) - 1
    data["markers"] = [i for i, trace in enumerate(figure.data) if trace.legendgroup == "now"]
    radios = "".join(
        f"<label><input type='radio' name='mode' value='{mode}'{' checked' * (mode == 'sampled')}><span>{text}</span>"
        "</label>"
        for mode, text in modes.items()
    )
    rows = {} if mean is None else {MEAN: score(mean, sweep.labels)}
    now = sweep.at(start, sweep.fewest)
    diagram = reliability_figure({f"τ = {start:g}": (now, sweep.labels)}).update_layout(height=400)
    last, at = len(sweep.taus) - 1, sweep.taus.index(start)
    equally = ""
    if sweep.fewest < sweep.samples:
        made = f"the row IVON in a table of results has all {draws_text(sweep.samples)} of τ = 1"
        equally = f" Every τ has {draws_text(sweep.fewest)} here, so that values of τ compare; {made}."
    content = json.dumps(data, ensure_ascii=False).replace("</", "<\\/")  # no tag in it ends the script
    return (
        "<p>Draws come from N(m, τ·diag v): τ = 0 is the mean, τ = 1 the posterior. Move τ and see what it does to "
        f"accuracy and calibration.{equally}</p>"
        "<div class='controls'><div class='slider'>"
        f"<input type='range' id='tau' min='0' max='{last}' value='{at}' aria-label='τ'><output id='value'></output>"
        f"<div class='ticks' id='ticks'></div></div><fieldset>{radios}</fieldset></div>"
        f"<div id='live' class='wide'>{table_html({**rows, 'now': score(now, sweep.labels)})}</div>"
        f"<div class='side'><div id='curves'>{_div(figure)}</div><div id='reliability'>{_div(diagram)}"
        f"<div class='ivon'><p class='note'>{CAPTION}</p></div></div></div>"
        f"<h3>Accuracy against NLL</h3><div id='path'>{_div(path)}</div><div id='flips'></div>"
        f"<script type='application/json' id='data'>{content}</script>"
        f"<script>{SCRIPT}</script>"
    )


def _entry(sweep: TauSweep, tau: float, linear: bool) -> dict:
    probs = sweep.at(tau, None if linear else sweep.fewest, linear=linear)
    scores = score(probs, sweep.labels)
    kind = "linearised" if linear else draws_text(min(sweep.fewest, sweep.drawn[sweep.taus.index(tau)]))
    return {
        "tau": round(tau, 4),
        "title": f"τ = {tau:g}, {kind}",
        "values": [round(scores[name], 4) for name in METRICS],
        "cells": [cell_html(scores, name) for name in METRICS],
        "bars": reliability_bars(probs, sweep.labels),
        "flips": flips_html(sweep, probs, None),
    }


def _div(figure) -> str:
    config = {"displayModeBar": False, "responsive": True}
    return pio.to_html(figure, full_html=False, include_plotlyjs=False, config=config)


def _page(title: str, body: str) -> str:
    colors = "".join(f"--{name}: {color};" for name, color in {"ink": INK, **COLORS}.items())
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<meta name='viewport' content='width=device-width'><style>:root {{{colors}}}{STYLE}{PAGE_STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body><h1>{html.escape(title)}</h1>{body}</body></html>"
    )
