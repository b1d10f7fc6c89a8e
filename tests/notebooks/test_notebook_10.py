"""Notebook 10: what it shows beside the library, and that it reads the committed recording or says there is none."""

import json
import math
import re

import pytest
import torch
from cells import NOTEBOOKS, defined_in

from ivon_lora_lite.gates import BayesianBits, RankGate, quantize
from ivon_lora_lite.gates import hard_concrete as library

NAME = "10_bayesian_gates.ipynb"


@pytest.fixture(scope="module")
def shown():
    names = ("parts_of", "gated_sum", "hard_concrete", "open_probability", "expected_bits", "expected_rank")
    given = {"BITS": (2, 4, 8, 16, 32), "BETA": 2 / 3, "ZETA": 1.1, "GAMMA": -0.1}
    return defined_in(NAME, *names, "mean_of_rounded", torch=torch, math=math, **given)


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


def test_its_expectations_are_the_librarys(shown):
    bits, rank = BayesianBits(torch.ones(2, 2), start=0.0), RankGate(5, start=0.0)
    with torch.no_grad():
        bits.phi.copy_(torch.tensor([1.0, 0.2, -0.5, 0.3]))
        rank.phi.copy_(torch.linspace(1, -1, 5))
    q = shown["open_probability"]
    torch.testing.assert_close(shown["expected_bits"](q(bits.phi)), bits.expected_bits())
    torch.testing.assert_close(shown["expected_rank"](q(rank.phi)), rank.expected_rank())


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0])
def test_the_mean_of_rounded_draws_against_monte_carlo(shown, sigma):
    m = torch.tensor([-1.2, -0.5, 0.0, 0.4, 0.7], dtype=torch.float64)
    noise = torch.randn(400_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.round(m + sigma * noise).mean(0)
    torch.testing.assert_close(shown["mean_of_rounded"](m, sigma), expected, rtol=0, atol=0.01)
    scaled = shown["mean_of_rounded"](0.2 * m, 0.2 * sigma, step=0.2)
    torch.testing.assert_close(scaled, 0.2 * shown["mean_of_rounded"](m, sigma))


def test_it_reads_the_committed_recording_or_says_that_there_is_none():
    cells = [c for c in json.loads((NOTEBOOKS / NAME).read_text("utf8"))["cells"] if c["cell_type"] == "code"]
    code = "\n".join("".join(c["source"]) for c in cells)
    assert 'Path("../data/runs/gates")' in code and 'Path("repository/data/runs/gates")' in code  # here, on Colab
    missing = "Not recorded yet: `python benchmarks/gates.py --out data/runs/gates` makes it"
    said = ["".join("".join(o.get("text", "")) for o in c["outputs"]).count(missing) for c in cells]
    readers = [c for c in cells if re.search(r"^if recorded\(\)", "".join(c["source"]), re.M)]
    there = (NOTEBOOKS.parent / "data" / "runs" / "gates" / "everyday-summary.json").is_file()
    assert len(readers) == 4 and sum(said) == (0 if there else 4)
