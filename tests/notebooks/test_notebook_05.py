"""Notebook 05: its LoRA layer beside PEFT's, its formula beside the library's draws, and what it says of its toy."""

import copy
import json
import math
import re
import statistics

import peft
import pytest
import torch
from cells import defined_in
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from ivon_lora_lite import IVON, GaussianPosterior, trainable
from ivon_lora_lite.posterior import applied_weights
from ivon_lora_lite.studies import recorded

NOTEBOOK = "05_lora.ipynb"


@pytest.fixture(scope="module")
def shown():
    names = ("LoRALinear", "thin_pair", "problem", "lora", "train_adamw", "train_ivon", "count", "std_in_w")
    given = {"torch": torch, "nn": nn, "copy": copy, "math": math, "AutoModelForCausalLM": AutoModelForCausalLM}
    return defined_in(NOTEBOOK, *names, "excess_kurtosis", IVON=IVON, **given)


@pytest.fixture(scope="module")
def record():
    return json.loads((recorded("learned") / "everyday@2-20-passes.json").read_text("utf8"))


@pytest.mark.parametrize(("r", "alpha", "d_in", "d_out"), [(1, 1, 7, 5), (8, 16, 24, 40), (4, 32, 16, 16)])
def test_its_layer_is_pefts(shown, r, alpha, d_in, d_out):
    torch.manual_seed(0)
    base = nn.Linear(d_in, d_out)
    ours = shown["LoRALinear"](copy.deepcopy(base), r, alpha)
    x = torch.randn(6, d_in)
    assert torch.equal(ours(x), base(x))
    with torch.no_grad():
        ours.B.normal_()
    config = peft.LoraConfig(r=r, lora_alpha=alpha, target_modules=["0"])
    model = peft.get_peft_model(nn.Sequential(copy.deepcopy(base)), config)
    theirs = model.base_model.model[0]
    with torch.no_grad():
        theirs.lora_A["default"].weight.copy_(ours.A)
        theirs.lora_B["default"].weight.copy_(ours.B)
    torch.testing.assert_close(ours(x), model(x))
    torch.testing.assert_close(ours.increment(), theirs.get_delta_weight("default"))
    for out in (ours(x), model(x)):
        out.square().sum().backward()
    torch.testing.assert_close(ours.A.grad, theirs.lora_A["default"].weight.grad)
    torch.testing.assert_close(ours.B.grad, theirs.lora_B["default"].weight.grad)
    assert [name for name, p in ours.named_parameters() if p.requires_grad] == ["A", "B"]


def test_its_layer_starts_as_pefts_does(shown):
    torch.manual_seed(0)
    ours = shown["LoRALinear"](nn.Linear(400, 300), r=64)
    theirs = peft.get_peft_model(nn.Sequential(nn.Linear(400, 300)), peft.LoraConfig(r=64, target_modules=["0"]))
    a = theirs.base_model.model[0].lora_A["default"].weight
    assert ours.A.abs().max() <= 400**-0.5 and a.abs().max() <= 400**-0.5
    assert abs(ours.A.std() / a.std() - 1) < 0.02
    assert not ours.B.any()


def test_counting_by_shape_is_counting(shown, tiny_model):
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    total, lora = shown["count"](config, r=4)
    assert total == sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    assert lora == 3 * 4 * ((32 + 32) + (32 + 16))
    model = tiny_model()
    total, lora = shown["count"](model.config, r=8)
    assert lora == sum(p.numel() for p in trainable(model).values())
    assert total + lora == sum(p.numel() for p in model.parameters())


def test_llama_2_7b_has_the_size_that_the_notebook_prints(shown):
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    assert shown["count"](LlamaConfig(vocab_size=32000, **sizes)) == (6_738_415_616, 4_194_304)


def missing(layer, target) -> float:
    return float((layer.increment().detach() - target).square().sum() / target.square().sum())


def test_a_rank_too_low_finds_the_best_matrix_of_that_rank(shown):
    base, x, y, target = shown["problem"](16, 32)
    sizes = torch.linalg.svdvals(target).square()
    for r in (1, 2, 8):
        layer = shown["lora"](base, r)
        shown["train_adamw"](layer, x, y)
        assert missing(layer, target) == pytest.approx(float(sizes[r:].sum() / sizes.sum()), abs=0.01)


def test_with_few_examples_the_right_rank_is_best_and_the_training_loss_does_not_say_so(shown):
    base, x, y, target = shown["problem"](16, 32, examples=40)
    losses, errors = [], []
    for r in (1, 2, 4, 8, 16):
        layer = shown["lora"](base, r)
        losses.append(shown["train_adamw"](layer, x, y)[-1])
        errors.append(missing(layer, target))
    assert min(errors) == errors[1] and errors[-1] > 3 * errors[1]
    assert losses == sorted(losses, reverse=True)


def test_two_zeros_hold_adamw_and_not_ivon(shown):
    base, x, y, target = shown["problem"](16, 32)
    layer = shown["lora"](base, 2, zero=True)
    shown["train_adamw"](layer, x, y, steps=20)
    assert not layer.A.any() and not layer.B.any()
    losses, _ = shown["train_ivon"](layer, x, y)
    assert losses[0] > 0.5 and losses[-1] < 0.1 and missing(layer, target) < 0.01


@pytest.mark.parametrize("shape", [(16, 32), (24, 24), (32, 16)])
def test_the_sigma_of_a_factor_is_set_by_the_size_of_the_other(shown, shape):
    base, x, y, _ = shown["problem"](*shape)
    layer = shown["lora"](base, 2, zero=True)
    _, optimizer = shown["train_ivon"](layer, x, y)
    sigma_a, sigma_b = (optimizer.variance(p).sqrt().median() for p in (layer.A, layer.B))
    assert float(sigma_a / sigma_b) == pytest.approx(float((layer.A.norm() / layer.B.norm()).detach()), rel=0.15)


def test_one_sigma_in_w_is_what_the_librarys_draws_show(shown, tiny_model):
    model, sigma = tiny_model(trained=True), 0.1
    layer = next(m for n, m in model.named_modules() if n.endswith("q_proj"))
    posterior = GaussianPosterior.isotropic(model, sigma**2)
    b, a = (getattr(layer, f"lora_{which}")["default"].weight.detach().clone() for which in "BA")
    draws = []
    for seed in range(600):
        with applied_weights(model, posterior.sample(seed)):
            draws.append(layer.get_delta_weight("default").detach())
    measured = torch.stack(draws).std(0)
    expected = shown["std_in_w"](b, a, sigma, layer.scaling["default"])
    assert layer.scaling["default"] == 2
    assert abs((measured / expected).mean() - 1) < 0.01
    assert (measured / expected - 1).abs().max() < 0.2


@pytest.mark.parametrize("r", [1, 8, 64])
def test_kurtosis_of_a_product_with_means_of_zero_is_six_over_r(shown, r):
    generator = torch.Generator().manual_seed(0)
    b, a = (torch.randn(400_000, r, dtype=torch.float64, generator=generator) for _ in range(2))
    z = (b * a).sum(1, keepdim=True) / r**0.5  # [S, 1]
    assert float(shown["excess_kurtosis"](z)) == pytest.approx(6 / r, rel=0.1, abs=0.02)


def test_what_it_says_of_the_learned_sigma_is_recorded(record):
    settings = record["settings"]
    start = (settings["ess"] * settings["hess_init"]) ** -0.5
    ceiling = start * settings["beta2"] ** -400  # after 800 steps
    assert round(start, 3) == 0.071 and round(ceiling, 3) == 0.083
    assert set(record["sigma"]) == {"21", "42", "87"}
    for kept in record["sigma"].values():
        medians = {}
        for name, quantiles in kept["tensors"].items():
            layer, module, factor = re.search(r"\.(\d+)\..*(\w)_proj\.lora_(\w)", name).groups()
            medians.setdefault(module + factor, {})[int(layer)] = quantiles["p50"]
        middle = {key: statistics.median(values.values()) for key, values in medians.items()}
        assert middle["vB"] < 0.07 and all(middle[key] > 0.08 for key in ("qA", "qB", "vA"))
        assert max(medians["vB"][k] for k in range(3)) < min(medians["vB"][k] for k in range(5, 30))
        assert abs(middle["qA"] - middle["qB"]) < 0.001
        near = [v > 0.98 * ceiling for key in ("qA", "qB") for v in medians[key].values()]
        assert sum(near) > len(near) / 2


def test_what_it_says_the_learned_sigma_is_worth_is_recorded(record):
    spread, stays = record["learned_minus"]["one size a tensor"], record["learned_minus"]["h stays"]
    assert spread["acc"]["interval"][0] > 0.1 and spread["nll"]["interval"][1] < -0.2
    for metric in ("acc", "nll", "ece"):
        low, high = stays[metric]["interval"]
        assert low < 0 < high
    assert stays["brier"]["interval"][1] < 0
