"""Notebook 06: its training loop beside `finetune`, its straight line in √τ beside exact draws."""

import pytest
import torch
from cells import defined_in
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, RandomSampler

from ivon_lora_lite import IVON, GaussianPosterior, finetune, load_task, lora_parameters, predict
from ivon_lora_lite import reset_lora
from ivon_lora_lite import trainable
from ivon_lora_lite import hyperparameters
from ivon_lora_lite import answer_logits, answer_loss, collate

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


def test_the_straight_line_is_exact_at_its_ends_and_close_between(tiny_model, train):
    between = defined_in(NOTEBOOK, "between", torch=torch)["between"]
    model = tiny_model(trained=True)
    posterior = GaussianPosterior.isotropic(model, 0.001**2)
    options = {"posterior": posterior, "samples": 4}
    mean = predict(model, train[:6], posterior=posterior)
    draws = predict(model, train[:6], **options)
    torch.testing.assert_close(between(mean.logits, draws.logits, 0.0), mean.ensemble())
    torch.testing.assert_close(between(mean.logits, draws.logits, 1.0), draws.ensemble())
    for tau in (0.1, 0.25, 0.5):
        exact = predict(model, train[:6], tau=tau, **options).ensemble()
        error = (between(mean.logits, draws.logits, tau) - exact).abs().max()
        wrong = (between(mean.logits, draws.logits, tau**2) - exact).abs().max()  # τ in place of √τ
        assert error < 0.1 * (draws.ensemble() - mean.ensemble()).abs().max()
        assert error < 0.3 * wrong
