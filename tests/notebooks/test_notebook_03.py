"""What notebook 03 builds, against torch; and what its text says, against the numbers that it prints."""

import json
import math
import re

import pytest
import torch
from cells import NOTEBOOKS, defined_in
from torch import nn
from torch.nn.functional import cross_entropy

NAME = "03_toys.ipynb"
PAIR = r"(-?\d\.\d+) ± (\d\.\d+)"


@pytest.fixture(scope="module")
def shown():
    names = "two_moons", "network", "SideBySide", "moons_loss", "truth", "with_gap", "gaussian_nll"
    return defined_in(NAME, *names, torch=torch, nn=nn, math=math, cross_entropy=cross_entropy, NOISE=0.1)


@pytest.fixture(scope="module")
def printed():
    cells = json.loads((NOTEBOOKS / NAME).read_text("utf8"))["cells"]
    return "\n".join("".join(o["text"]) for c in cells for o in c.get("outputs", []) if o["output_type"] == "stream")


def pairs(text, start):
    """The numbers with errors on the line that starts so."""
    line = next(line for line in text.splitlines() if line.startswith(start))
    return [(float(mean), float(error)) for mean, error in re.findall(PAIR, line)]


def test_networks_side_by_side_have_the_outputs_and_gradients_of_each_alone(shown):
    networks = [shown["network"](seed) for seed in range(3)]
    x, y = (torch.stack(parts) for parts in zip(*(shown["two_moons"](20, seed) for seed in range(3))))
    together = shown["SideBySide"](networks)
    shown["moons_loss"](x, y)(together).backward()
    for k, alone in enumerate(networks):
        cross_entropy(alone(x[k]), y[k]).backward()
        torch.testing.assert_close(together(x)[k], alone(x[k]))
        torch.testing.assert_close(together.weights[1].grad[k].T, alone[2].weight.grad)
        torch.testing.assert_close(together.biases[0].grad[k, 0], alone[0].bias.grad)


def test_each_network_has_722_weights(shown):
    assert sum(p.numel() for p in shown["network"](0).parameters()) == 722


def test_the_nll_of_the_gap_is_that_of_a_gaussian(shown):
    f, y = torch.randn(30, 2, 5), torch.randn(5)
    scale = (f.var(0, correction=0) + 0.01).sqrt()
    expected = -torch.distributions.Normal(f.mean(0), scale).log_prob(y).mean(-1)
    torch.testing.assert_close(shown["gaussian_nll"](f, y), expected)
    one = shown["gaussian_nll"](f[:1], y)  # of one function only the noise is left
    torch.testing.assert_close(one, -torch.distributions.Normal(f[0], 0.1).log_prob(y).mean(-1))


def test_there_are_no_points_in_the_gap_and_half_on_each_side(shown):
    x, y = shown["with_gap"](400, seed=1)
    assert ((x.abs() >= 1) & (x.abs() <= 3)).all() and (x > 0).sum() == 200
    assert (y - shown["truth"](x)).std().item() == pytest.approx(0.1, rel=0.1)


def test_adamw_overfits_and_ivon_with_its_settings_does_not(printed):
    (adamw, lowest), (ivon, _) = (
        re.search(rf"^{name} .*validation NLL (\d\.\d+); lowest .* (\d\.\d+)$", printed, re.M).groups()
        for name in ("AdamW", "IVON")
    )
    assert float(adamw) > 2 * float(lowest) and float(ivon) < float(adamw) / 2
    assert abs(float(ivon) - float(lowest)) < 0.05  # "about as good"


def test_on_the_moons_ivon_does_not_beat_adamw_and_its_draws_improve_on_its_mean(printed):
    best, second, mean = (pairs(printed, f"IVON − {rival}") for rival in ("AdamW, best", "AdamW, second", "IVON@mean"))
    assert all(abs(difference) <= 2 * error + 0.001 for difference, error in best)  # level, in rounded numbers
    acc, nll, ece, brier = second
    assert acc[0] < -2 * acc[1] and brier[0] > 2 * brier[1] and 0 < nll[0] < 2 * nll[1] and abs(ece[0]) < 2 * ece[1]
    assert all(abs(difference) < 0.0055 for difference, _ in best + second)  # half a hundredth
    assert all(difference < -4 * error for difference, error in mean[1:3]) and abs(mean[0][0]) < 0.002


def test_one_draw_is_worse_than_the_mean_and_much_noise_is_bad(printed):
    by_tau, by_count = (
        {float(k): float(v) for k, v in re.findall(r"([\d.]+): (\d\.\d+)", next(re.finditer(start + ".*", printed))[0])}
        for start in ("NLL by τ", "NLL by draws")
    )
    assert max(by_tau[t] for t in (0, 0.25, 0.5, 1)) - min(by_tau.values()) < 0.01
    assert by_tau[1] < by_tau[2] < by_tau[4] < by_tau[8]
    assert by_tau[1] == by_count[30]  # the readout of two sliders, moved to the same place
    assert by_count[1] > by_tau[0] + 0.02 and by_count[3] - by_tau[0] < 0.25 * (by_count[1] - by_tau[0])


def test_the_band_that_validation_chose_is_not_wider_in_the_gap(printed):
    rows = {}
    for name in ("NLL at", "σ(f) at the data", "σ(f) in the gap", "between", "other runs", "truth in", "truth + bump"):
        rows[name] = [mean for mean, _ in pairs(printed, name)]  # AdamW, IVON as chosen, IVON with h₀ 0.1
    near, gap = rows["σ(f) at the data"], rows["σ(f) in the gap"]
    assert near[0] == gap[0] == 0 and gap[1] < 1.1 * near[1] and gap[2] > 2.5 * near[2]
    assert rows["between"][1] > 2 * gap[1] and 0.25 < rows["other runs"][1] < 0.42 and rows["other runs"][2] > 0.9
    assert rows["truth in"][1] < 0.4 < 0.8 < rows["truth in"][2] and rows["truth + bump"][2] < 0.4
    assert rows["NLL at"][1] < rows["NLL at"][2]
    (difference, error), = pairs(printed, "NLL, IVON − AdamW")  # fmt: skip
    assert difference < -2 * error


def test_tau_does_not_widen_the_band_in_the_gap_alone(printed):
    rows = re.findall(r"^λ 400, h₀ +([\d.]+), τ +(\d+): .* data ([\d.]+), in the gap ([\d.]+) ", printed, re.M)
    found = {(float(h0), float(tau)): float(gap) / float(near) for h0, tau, near, gap in rows if float(tau)}
    assert len(found) == 6
    assert all(found[10.0, tau] < 1.1 for tau in (1, 4, 16))
    assert all(found[0.1, tau] > 1.2 for tau in (1, 4, 16))


def test_the_slider_at_the_gap_reads_what_the_search_found(printed):
    searched = {h0: re.search(rf"^IVON's .* h₀ +{h0}: .*λ 400: +(-\d\.\d+)", printed, re.M)[1] for h0 in ("10", "0.1")}
    for h0, value in searched.items():
        assert re.search(rf"^λ 400, h₀ +{h0}, τ +1: .* (-\d\.\d+)$", printed, re.M)[1] == value
