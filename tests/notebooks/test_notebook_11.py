"""Notebook 11 shows the body of `noise_cost`: it must do what the library's does. And its other functions."""

import json
import math
import re
import statistics

import pytest
import torch
from cells import NOTEBOOKS, defined_in

import ivon_lora_lite
from ivon_lora_lite.training import prediction_shift

NAME = "11_hyperparameters.ipynb"


def shown(*names, **given):
    return defined_in(NAME, *names, torch=torch, math=math, statistics=statistics, **given)


@pytest.mark.parametrize("draws", [1, 2, 5])
@pytest.mark.parametrize("sigma", [0.0, 0.01, 0.5])
def test_the_noise_cost_shown_is_the_librarys(sigma, draws):
    theirs = shown("noise_cost")["noise_cost"]
    params = [torch.nn.Parameter(torch.linspace(-1, 1, n)) for n in (3, 7)]
    before = [p.detach().clone() for p in params]

    def loss():
        return sum((p**2).sum() + (p**4).sum() for p in params)

    ours = ivon_lora_lite.noise_cost(loss, params, sigma, draws, seed=4)
    assert theirs(loss, params, sigma, draws, seed=4) == pytest.approx(ours, rel=1e-6, abs=1e-7, nan_ok=True)
    assert theirs(loss, params, sigma)[0] == pytest.approx(ivon_lora_lite.noise_cost(loss, params, sigma)[0], rel=1e-6)
    assert ours[0] > 0 or sigma == 0
    assert all(torch.equal(p, b) for p, b in zip(params, before))


def test_the_noise_cost_shown_restores_the_weights_after_an_error():
    theirs, w = shown("noise_cost")["noise_cost"], torch.nn.Parameter(torch.ones(3))
    losses = iter([1.0, 2.0])
    with pytest.raises(StopIteration):
        theirs(lambda: next(losses), [w], 0.5)
    assert torch.equal(w, torch.ones(3))


def test_the_shift_shown_is_the_librarys(tiny_model, questions):
    """On questions with the same number of choices; the library also takes others."""
    from ivon_lora_lite import lora_parameters
    from ivon_lora_lite import answer_logits, collate

    model = tiny_model("llama", trained=True)
    alike = [q for q in questions if len(q.choices) == 4]
    assert len(alike) >= 2
    batch = collate(alike, model.tokenizer, "text")
    theirs = shown("shift_of")["shift_of"](lambda: answer_logits(model, batch))
    ours = prediction_shift(model, alike, batch_size=len(alike))
    with torch.no_grad():
        for p in lora_parameters(model):
            p.mul_(1.3)
        assert float(ours()) > 1e-4
        assert float(theirs()) == pytest.approx(float(ours()), rel=1e-4)


def test_sigma_is_read_off_the_lines_between_the_points():
    sigma_at = shown("sigma_at")["sigma_at"]
    curve = [{"sigma": s, "cost": 3 * s**2} for s in (0.01, 0.02, 0.05)] + [{"sigma": 0.1, "cost": 3 * 0.05**2 * 16}]
    for cost in (3e-5, 3e-4, 5e-4, 7.5e-3):  # before the first point, on it, between points, on a corner
        assert sigma_at(curve, cost) == pytest.approx((cost / 3) ** 0.5)
    assert sigma_at(curve, 3 * 0.05**2 * 4) == pytest.approx(0.05 * 2**0.5)  # the last piece has slope 4
    assert sigma_at(curve, 3 * 0.05**2 * 256) == pytest.approx(0.2)  # … and goes on


def test_difference_and_verdict():
    runs = {
        "a": [[0.5, 0.5, 0.25, 0.5], [0.5, 0.5, 0.5, 0.5]],
        "b": [[0.25, 0.5, 0.25, 0.25], [0.5, 0.25, 0.5, 0.25]],
    }
    records = {k: [{"p_right": {"draws": p}, "config": {"seed": i}} for i, p in enumerate(v)] for k, v in runs.items()}
    names = shown("difference", "verdict", trials=lambda part: records)
    d, se = names["difference"]("part", "a", "b")
    # −log p(a) + log p(b) in units of log 2: [−1, 0, 0, −1] and [0, −1, 0, −1]
    by_hand = math.log(2) * torch.tensor([[-1.0, 0, 0, -1], [0, -1, 0, -1]])
    assert d == pytest.approx(float(by_hand.mean()))
    assert se == pytest.approx(math.sqrt(by_hand.mean(0).var() / 4 + by_hand.mean(1).var() / 2))
    assert "better" in names["verdict"](-0.3, 0.1) and "worse" in names["verdict"](0.3, 0.1)
    assert "not told apart" in names["verdict"](-0.19, 0.1)


def test_the_prior_shown_minimises_the_divergence_of_each_matrix():
    decay = shown("graves_decay")["graves_decay"]
    assert decay(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 4.0]), 10.0) == pytest.approx(1 / (10 * 8))


def test_it_reads_the_committed_recording_or_says_that_there_is_none():
    cells = [c for c in json.loads((NOTEBOOKS / NAME).read_text("utf8"))["cells"] if c["cell_type"] == "code"]
    code = "\n".join("".join(c["source"]) for c in cells)
    assert 'Path("../data/runs/suggest")' in code and 'Path("repository/data/runs/suggest")' in code  # here, on Colab
    assert len(re.findall(r'suggest"\)', code)) == 2 and ".scratch" not in code and "smoke" not in code
    missing = "Not recorded yet: `python benchmarks/suggest.py --out data/runs/suggest` makes it"
    said = ["".join(o.get("text", "")).count(missing) for c in cells for o in c["outputs"]]
    readers = [c for c in cells if re.search(r"^(?!def).*\brecorded\(\)", "".join(c["source"]), re.M)]
    if (NOTEBOOKS.parent / "data" / "runs" / "suggest" / "summary.json").is_file():
        assert sum(said) == 0
        return
    assert sum(said) == len(readers) == 5
    for cell in readers:  # the sentence, and nothing else
        (output,) = cell["outputs"]
        text = "".join(output["text"])
        assert text.startswith(missing) and text.count("\n") == 1
