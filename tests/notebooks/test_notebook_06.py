"""Notebook 06: its training loop beside `finetune`, and what it says of recorded runs."""

import pytest
import torch
from cells import defined_in
from conftest import ROOT
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, RandomSampler

from ivon_lora_lite import (
    IVON,
    GaussianPosterior,
    answer_logits,
    answer_loss,
    collate,
    finetune,
    hyperparameters,
    load_task,
    lora_parameters,
    paired_differences,
    reset_lora,
    trainable,
)
from ivon_lora_lite.studies import by_length

NOTEBOOK = "06_finetune.ipynb"


@pytest.fixture(scope="module")
def train_ivon():
    given = {"torch": torch, "LambdaLR": LambdaLR, "DataLoader": DataLoader, "RandomSampler": RandomSampler}
    given |= {"IVON": IVON, "lora_parameters": lora_parameters, "reset_lora": reset_lora, "collate": collate}
    given |= {"hyperparameters": hyperparameters, "answer_logits": answer_logits, "answer_loss": answer_loss}
    return defined_in(NOTEBOOK, "train_ivon", **given)["train_ivon"]


@pytest.fixture(scope="module")
def train():
    return load_task("everyday").train[:24]


@pytest.mark.parametrize("seed", [21, 42])
def test_its_loop_is_finetune(train_ivon, train, tiny_model, seed):
    model = tiny_model()
    assert model.peft_config["default"].lora_dropout > 0
    run = finetune(model, train, steps=6, seed=seed, progress=False)
    torch.manual_seed(999)  # the loop must not depend on what was drawn before
    optimizer, losses = train_ivon(model, train, 6, seed)
    assert len(losses) == 6 and not model.training
    posterior = GaussianPosterior.from_optimizer(optimizer, model)
    for name, p in trainable(model).items():
        torch.testing.assert_close(p.detach(), run.weights[name], atol=1e-7, rtol=0)
        torch.testing.assert_close(posterior.variance[name], run.posterior.variance[name], rtol=1e-6, atol=0)
    logged = [row["loss"] for row in run.history if "loss" in row]
    assert losses == pytest.approx(logged, rel=1e-4)  # logged at every step, as there are so few


def test_another_seed_gives_other_weights(train_ivon, train, tiny_model):
    model = tiny_model()
    run = finetune(model, train, steps=6, seed=21, progress=False)
    train_ivon(model, train, 6, 42)
    assert any((p.detach() - run.weights[name]).abs().max() > 1e-3 for name, p in trainable(model).items())


def test_what_it_says_of_more_passes_is_recorded():
    """After five passes a fitted temperature beats both; early stopping brings nothing; IVON's mean is overconfident."""
    records = by_length(ROOT / "data" / "runs" / "passes")
    mean = {
        (title, n): {m: sum(r.scores[m] for r in rs) / len(rs) for m in rs[0].scores}
        for title, lines in records.items()
        for n, rs in lines.items()
    }
    assert min(("AdamW", "AdamW + temperature", "IVON"), key=lambda t: mean[t, 5]["nll"]) == "AdamW + temperature"
    for metric in ("nll", "brier"):
        assert mean["AdamW", 20][metric] > mean["AdamW", 5][metric]
        assert mean["IVON", 20][metric] < mean["IVON", 5][metric]
        assert mean["AdamW", 20][metric] == pytest.approx(mean["AdamW, early-stopped", 20][metric], abs=0.003)
    assert mean["IVON@mean", 20]["ece"] > 3 * mean["IVON", 20]["ece"]
    assert mean["AdamW + temperature", 20]["nll"] > mean["AdamW + temperature", 5]["nll"]
    for n in (10, 20, 40):
        for metric in ("nll", "brier"):
            assert mean["AdamW", n][metric] == pytest.approx(mean["AdamW, early-stopped", n][metric], abs=0.003)
    later = {title: [[r.predictions for r in records[title][n]] for n in (20, 40)] for title in records}
    assert len(later["IVON"][1]) == 3 and paired_differences(*later["IVON"])["nll"]["interval"][0] > 0
    low, high = paired_differences(*later["IVON@mean + temperature"])["nll"]["interval"]
    assert low < 0 < high
    ten = {title: [r.predictions for r in records[title][10]] for title in records}
    gap = {rival: paired_differences(ten[rival], ten["IVON"])["nll"]["interval"] for rival in ten if rival != "IVON"}
    assert gap["AdamW"][1] < 0 < gap["IVON@mean + temperature"][0]
    assert gap["AdamW + temperature"][0] < 0 < gap["AdamW + temperature"][1]
    for title in ("IVON", "IVON@mean + temperature"):
        assert mean[title, 5]["nll"] > mean[title, 10]["nll"] > mean[title, 20]["nll"]
    assert mean["IVON@mean", 10]["nll"] > mean["IVON@mean", 5]["nll"] > mean["IVON@mean", 20]["nll"]
    assert mean["IVON", 10]["ece"] > 1.5 * mean["IVON", 20]["ece"]
    best = max(("AdamW", "AdamW + temperature", "IVON@mean", "IVON"), key=lambda t: mean[t, 20]["acc"])
    title, passes = min(mean, key=lambda key: mean[key]["nll"])
    assert best.startswith("IVON") and title == "IVON@mean + temperature" and passes >= 20
    pooled = {title: [r.predictions for r in records[title][20]] for title in ("IVON", "IVON@mean + temperature")}
    low, high = paired_differences(pooled["IVON@mean + temperature"], pooled["IVON"])["nll"]["interval"]
    assert low < 0 < high


def test_what_it_says_of_two_and_of_sixty_passes_is_recorded():
    records = by_length(ROOT / "data" / "runs" / "passes")
    gap = {
        (n, a, b): paired_differences(*([r.predictions for r in records[t][n]] for t in (a, b)))
        for n in (2, 60)
        for a, b in (
            ("AdamW", "IVON"), ("AdamW", "IVON@mean"), ("AdamW + temperature", "IVON"),
            ("AdamW + temperature", "IVON@mean + temperature"), ("AdamW", "AdamW, early-stopped"),
        )
    }  # fmt: skip
    for a, b in (("AdamW", "IVON"), ("AdamW", "IVON@mean"), ("AdamW + temperature", "IVON@mean + temperature")):
        two = gap[2, a, b]
        assert two["acc"]["interval"][1] < 0 < min(two["nll"]["interval"][0], two["brier"]["interval"][0])
    assert [len(records[t][60]) for t in records] == [1] * len(records)
    ahead = gap[60, "AdamW + temperature", "IVON@mean + temperature"]
    assert ahead["nll"]["interval"][1] < 0 < ahead["acc"]["interval"][0]
    assert gap[60, "AdamW", "IVON"]["nll"]["interval"][1] < 0
    low, high = gap[60, "AdamW + temperature", "IVON"]["nll"]["interval"]
    assert low < 0 < high and gap[60, "AdamW", "AdamW, early-stopped"]["nll"]["interval"][1] < 0
    last, stopped = (records[t][60][0].scores["nll"] for t in ("AdamW", "AdamW, early-stopped"))
    assert (f"{last:.3f}", f"{stopped:.3f}") == ("0.702", "0.685")
    for title in ("IVON", "IVON@mean + temperature"):
        forty = [r.predictions for r in records[title][40] if r.cell.seeds == (21,)]
        low, high = paired_differences(forty, [r.predictions for r in records[title][60]])["nll"]["interval"]
        assert low < 0 < high
