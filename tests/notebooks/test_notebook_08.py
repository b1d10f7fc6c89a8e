"""What notebook 08 builds is what library or mathematics say, and its text says what the recorded files say."""

import json
import math
import re

import pytest
import torch
from cells import NOTEBOOKS, defined_in
from numpy.polynomial.hermite_e import hermegauss
from torch import nn
from torch.nn.functional import softplus

from ivon_lora_lite import METHODS, KroneckerPosterior, Predictions, paired_differences, paper_table
from ivon_lora_lite.studies import load_records, recorded

NAME = "08_baselines.ipynb"
SEEDS = (21, 42, 87)


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def coin():
    nodes, weights = map(torch.tensor, hermegauss(60))
    given = {
        "NODES": nodes,
        "WEIGHTS": weights / weights.sum(),
        "grid": torch.linspace(-12, 60, 7201, dtype=torch.float64),
    }
    names = ("energy", "exact", "laplace_1d", "by_backpropagation")
    return defined_in(NAME, *names, torch=torch, softplus=softplus, **given)


@pytest.mark.parametrize("flips, p", [(8, 0.01), (8, 1.0), (64, 0.05)])
def test_the_two_gaussians_of_one_weight_satisfy_their_equations(coin, flips, p):
    def derivative(theta, order):
        theta = theta.clone().requires_grad_()
        out = coin["energy"](theta, flips, p)
        for _ in range(order):
            (out,) = torch.autograd.grad(out.sum(), theta, create_graph=True)
        return out.detach()

    top, width = coin["laplace_1d"](flips, p)
    assert abs(derivative(top, 1)) < 1e-9 and width == pytest.approx(float(derivative(top, 2)) ** -0.5)
    m, sigma = coin["by_backpropagation"](flips, p)
    theta = m + sigma * coin["NODES"]
    assert abs(derivative(theta, 1) @ coin["WEIGHTS"]) < 1e-3  # E_q[E'] = 0
    assert float(sigma) ** -2 == pytest.approx(float(derivative(theta, 2) @ coin["WEIGHTS"]), rel=1e-3)
    mean, deviation, _ = coin["exact"](flips, p)
    assert top < m < mean + 1e-3 and abs(m - mean) < abs(top - mean) / 3  # as the text has it
    assert width < deviation and sigma < deviation


def curvature(points):
    """A network, its rows LᵀJ `[N, C, P]` at some points, and the notebook's eigenvalues of KFAC there."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    x = torch.randn(points, 2)
    parameters, rows = list(net.parameters()), []
    for f in net(x):
        jacobian = torch.stack(
            [torch.cat([g.flatten() for g in torch.autograd.grad(c, parameters, retain_graph=True)]) for c in f]
        )
        p = f.detach().softmax(-1)
        rows.append((p.sqrt().diag() - torch.outer(p, p.sqrt())).T @ jacobian)
    given = {"torch": torch, "nn": nn, "eigvalsh": torch.linalg.eigvalsh, "net": net, "x": x}
    return torch.stack(rows), defined_in(NAME, "kfac_eigenvalues", **given)["kfac_eigenvalues"]


def test_kfac_is_exact_for_one_question():
    rows, eigenvalues = curvature(points=1)
    blocks = [rows[0][:, :12], rows[0][:, 12:]]  # 2·4 + 4 weights, then 4·3 + 3
    exact = torch.cat([torch.linalg.eigvalsh(block @ block.T) for block in blocks])
    found = eigenvalues(rows)
    assert torch.allclose(
        found.sort(descending=True).values[: len(exact)], exact.sort(descending=True).values, atol=1e-9
    )
    assert len(found) == rows.shape[-1] == 27


def test_no_more_directions_than_questions_times_choices_less_one():
    rows, eigenvalues = curvature(points=5)
    h = torch.einsum("nkp,nkq->pq", rows, rows)
    assert torch.linalg.matrix_rank(h) == 5 * (3 - 1)
    for p in (1e-4, 1e-2, 1.0):
        exact, diagonal, kfac = (
            float((v / (v + p)).sum()) for v in (torch.linalg.eigvalsh(h).clamp(min=0), h.diagonal(), eigenvalues(rows))
        )
        assert exact < diagonal and exact < kfac
    assert (h.diagonal() / (h.diagonal() + 1e-4)).sum() > 10  # the diagonal counts more than there can be


def test_the_library_has_the_same_eigenvalues():
    a, b = torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.diag(torch.tensor([1.0, 0.5, 0.1]))
    q = KroneckerPosterior.from_factors({"w": torch.zeros(3, 2)}, {"w": (a, b)}, 1.0)
    ours = torch.outer(torch.linalg.eigvalsh(b), torch.linalg.eigvalsh(a)).flatten()
    assert torch.allclose(q.eigenvalues("w").flatten().double().sort().values, ours.sort().values, atol=1e-6)


def outputs():
    content = json.loads((NOTEBOOKS / NAME).read_text("utf8"))
    return "".join("".join(o.get("text", "")) for c in content["cells"] for o in c.get("outputs", []))


def test_what_it_says_of_the_toy_is_what_its_cells_print():
    text = outputs()
    nll = {name.strip(): float(v) for name, v in re.findall(r"^(.+?) +test NLL ([\d.]+),", text, re.M)}
    acc = {name.strip(): float(v) for name, v in re.findall(r"^(.+?) +test NLL .*accuracy ([\d.]+)$", text, re.M)}
    (scaled,) = (name for name in nll if name.startswith("AdamW, T"))
    assert nll[scaled] < 0.6 * nll["AdamW"] and acc[scaled] == acc["AdamW"] > 0.9
    dropout, ensemble = map(float, re.findall(r"standard deviation of a probability ([\d.]+)", text))
    assert dropout > 2 * ensemble and nll["MC dropout, 50 passes"] < nll["ensemble of 5"] < nll["AdamW"]
    assert nll["SWA"] > nll["AdamW"] and nll["SWAG, 50 draws"] < nll["SWA"]
    evidence, chosen = (v for name, v in nll.items() if name.startswith("Laplace, linearised"))
    (drawn,) = (name for name in nll if name.startswith("Laplace, draws"))
    assert evidence > nll["AdamW"] - 0.03 and chosen < nll[scaled] + 0.05 and acc[drawn] < 0.7
    counts = {n: float(v) for n, v in re.findall(r"^(exact|diagonal|KFAC) +([\d.]+) +[\d.]+$", text, re.M)}
    assert counts["exact"] < 20 < counts["KFAC"] < 80 < counts["diagonal"]
    line = r"^ *\d+ flips, {} +θ = ([\d.]+) .*? with ([\d.]+)$"
    bayes, laplace = (re.findall(line.format(name), text, re.M) for name in ("exact posterior", "Laplace"))
    assert len(bayes) == len(laplace) == 2
    assert all(float(b[0]) > float(q[0]) and float(b[1]) > float(q[1]) for b, q in zip(bayes, laplace))
    (m, s, best_m, best_s) = map(
        float, re.search(r"IVON N\(([\d.]+), ([\d.]+)²\).* N\(([\d.]+), ([\d.]+)²\)", text).groups()
    )
    assert abs(m - best_m) <= 0.15 and abs(s - best_s) <= 0.11


@pytest.fixture(scope="module")
def records():
    return load_records(recorded("table1"))


@pytest.fixture(scope="module")
def paired():
    return defined_in(NAME, "paired", paired_differences=paired_differences)["paired"]


def test_methods_are_paired_on_the_seeds_that_both_have(records, paired):
    runs = {m: [r.predictions for r in records if r.cell.method == m] for m in ("adamw", "ivon")}
    assert paired(records, "adamw", "ivon") == (paired_differences(runs["adamw"], runs["ivon"]), 3)
    one = [r for r in records if r.cell.method == "adamw" or r.cell.seeds == (42,)]
    (only,) = (r for r in one if r.cell.method == "ivon")
    peer = next(r for r in one if r.cell.method == "adamw" and r.cell.seeds == (42,))
    assert paired(one, "adamw", "ivon") == (paired_differences(peer.predictions, only.predictions), 1)


def test_what_it_says_of_table_1_is_recorded(records, paired):
    def beside(a, b):
        return paired(records, a, b)[0]

    assert {len(r.predictions.labels) for r in records} == {912}
    for method in ("ivon", "ivon@mean"):
        d = beside("adamw", method)
        assert d["acc"]["interval"][0] > 0 and d["nll"]["interval"][1] < 0 and d["brier"]["interval"][1] < 0
    assert beside("adamw", "ivon@mean")["ece"]["interval"][0] > 0 > beside("adamw", "ivon")["ece"]["interval"][1]
    d = beside("adamw", "temperature")
    assert d["acc"]["difference"] == 0 and d["nll"]["interval"][1] < 0 and d["ece"]["interval"][1] < 0
    for method in ("ivon", "temperature@ivon"):
        assert (
            beside("temperature", method)["nll"]["interval"][1]
            < 0
            < beside("temperature", method)["acc"]["interval"][0]
        )
    temperatures = {r.cell.seed: r.predictions for r in records if r.cell.method == "temperature"}
    name = "everyday@2-20-passes-diag-seed{}-laplace.safetensors"  # of three seeds, of which the first flatters
    pairs = [(temperatures[s], Predictions.load(recorded("correction") / name.format(s))) for s in (21, 42, 87)]
    first, every = (paired_differences(*zip(*some))["nll"] for some in (pairs[:1], pairs))
    assert first["difference"] < every["difference"] < every["interval"][1] < 0
    low, high = beside("ivon", "temperature@laplace_kfac")["nll"]["interval"]
    assert low < 0 < high and beside("temperature", "temperature@laplace_kfac")["nll"]["interval"][1] < 0
    assert all(r.content["facts"]["temperature"] < 0.3 for r in records if r.cell.method == "temperature@laplace_kfac")
    d = beside("temperature@ivon", "ivon")
    assert all(d[name]["interval"][0] < 0 < d[name]["interval"][1] for name in d)
    for method in ("mc_dropout", "adamw@early"):
        assert all(abs(v["difference"]) < 0.01 for v in beside("adamw", method).values())
    for method in ("laplace_kfac", "laplace_diag"):
        d = beside("adamw", method)
        assert abs(d["acc"]["difference"]) < 0.02
        assert all(d[name]["interval"][0] > 0.05 for name in ("nll", "ece", "brier"))
        validated = beside("temperature", f"{method}_validation")
        assert validated["nll"]["interval"][1] < 0 < beside("adamw", f"{method}_validation")["acc"]["interval"][1]
    assert {r.cell.seeds for r in records if r.cell.method.startswith("laplace_diag")} == {(21,)}
    assert {r.cell.seeds for r in records if r.cell.method.endswith("laplace_kfac")} == {(21,), (42,), (87,)}
    d = beside("laplace_kfac_validation", "laplace_diag_validation")
    assert all(abs(v["difference"]) < 0.003 for v in d.values())


def test_what_it_says_of_cost_is_recorded(records):
    by_cell = {(r.cell.method, r.cell.seeds[0]): r.content for r in records}
    for seed in SEEDS:
        adamw, ivon = (
            [row["eval_nll"] for row in by_cell[method, seed]["history"] if "eval_nll" in row]
            for method in ("adamw", "ivon")
        )
        assert sum(i < a for i, a in zip(ivon, adamw, strict=True)) >= 9
    rows = [content for (method, _), content in by_cell.items() if method.startswith("temperature")]
    seconds, memory = ([c[part][key] for c in rows] for part, key in (("seconds", "fit"), ("cost", "peak_gb")))
    assert max(seconds) > 3 * min(seconds) and max(memory) > 1.5 * min(memory)  # the same work
    speeds = {m: sorted(by_cell[m, seed]["seconds"]["train"] for seed in SEEDS) for m in ("adamw", "ivon")}
    assert speeds["ivon"][0] < speeds["adamw"][-1]  # the ranges overlap: these records cannot separate the two


def test_what_it_says_of_openbookqa_is_recorded(paired):
    old = [r for r in load_records(recorded("table1-5-passes")) if r.cell.task == "openbookqa"]
    nll = {m: sum(r.scores["nll"] for r in old if r.cell.method == m) / 3 for m in METHODS}
    assert {len(r.predictions.labels) for r in old} == {150}
    assert all(0.25 < r.scores["acc"] < 0.32 for r in old if r.cell.method == "adamw")
    assert nll["adamw"] > math.log(4) + 0.4 and abs(nll["temperature"] - math.log(4)) < 0.03
    gains = {m: -paired(old, "adamw", m)[0]["nll"]["difference"] for m in METHODS if nll[m] and m != "adamw"}
    assert max(gains, key=gains.get) == "temperature" and gains["laplace_kfac"] > 0.9 * gains["temperature"]
    assert max(abs(gains["mc_dropout"]), abs(gains["ensemble"])) < 0.01
    assert paired(old, "adamw", "ivon")[0]["nll"]["interval"][1] < 0 and gains["ivon"] < 0.3 * gains["temperature"]


def test_what_it_says_of_the_paper_is_in_its_table(records, paired):
    paper = paper_table()

    def gap(metric, method):
        return paper.entries[metric, method, "average"].mean - paper.entries[metric, "adamw", "average"].mean

    here = {m: paired(records, "adamw", m)[0] for m in ("ivon", "ivon@mean")}
    assert gap("acc", "ivon@mean") > 0 < here["ivon@mean"]["acc"]["difference"]
    assert all(gap(name, "ivon") < 0 > here["ivon"][name]["difference"] for name in ("ece", "nll"))
    assert gap("nll", "laplace_kfac") < -1 and paper.entries["nll", "adamw", "average"].mean > 2
    assert ("nll", "ivon@mean", "average") not in paper.entries


def test_averaging_logits_is_not_averaging_probabilities():
    logits = torch.tensor([[[4.0, 0.0]], [[0.0, 1.0]]])  # two passes, one question
    average = Predictions(logits, torch.zeros(1, dtype=torch.long)).ensemble()
    assert torch.allclose(average, logits.softmax(-1).mean(0).to(average))
    assert (average - logits.mean(0).softmax(-1).to(average)).abs().max() > 0.1
