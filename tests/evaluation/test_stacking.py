"""Several draws in one pass give what one draw after another gives, whatever the model and the format."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import peft
import pytest
import torch
import transformers

from ivon_lora_lite import GaussianPosterior, linearized, predict, tau_sweep, trainable
from ivon_lora_lite.evaluation import Batches, can_stack, stacked


@pytest.mark.parametrize("format", ["text", "letter"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_draws_of_one_pass_are_the_draws_one_by_one(tiny_model, questions, architecture, format):
    model = tiny_model(architecture, trained=True)
    posterior = GaussianPosterior.isotropic(model, 0.05)
    one, many = (
        predict(model, questions[:7], posterior=posterior, samples=5, batch_size=3, draws_per_pass=k, format=format)
        for k in (1, 3)  # 3 does not divide 5
    )
    assert can_stack(model)
    assert one.logits.shape == (5, 7, 5)
    finite = one.logits.isfinite()
    assert (one.logits[0] - one.logits[1])[finite[0]].abs().max() > 0.1  # else the comparison would mean nothing
    torch.testing.assert_close(many.logits, one.logits, atol=1e-4, rtol=1e-4)


def test_a_16_bit_base_works_too(tiny_model, questions):
    model = tiny_model(trained=True).to(torch.bfloat16)
    for p in trainable(model).values():
        p.data = p.data.float()
    posterior = GaussianPosterior.isotropic(model, 0.05)
    one, many = (predict(model, questions, posterior=posterior, samples=4, draws_per_pass=k).logits for k in (1, 4))
    finite = one.isfinite()
    assert (one - many)[finite].abs().max() < 0.1 * (one[0] - one[1])[finite[0]].abs().max()


def test_a_sweep_uses_the_same_draws(tiny_model, questions):
    model = tiny_model(trained=True)
    posterior = GaussianPosterior.isotropic(model, 0.05)
    sweep = tau_sweep(model, questions, posterior=posterior, samples=6, taus=(0.0, 0.5))
    alone = predict(model, questions, posterior=posterior, samples=6, tau=0.5, draws_per_pass=1)
    torch.testing.assert_close(sweep.logits[1], alone.logits, atol=1e-4, rtol=1e-4)


def test_the_model_is_left_as_it_was_even_after_an_error(tiny_model, questions):
    model = tiny_model(trained=True)
    before = {name: p.detach().clone() for name, p in trainable(model).items()}
    expected = Batches(model, questions, "text", 4).logits()
    posterior = GaussianPosterior.isotropic(model, 0.05)
    with pytest.raises(RuntimeError, match="stop"), stacked(model, [posterior.sample(s) for s in range(2)]):
        raise RuntimeError("stop")
    assert all(torch.equal(p, before[name]) for name, p in trainable(model).items())
    assert not any("forward" in vars(module) for module in model.modules())
    assert torch.equal(Batches(model, questions, "text", 4).logits(), expected)


def test_other_trainable_tensors_are_drawn_one_by_one(tiny_model, questions):
    """A trainable norm is no linear layer, so its draws cannot share a pass."""
    model = tiny_model(trained=True)
    norm = next(m for m in model.modules() if type(m).__name__ == "LlamaRMSNorm")
    norm.weight.requires_grad_(True)
    posterior = GaussianPosterior.isotropic(model, 0.05)
    assert not can_stack(model)
    one, many = (predict(model, questions, posterior=posterior, samples=3, draws_per_pass=k).logits for k in (1, 3))
    assert torch.equal(one, many)


@pytest.fixture(scope="module")
def deberta(tiny_tokenizer):
    """A DeBERTa-v2 with a frozen head, whose query projection also sees the embeddings of relative positions."""
    config = transformers.AutoConfig.for_model(
        "deberta-v2", vocab_size=len(tiny_tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, pad_token_id=0, type_vocab_size=0, relative_attention=True, pos_att_type=["p2c", "c2p"],
        position_buckets=8, norm_rel_ebd="layer_norm", share_att_key=True, initializer_range=0.4, num_labels=3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = transformers.AutoModelForSequenceClassification.from_config(config)
        model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["query_proj", "value_proj"]))
    model.tokenizer, model.description = tiny_tokenizer, {"labels": 3}
    return model.eval()


@pytest.mark.parametrize("samples", [2, 5])
def test_draws_are_made_one_by_one_where_a_layer_does_not_see_the_batch_first(deberta, questions, samples):
    asked = [replace(q, choices=("no", "yes", "maybe"), answer=0) for q in questions[:6]]
    options = {"posterior": GaussianPosterior.isotropic(deberta, 0.05), "samples": samples, "format": "class"}
    many, one = (predict(deberta, asked, **options, draws_per_pass=k).logits for k in (5, 1))
    assert (one[0] - one[1]).abs().max() > 0.1
    torch.testing.assert_close(many, one, atol=1e-5, rtol=1e-5)
    assert can_stack(deberta) and vars(deberta)["_stacks"] is False


def test_draws_of_an_unknown_kind_share_a_pass_where_that_is_found_to_be_exact(tiny_model, questions):
    model = tiny_model("gemma2", trained=True, attention="eager", num_key_value_heads=2, head_dim=8)
    options = {"posterior": GaussianPosterior.isotropic(model, 0.05), "samples": 4}
    one, _ = (predict(model, questions[:3], **options, draws_per_pass=k).logits for k in (1, 4))
    assert vars(model)["_stacks"] is True
    passes = []
    hook = model.register_forward_hook(lambda *_: passes.append(1))
    many = predict(model, questions[:3], **options, draws_per_pass=4).logits
    hook.remove()
    assert len(passes) == 1
    torch.testing.assert_close(many, one, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ask", [predict, linearized])
def test_every_part_keeps_its_own_mode(tiny_model, questions, ask):
    model = tiny_model(trained=True).train()
    model.get_submodule("base_model.model.model.layers.0").eval()
    modes = [module.training for module in model.modules()]
    ask(model, questions[:2], posterior=GaussianPosterior.isotropic(model, 0.05))
    assert [module.training for module in model.modules()] == modes and len(set(modes)) == 2


def test_refusals(tiny_model, questions):
    model = tiny_model(trained=True)
    posterior = GaussianPosterior.isotropic(model, 0.05)
    with pytest.raises(ValueError, match="draws_per_pass is 0"):
        predict(model, questions, posterior=posterior, samples=2, draws_per_pass=0)
    narrow = {name: m[..., :1].contiguous() for name, m in posterior.mean.items()}
    wrong = GaussianPosterior(narrow, {name: torch.ones_like(m) for name, m in narrow.items()})
    with pytest.raises(ValueError, match="shape"):
        predict(model, questions, posterior=wrong, samples=2)


def test_threads_that_predict_with_one_model_get_what_one_alone_gets(tiny_model, questions):
    model = tiny_model(trained=True)
    posterior = GaussianPosterior.isotropic(model, 0.05)

    def draws(seed):
        return predict(model, questions[:5], posterior=posterior, samples=4, seed=seed, batch_size=2).logits

    alone, before = [draws(seed) for seed in range(6)], {name: p.clone() for name, p in trainable(model).items()}
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(draws, range(6)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together))
    assert all(torch.equal(p, before[name]) for name, p in trainable(model).items())
    assert not any("forward" in vars(module) for module in model.modules())
