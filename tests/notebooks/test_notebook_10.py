"""Notebook 10: what it shows beside the library, its sliders, and what it says of the recorded results."""

import json
import math
import statistics

import ipywidgets
import plotly.graph_objects as go
import pytest
import torch
from cells import NOTEBOOKS, defined_in
from transformers import AutoModelForCausalLM, LlamaConfig

from ivon_lora_lite import plots
from ivon_lora_lite.gates import hard_concrete as library
from ivon_lora_lite.gates import quantize
from ivon_lora_lite.studies import recorded

NAME = "10_bayesian_gates.ipynb"


@pytest.fixture(scope="module")
def shown():
    names = ("parts_of", "gated_sum", "hard_concrete", "open_probability", "mean_of_rounded", "sort_directions")
    given = {"BITS": (2, 4, 8, 16, 32), "BETA": 2 / 3, "ZETA": 1.1, "GAMMA": -0.1}
    return defined_in(NAME, *names, torch=torch, math=math, **given)


@pytest.fixture(scope="module")
def cells():
    return json.loads((NOTEBOOKS / NAME).read_text("utf8"))["cells"]


@pytest.fixture(scope="module")
def text(cells):
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def run_cell(cells, containing: str, **given) -> dict:
    """Execute the one code cell that contains a string."""
    (source,) = ["".join(c["source"]) for c in cells if c["cell_type"] == "code" and containing in "".join(c["source"])]
    exec(source, given)
    return given


def test_its_quantiser_is_the_librarys(shown):
    x = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = torch.tensor(1.3, dtype=torch.float64)
    for gates in ([1, 1, 1, 1], [1, 0, 1, 1], [0.3, 0.9, 0.5, 0.1], [0, 0, 0, 0]):
        ours = quantize(x, a, torch.tensor(gates, dtype=torch.float64))
        torch.testing.assert_close(shown["gated_sum"](shown["parts_of"](x, a), gates), ours, rtol=0, atol=1e-14)


def test_its_gate_is_the_librarys(shown):
    u = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for phi in (-2.0, 0.1, 3.0):
        phi = torch.tensor(phi, dtype=torch.float64)
        torch.testing.assert_close(shown["hard_concrete"](phi, u), library.hard_concrete(phi, u))
        torch.testing.assert_close(shown["open_probability"](phi), library.probability_open(phi))


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0])
def test_the_mean_of_rounded_draws_against_monte_carlo(shown, sigma):
    m = torch.tensor([-1.2, -0.5, 0.0, 0.4, 0.7], dtype=torch.float64)
    noise = torch.randn(400_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.round(m + sigma * noise).mean(0)
    torch.testing.assert_close(shown["mean_of_rounded"](m, sigma), expected, rtol=0, atol=0.01)
    scaled = shown["mean_of_rounded"](0.2 * m, 0.2 * sigma, step=0.2)
    torch.testing.assert_close(scaled, 0.2 * shown["mean_of_rounded"](m, sigma))


def test_sorted_directions_have_the_same_product_and_sizes_that_fall(shown):
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(8, 32, generator=g, dtype=torch.float64), torch.randn(24, 8, generator=g, dtype=torch.float64)
    new_a, new_b = shown["sort_directions"](a, b)
    torch.testing.assert_close(new_b @ new_a, b @ a)
    sizes = new_a.norm(dim=1) * new_b.norm(dim=0)
    torch.testing.assert_close(sizes, torch.linalg.svdvals(b @ a)[:8])
    gram = new_a @ new_a.T
    torch.testing.assert_close(gram, gram.diagonal().diag())


def test_the_sliders_over_gates_round_as_equation_1_says(cells, shown):
    names = {"go": go, "ipywidgets": ipywidgets, "parts_figure": plots.parts_figure}
    made = run_cell(cells, "FloatSlider", **names, **shown)
    sliders, bars = made["sliders"], made["bars"].data[0]

    def value(**gates) -> float:
        for name, slider in sliders.items():
            slider.value = gates.get(name, 0.37 if name == "x" else 1.0)
        return float(made["readout"].value.split("<b>")[1].split("<")[0])

    assert value() == pytest.approx(0.37, abs=1e-8)
    assert all(size > 1e-11 for size in bars.y)  # all five levels can be seen
    assert value(z8=0) == value(z8=0, z16=0.5) == pytest.approx(0.4)
    assert list(bars.y[2:]) == [None] * 3
    assert value(z4=0) == pytest.approx(2 / 3)
    assert value(z4=0.5, z8=0) == pytest.approx((0.4 + 2 / 3) / 2)


def test_the_slider_over_the_price_shows_the_runs_of_this_price(cells):
    mus = (0.0, 0.1, 1.0)
    found = {mu: [{"rank": 8 - k, "error": 0.1 + mu, "share": 0.5, "path": [4.0, mu]} for k in range(5)] for mu in mus}
    best = {mu: [((2, 8), (0.2, 0.25))] * 5 for mu in mus}
    names = {"torch": torch, "go": go, "ipywidgets": ipywidgets, "prices_figure": plots.prices_figure}
    made = run_cell(cells, "SelectionSlider", MUS=mus, found=found, best=best, **names)
    for mu in (1.0, 0.0, 0.1):
        made["price"].value = mu
        assert f"μ = {mu:g}: ranks 8, 7, 6, 5, 4." in made["about"].value
        assert (
            f"gates <b>{0.1 + mu + 0.5 * mu:.3f}</b>, cut and rounded <b>{0.2 + 0.25 * mu:.3f}</b>"
            in made["about"].value
        )
        assert list(made["path"].y) == pytest.approx([4.0, mu])
        assert list(made["now"].x) == [0.5] * 5 + [0.25] * 5 and made["now"].y[0] == pytest.approx(0.1 + mu)


@pytest.fixture(scope="module")
def methods():
    return {
        task: json.loads((recorded("gates") / f"{task}-summary.json").read_text("utf8"))["methods"]
        for task in ("everyday", "arc_easy")
    }


def test_what_it_says_of_the_recorded_scores(methods, text):
    rows = methods["everyday"]

    def mean(name, metric):
        return rows[name][metric]["mean"]

    gates, four, full = "gated-mu0.01", "lora-r8-4bit", "lora-r8"
    assert 0.73 < 1 - mean(gates, "share") < 0.77 and mean(four, "share") == 0.25 == mean("lora-r2", "share")
    assert max(abs(mean(name, "acc") - mean(full, "acc")) for name in (gates, four)) < 0.01
    assert 0.095 < mean(full, "acc") - mean("lora-r2", "acc") < 0.105
    assert mean(four, "nll") < mean(gates, "nll") - 0.01
    assert mean("lora-r8-2bit", "acc") > mean("gated-mu0.1", "acc") and mean("gated-mu0.1", "share") < 0.125
    assert mean("lora-r8-2bit", "nll") < mean("gated-mu0.1", "nll") and mean("gated-mu1", "share") < 0.02
    for name in rows.keys() - {"adalora"}:
        assert mean("adalora", "acc") > mean(name, "acc") and mean("adalora", "nll") < mean(name, "nll")
    rows = methods["arc_easy"]
    said = [f"{mean(name, metric):.3f}" for name in (gates, four, full) for metric in ("acc", "nll")]
    assert said == ["0.587", "1.042", "0.595", "1.010", "0.593", "1.007"]
    assert all(number in text for number in said) and round(1 - mean(gates, "share"), 2) == 0.79


def test_what_it_says_of_the_recorded_ranks():
    def ranks(mu: str, kind: str) -> list[list[int]]:
        files = sorted(recorded("gates").glob(f"everyday-gated-mu{mu}-seed*.json"))
        own = [json.loads(file.read_text("utf8"))["gates"] for file in files]
        return [[row["rank"] for name, row in gates.items() if f"{kind}_proj" in name] for gates in own]

    def alike(kind: str) -> torch.Tensor:
        return torch.corrcoef(torch.tensor(ranks("0.1", kind)).float())[torch.triu_indices(3, 3, 1).unbind()]

    low = [row for kind in "qv" for row in ranks("0.01", kind)]
    closed = [k for row in low for k, rank in enumerate(row) if rank < 8]
    assert len(closed) < 0.25 * 6 * 30 and sum(k >= 24 for k in closed) > len(closed) / 2
    for row in ranks("0.1", "v"):
        assert statistics.fmean(row[:20]) > 7.5 and statistics.fmean(row[23:]) < 1
    assert alike("v").min() > 0.9 > 0.7 > alike("q").max()
    assert statistics.fmean(sum(ranks("0.1", "q"), [])) < statistics.fmean(sum(ranks("0.1", "v"), []))


def test_the_multiplications_that_it_counts(text):
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    with torch.device("meta"):  # shapes of SmolLM2-135M, without memory
        model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=49152, num_key_value_heads=3, **sizes))
    frozen = sum(m.weight.numel() for m in model.model.modules() if isinstance(m, torch.nn.Linear))
    lora = 30 * 8 * (576 + 576 + 576 + 192)
    assert f"{frozen:,}" in text and f"{lora:,}" in text and lora / frozen < 0.005
