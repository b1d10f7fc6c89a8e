"""Notebook 05: its LoRA layer beside PEFT's, its formulas beside Monte Carlo and the library's draws."""

import copy

import peft
import pytest
import torch
from cells import defined_in
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from ivon_lora_lite import GaussianPosterior
from ivon_lora_lite.posterior import applied_weights
from ivon_lora_lite import trainable

NOTEBOOK = "05_lora.ipynb"


@pytest.fixture(scope="module")
def shown():
    names = ("LoRALinear", "count", "product_moments", "kurtosis_of", "std_in_w")
    given = {"torch": torch, "nn": nn, "peft": peft, "AutoModelForCausalLM": AutoModelForCausalLM}
    return defined_in(NOTEBOOK, *names, trainable=trainable, **given)


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


@pytest.mark.parametrize("centred", [True, False])
def test_moments_of_a_product_against_monte_carlo(shown, centred):
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": torch.float64}
    b, a = torch.randn(2, 3, **options), torch.randn(3, 2, **options)
    if centred:
        b, a = 0 * b, 0 * a
    var_b, var_a = torch.rand(2, 3, **options) + 0.1, torch.rand(3, 2, **options) + 0.1
    mean, variance, kurtosis = shown["product_moments"](b, var_b, a, var_a)
    draws = 400_000
    noisy_b = b + var_b.sqrt() * torch.randn(draws, 2, 3, **options)
    noisy_a = a + var_a.sqrt() * torch.randn(draws, 3, 2, **options)
    z = (noisy_b @ noisy_a - mean) / variance.sqrt()
    torch.testing.assert_close(z.mean(0), torch.zeros(2, 2, dtype=torch.float64), atol=0.01, rtol=0)
    torch.testing.assert_close(z.var(0), torch.ones(2, 2, dtype=torch.float64), atol=0.02, rtol=0)
    torch.testing.assert_close((z**4).mean(0) - 3, kurtosis, atol=0.25, rtol=0.05)


@pytest.mark.parametrize("r", [1, 8, 64])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 4.0])
def test_kurtosis_against_its_closed_form(shown, r, ratio):
    expected = (24 * ratio**2 + 6) / (r * (2 * ratio**2 + 1) ** 2)
    assert shown["kurtosis_of"](r, ratio) == pytest.approx(expected)


def test_one_sigma_in_w_is_what_the_librarys_draws_show(shown, tiny_model):
    model, sigma = tiny_model(trained=True), 0.1
    name, layer = next((n, m) for n, m in model.named_modules() if n.endswith("q_proj"))
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


def test_one_sigma_in_w_is_the_general_formula(shown):
    torch.manual_seed(0)
    b, a, sigma = torch.randn(5, 3), torch.randn(3, 4), 0.3
    general = shown["product_moments"](b, torch.full_like(b, sigma**2), a, torch.full_like(a, sigma**2))[1]
    torch.testing.assert_close(shown["std_in_w"](b, a, sigma), general.sqrt())
    torch.testing.assert_close(shown["std_in_w"](b, a, sigma, scale=2.0), 2 * general.sqrt())
