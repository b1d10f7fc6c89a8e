"""The Gaussian posterior: draws, scaling, pruning, KL, file, and its weights in a model."""

from __future__ import annotations

import copy
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributions import Normal, kl_divergence

from ivon_lora_lite import (
    IVON,
    GaussianPosterior,
    KroneckerPosterior,
    answer_logits,
    answer_loss,
    collate,
    lora_parameters,
    trainable,
)
from ivon_lora_lite.language import reset_lora
from ivon_lora_lite.posterior import (
    POSTERIOR_FILE,
    LowRankPosterior,
    Posterior,
    applied_weights,
    put_weights,
    read_weights,
)

FORMAT = "ivon_lora_lite.GaussianPosterior/1"


@pytest.fixture
def gaussian():
    """|m|/σ is 1, 10 in the first tensor and 2, 3, 0 in the second: another order than that of |m| or of σ."""
    return GaussianPosterior(
        {"a": torch.tensor([4.0, 0.1]), "b": torch.tensor([[2.0, -3.0, 0.0]])},
        {"a": torch.tensor([16.0, 1e-4]), "b": torch.ones(1, 3)},
        {"ess": 100.0},
    )


def of_model(model, sigma=0.3, seed=0):
    """A posterior over a model's LoRA weights whose mean is not what the model holds."""
    generator = torch.Generator().manual_seed(seed)
    mean = {name: torch.randn(p.shape, generator=generator) for name, p in trainable(model).items()}
    return GaussianPosterior(mean, {name: torch.full_like(m, sigma**2) for name, m in mean.items()})


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def changed(a, b):
    """How many tensors differ."""
    return sum(not torch.equal(a[name], b[name]) for name in a)


def loss_of(model, questions):
    batch = collate(questions, model.tokenizer, "text")
    return answer_loss(answer_logits(model, batch), batch["answers"])


def trained_with_ivon(model, questions, **options):
    optimizer = IVON(lora_parameters(model), lr=0.1, **{"ess": 1000.0, "beta2": 0.9, "seed": 3, **options})
    for _ in range(2):
        with optimizer.sampled_params(train=True):
            loss_of(model, questions).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


# --------------------------------------------------------------------------------------------------------------- draws


def test_draws_have_the_moments_of_the_gaussian():
    n = 100_000
    q = GaussianPosterior(
        {"a": torch.full((n,), 3.0), "b": torch.zeros(n)}, {"a": torch.full((n,), 0.25), "b": torch.full((n,), 4.0)}
    )
    draw = q.sample(seed=0, tau=4.0)
    a, b = (draw["a"] - 3.0) / 1.0, draw["b"] / 4.0  # σ = √(τ v)
    for noise in (a, b):  # the standard errors are 0.003, 0.004 and 0.03
        assert abs(noise.mean()) < 0.015
        assert abs(noise.var() - 1) < 0.02
        assert abs((noise**4).mean() - 3) < 0.15
    other = q.sample(seed=1, tau=4.0)["a"] - 3.0
    assert abs((a * b).mean()) < 0.015 and abs((a * other).mean()) < 0.015  # tensors and seeds are independent


def test_the_same_seed_gives_the_same_noise_for_every_tau(gaussian):
    one = gaussian.sample(seed=5)
    for tau in (0.25, 4.0, 1e-4):
        draw = gaussian.sample(seed=5, tau=tau)
        for name, m in gaussian.mean.items():
            torch.testing.assert_close((draw[name] - m) / math.sqrt(tau), one[name] - m, atol=1e-3, rtol=1e-3)
    assert_same(one, gaussian.sample(seed=5))
    assert not torch.equal(one["b"], gaussian.sample(seed=6)["b"])


def test_tau_zero_is_the_mean(gaussian):
    assert_same(gaussian.sample(seed=5, tau=0), dict(gaussian.mean))


def test_a_seed_may_be_numpys_and_must_be_whole(gaussian, tmp_path):
    assert_same(gaussian.sample(seed=np.int64(5), tau=np.float32(0.25)), gaussian.sample(seed=5, tau=0.25))
    with pytest.raises(TypeError):
        gaussian.sample(seed=5.5)
    folder = gaussian.scale(np.float32(0.25)).save(tmp_path).parent
    assert GaussianPosterior.load(folder).metadata["tau"] == 0.25


def test_draws_do_not_depend_on_the_order_of_names_nor_on_global_random_numbers(gaussian):
    backwards = GaussianPosterior(dict(reversed(gaussian.mean.items())), dict(reversed(gaussian.variance.items())))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = gaussian.sample(seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert_same(first, backwards.sample(seed=5))


@pytest.mark.parametrize("tau", [-0.1, math.inf, math.nan])
def test_an_impossible_tau_is_refused(gaussian, tau):
    for use in (lambda: gaussian.sample(0, tau), lambda: gaussian.scale(tau)):
        with pytest.raises(ValueError, match=f"tau is {tau}"):
            use()


def test_scale_multiplies_the_variance(gaussian):
    scaled = gaussian.scale(0.25)
    assert_same(scaled.mean, gaussian.mean)
    assert_same(scaled.variance, {name: 0.25 * v for name, v in gaussian.variance.items()})
    assert_same(scaled.sample(seed=2), gaussian.sample(seed=2, tau=0.25))
    assert scaled.metadata == {"ess": 100.0, "tau": 0.25}
    assert scaled.scale(8).metadata["tau"] == 2.0
    assert gaussian.metadata == {"ess": 100.0} and gaussian.variance["a"][0] == 16
    with pytest.raises(ValueError, match="a point"):
        gaussian.scale(0)


# ------------------------------------------------------------------------------------------------------------- pruning


def test_signal_to_noise_by_hand(gaussian):
    ratio = gaussian.signal_to_noise()
    torch.testing.assert_close(ratio["a"], torch.tensor([1.0, 10.0]))
    torch.testing.assert_close(ratio["b"], torch.tensor([[2.0, 3.0, 0.0]]))


@pytest.mark.parametrize(
    ("fraction", "a", "b"),
    [
        (0, [4.0, 0.1], [2.0, -3.0, 0.0]),
        (0.4, [0.0, 0.1], [2.0, -3.0, 0.0]),
        (0.6, [0.0, 0.1], [0.0, -3.0, 0.0]),
        (0.8, [0.0, 0.1], [0.0, 0.0, 0.0]),
        (1, [0.0, 0.0], [0.0, 0.0, 0.0]),
    ],
)
def test_prune_drops_the_smallest_ratios_of_all_tensors_together(gaussian, fraction, a, b):
    pruned = gaussian.prune(fraction)
    assert_same(pruned.mean, {"a": torch.tensor(a), "b": torch.tensor([b])})
    quiet = torch.cat([v.flatten() for v in pruned.variance.values()]) < 1e-30
    assert quiet.sum() == round(5 * fraction)
    for name, v in pruned.variance.items():
        kept = v >= 1e-30
        assert torch.equal(v[kept], gaussian.variance[name][kept])
    assert pruned.metadata == {"ess": 100.0, "pruned": fraction}
    draw, whole = pruned.sample(seed=1), gaussian.sample(seed=1)
    for name, v in pruned.variance.items():
        dropped = v < 1e-30
        assert (draw[name][dropped].abs() < 1e-15).all()
        assert torch.equal(draw[name][~dropped], whole[name][~dropped])  # the others' noise stays the same


def test_prune_twice_is_prune_once(gaussian):
    once, twice = gaussian.prune(0.6), gaussian.prune(0.6).prune(0.6)
    assert_same(once.mean, twice.mean)
    assert_same(once.variance, twice.variance)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
def test_an_impossible_fraction_is_refused(gaussian, fraction):
    with pytest.raises(ValueError, match=f"fraction is {fraction}"):
        gaussian.prune(fraction)


# ------------------------------------------------------------------------------------------------------ KL and summary


def test_kl_by_hand():
    q = GaussianPosterior({"w": torch.tensor([1.0])}, {"w": torch.tensor([1.0])})
    assert q.kl(2.0) == pytest.approx(0.5 * math.log(2))  # ½ ((1 + 1)/2 − 1 − log(1/2))
    assert q.kl(1.0) == pytest.approx(0.5)
    assert q.kl() == q.kl(2.0)  # the best prior has v₀ = m² + v


def test_kl_equals_that_of_torch(gaussian):
    def expected(prior):
        return sum(
            kl_divergence(
                Normal(m.double(), gaussian.variance[name].double().sqrt()),
                Normal(torch.zeros(m.shape, dtype=torch.double), prior[name] ** 0.5),
            ).sum()
            for name, m in gaussian.mean.items()
        ).item()

    assert gaussian.kl(0.7) == pytest.approx(expected({"a": 0.7, "b": 0.7}))
    assert gaussian.kl({"a": 0.7, "b": 30.0}) == pytest.approx(expected({"a": 0.7, "b": 30.0}))
    best = {name: (m.square() + gaussian.variance[name]).mean().item() for name, m in gaussian.mean.items()}
    assert gaussian.kl() == pytest.approx(expected(best))
    for factor in (0.9, 1.1):
        assert gaussian.kl() < gaussian.kl({**best, "a": factor * best["a"]})


@pytest.mark.parametrize("prior", [0.0, -1.0, math.nan])
def test_an_impossible_prior_is_refused(gaussian, prior):
    with pytest.raises(ValueError, match="prior_variance is .* for a"):
        gaussian.kl(prior)


def test_summary_by_hand(gaussian):
    assert gaussian.summary() == pytest.approx(
        {
            "parameters": 5,
            "tensors": 2,
            "sigma_mean": (4 + 0.01 + 3) / 5,
            "sigma_min": 0.01,
            "sigma_max": 4.0,
            "snr_median": 2.0,
            "kl": gaussian.kl(),
        }
    )


# ---------------------------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize(
    ("mean", "variance", "message"),
    [
        ([0.0, math.nan], [1.0, 1.0], "layer.w: the mean holds values that are not finite"),
        ([0.0, math.inf], [1.0, 1.0], "layer.w: the mean holds values that are not finite"),
        ([0.0, 0.0], [1.0, math.nan], "layer.w: the variance holds values that are not finite"),
        ([0.0, 0.0], [1.0, math.inf], "layer.w: the variance holds values that are not finite"),
        ([0.0, 0.0], [1.0, 0.0], "layer.w: the variance must be .* minimum is 0.0"),
        ([0.0, 0.0], [1.0, -2.0], "layer.w: the variance must be .* minimum is -2.0"),
        ([0.0, 0.0], [1.0], r"layer.w: variance has shape \(1,\), expected \(2,\)"),
    ],
)
def test_values_that_are_no_gaussian_are_refused(mean, variance, message):
    fine = torch.ones(1)
    with pytest.raises(ValueError, match=message):
        GaussianPosterior(
            {"fine": fine, "layer.w": torch.tensor(mean)}, {"fine": fine, "layer.w": torch.tensor(variance)}
        )


def test_different_names_are_refused():
    one, two = {"x": torch.ones(1)}, {"x": torch.ones(1), "y": torch.ones(1)}
    with pytest.raises(ValueError, match="mean has 'y' .* variance lacks"):
        GaussianPosterior(two, one)
    with pytest.raises(ValueError, match="variance has 'y' .* mean lacks"):
        GaussianPosterior(one, two)


# ---------------------------------------------------------------------------------------------------------------- file


def test_save_and_load_keep_everything(gaussian, tmp_path):
    # a transposed tensor is not contiguous, which safetensors would refuse
    mean = {**gaussian.mean, "c": torch.arange(6.0).view(2, 3).T}
    variance = {**gaussian.variance, "c": torch.full((2, 3), 1e-9).T}
    metadata = {"ess": 100.0, "task": "Übung", "groups": [1, 2], "nothing": None}
    q = GaussianPosterior(mean, variance, metadata)
    folder = tmp_path / "deep" / "run.1"
    path = q.save(folder)
    assert path == folder / POSTERIOR_FILE
    for source in (folder, str(folder), path):
        again = GaussianPosterior.load(source)
        assert_same(again.mean, mean)
        assert_same(again.variance, variance)
        assert again.metadata == metadata
    assert_same(again.sample(seed=4), q.sample(seed=4))
    q.scale(2).save(folder)  # takes the place of the first
    assert_same(GaussianPosterior.load(folder).variance, q.scale(2).variance)
    assert [file.name for file in folder.iterdir()] == [POSTERIOR_FILE]


def test_a_missing_file_is_named(tmp_path):
    for source in (tmp_path, tmp_path / "nowhere", tmp_path / "nowhere" / POSTERIOR_FILE):
        with pytest.raises(FileNotFoundError, match=rf"no posterior at {tmp_path}.*{POSTERIOR_FILE}"):
            GaussianPosterior.load(source)


@pytest.mark.parametrize("keep", [0, 4, 0.5, -1])
def test_a_damaged_file_is_named(gaussian, tmp_path, keep):
    path = gaussian.save(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        GaussianPosterior.load(tmp_path)


def test_text_in_place_of_the_file_is_named(tmp_path):
    (tmp_path / POSTERIOR_FILE).write_text("version https://git-lfs.github.com/spec/v1\n" * 9)
    with pytest.raises(ValueError, match=f"{POSTERIOR_FILE} is damaged"):
        GaussianPosterior.load(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "header", "message"),
    [
        ({"lora_A": torch.ones(1)}, None, "no posterior of this package"),  # an adapter, say
        ({"mean/a": torch.ones(1), "variance/a": torch.ones(1)}, {"format": FORMAT + "0"}, "format '.*/10'"),
        ({"mean/a": torch.ones(1), "sigma/a": torch.ones(1)}, {"format": FORMAT}, "unknown tensor 'sigma/a'"),
        ({"mean/a": torch.ones(1), "variance/a": -torch.ones(1)}, {"format": FORMAT}, "a: the variance must be"),
        ({"mean/a": torch.ones(1)}, {"format": FORMAT}, "mean has 'a'"),
        ({"mean/a": torch.ones(1), "variance/a": torch.ones(1)}, {"format": FORMAT, "facts": "{"}, "property name"),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path, tensors, header, message):
    save_file(tensors, tmp_path / POSTERIOR_FILE, header)
    with pytest.raises(ValueError, match=f"{POSTERIOR_FILE}.*{message}"):
        GaussianPosterior.load(tmp_path)


@pytest.mark.parametrize("before", ["nothing", "a posterior"])
def test_a_failing_save_leaves_nothing_half_written(gaussian, tmp_path, monkeypatch, before):
    if before == "a posterior":
        gaussian.save(tmp_path)
    written = []

    def disk_full(tensors, filename, metadata=None):
        with open(filename, "wb") as file:
            file.write(b"half")
        written.append(filename)
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", disk_full)
    with pytest.raises(OSError, match="No space left"):
        gaussian.scale(2).save(tmp_path)
    assert written
    assert [file.name for file in tmp_path.iterdir()] == ([POSTERIOR_FILE] if before == "a posterior" else [])
    if before == "a posterior":
        assert_same(GaussianPosterior.load(tmp_path).variance, gaussian.variance)


def test_metadata_that_json_cannot_hold_writes_nothing(gaussian, tmp_path):
    with pytest.raises(TypeError):
        GaussianPosterior(gaussian.mean, gaussian.variance, {"model": object()}).save(tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- within the model


@pytest.mark.parametrize(("seed", "tau"), [(None, 1.0), (3, 1.0), (3, 0.25), (3, 0.0)])
def test_applied_puts_a_draw_into_the_model_and_takes_it_out_again(tiny_model, questions, seed, tau):
    model = tiny_model(trained=True)
    q = of_model(model)
    before = weights(model)
    expected = q.mean if seed is None else q.sample(seed, tau)
    with torch.no_grad():
        outside = loss_of(model, questions[:2])
        with q.applied(model, seed, tau):
            assert_same({name: p.detach() for name, p in trainable(model).items()}, dict(expected))
            assert loss_of(model, questions[:2]) != outside
        assert loss_of(model, questions[:2]) == outside
    assert_same(weights(model), before)


def test_applied_restores_after_an_exception_and_when_nested(tiny_model):
    model = tiny_model(trained=True)
    q = of_model(model)
    before = weights(model)
    with pytest.raises(KeyboardInterrupt), q.applied(model, 1):
        raise KeyboardInterrupt
    assert_same(weights(model), before)
    with q.applied(model, 1):
        outer = weights(model)
        with q.applied(model, 2):
            assert changed(outer, weights(model)) == len(q.mean)
        assert_same(weights(model), outer)
    assert_same(weights(model), before)


@pytest.mark.parametrize("inference_outside", [True, False])
def test_training_goes_on_after_inference_mode(tiny_model, questions, inference_outside):
    model = tiny_model(trained=True)
    before = weights(model)
    optimizer = torch.optim.AdamW(lora_parameters(model), lr=0.1)
    q = of_model(model)
    if inference_outside:
        with torch.inference_mode(), q.applied(model, 1):
            loss_of(model, questions[:1])
    else:
        with q.applied(model, 1), torch.inference_mode():
            loss_of(model, questions[:1])
    assert_same(weights(model), before)
    assert not any(p.is_inference() for p in model.parameters())
    loss_of(model, questions[:1]).backward()
    assert all(p.grad is not None for p in lora_parameters(model))
    optimizer.step()
    assert changed(before, weights(model)) == len(q.mean)


def test_inside_the_callers_grad_mode_holds(tiny_model, questions):
    model = tiny_model(trained=True)
    q = of_model(model)
    with torch.inference_mode(), q.applied(model, 1):
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    with torch.no_grad(), q.applied(model, 1):
        assert not torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with q.applied(model, 1):
        assert torch.is_grad_enabled()
        loss_of(model, questions[:1]).backward()
    got = [p.grad.clone() for p in lora_parameters(model)]
    model.zero_grad()
    with torch.no_grad():  # the same gradient as of a model that has these weights for good
        for name, p in trainable(model).items():
            p.copy_(q.sample(1)[name])
    loss_of(model, questions[:1]).backward()
    for g, p in zip(got, lora_parameters(model), strict=True):
        assert g.abs().max() > 0
        torch.testing.assert_close(g, p.grad)


def test_16_bit_weights_are_rounded_and_restored_exactly():
    model = nn.Linear(3, 2).bfloat16()
    before = weights(model)
    q = GaussianPosterior.isotropic(model, 0.1)
    assert all(m.dtype == torch.float32 for m in q.mean.values())
    with q.applied(model, 1):
        assert model.weight.dtype == torch.bfloat16
        assert torch.equal(model.weight, q.sample(1)["weight"].bfloat16())
    assert_same(weights(model), before)


def test_weights_of_another_model_are_refused_and_change_nothing(tiny_model):
    model = tiny_model(trained=True)
    before = weights(model)
    mean = dict(of_model(model).mean)
    last = sorted(mean)[-1]
    narrow = {**mean, last: mean[last][:, :4]}
    lacking = {name: m for name, m in mean.items() if name != last}
    cases = ((narrow, "another rank"), (lacking, "which the weights lacks"), ({**mean, "x": mean[last]}, "'x'"))
    for wrong, message in cases:
        with pytest.raises(ValueError, match=message), applied_weights(model, wrong):
            pass
    assert_same(weights(model), before)


def test_weights_are_not_put_into_a_merged_adapter_where_they_would_have_no_effect(tiny_model):
    model = tiny_model(trained=True)
    q = of_model(model)
    model.merge_adapter()
    for put in (lambda: put_weights(model, q.mean), lambda: q.applied(model, 1).__enter__()):
        with pytest.raises(ValueError, match="merged into the base model"):
            put()
    model.unmerge_adapter()
    put_weights(model, q.mean)
    assert_same(read_weights(model), dict(q.mean))


@pytest.mark.parametrize("rank", [4, 8])
def test_a_second_adapter_is_reset_to_its_own_first_weights(tiny_model, rank):
    import peft

    model = tiny_model(trained=True)
    reset_lora(model, 0)
    options = {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["lm_head"], "init_lora_weights": False}
    model.add_adapter("other", peft.LoraConfig(r=rank, **options))
    model.set_adapter("other")
    first = read_weights(model)
    for seed in (0, 1):
        reset_lora(model, seed)
        assert_same(read_weights(model), first)
        put_weights(model, {name: w + 1 for name, w in first.items()})
    model.delete_adapter("other")  # another one may have its name
    model.add_adapter("other", peft.LoraConfig(r=rank // 2, **options))
    model.set_adapter("other")
    again = read_weights(model)
    reset_lora(model, 0)
    assert_same(read_weights(model), again)
    model.set_adapter("default")
    reset_lora(model, 0)
    assert all((w == 0).all() == (".lora_B." in name) for name, w in read_weights(model).items())


# ---------------------------------------------------------------------------------------------------------- where from


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
@pytest.mark.parametrize("adapter_name", ["default", "mine"])
def test_names_are_those_of_pefts_file(tiny_model, tmp_path, architecture, adapter_name):
    model = tiny_model(architecture, trained=True)
    if adapter_name != "default":
        model.add_adapter(adapter_name, model.peft_config["default"])
        model.set_adapter(adapter_name)
    model.save_pretrained(tmp_path, selected_adapters=[adapter_name])
    folder = tmp_path if adapter_name == "default" else tmp_path / adapter_name
    q = GaussianPosterior.isotropic(model, 1e-4)
    assert_same(dict(q.mean), load_file(folder / "adapter_model.safetensors"))
    with safe_open(q.save(folder), "pt") as file:
        assert set(file.keys()) == {f"{half}/{name}" for half in ("mean", "variance") for name in q.mean}


def test_isotropic_is_a_snapshot_of_the_weights(tiny_model):
    model = tiny_model(trained=True)
    q = GaussianPosterior.isotropic(model, 1e-4, source="adamw")
    before = {name: p.detach().clone() for name, p in trainable(model).items()}
    for p in lora_parameters(model):
        p.data.add_(1)
    assert_same(dict(q.mean), before)
    assert {v.unique().item() for v in q.variance.values()} == {torch.tensor(1e-4).item()}
    assert all(v.shape == q.mean[name].shape for name, v in q.variance.items())
    assert q.metadata == {"source": "adamw"}
    with pytest.raises(ValueError, match="lora_A.*variance"):
        GaussianPosterior.isotropic(model, 0.0)


def test_from_optimizer_holds_what_ivon_learned(tiny_model, questions):
    model = tiny_model()
    optimizer = trained_with_ivon(model, questions[:2], weight_decay=0.01)
    q = GaussianPosterior.from_optimizer(optimizer, model, task="test")
    params = trainable(model)
    assert q.mean.keys() == params.keys()
    spread = 0.0
    for name, p in params.items():
        assert torch.equal(q.mean[name], p.detach())
        torch.testing.assert_close(q.variance[name], 1 / (1000.0 * (optimizer.state[p]["hess"] + 0.01)))
        spread = max(spread, (q.variance[name] / q.variance[name].mean() - 1).abs().max().item())
    assert spread > 1e-3  # the Hessian has moved
    assert q.metadata == {"step": 2, "ess": 1000.0, "weight_decay": 0.01, "task": "test"}

    mean, variance = ({name: t.clone() for name, t in half.items()} for half in (q.mean, q.variance))
    with optimizer.sampled_params(train=True):
        loss_of(model, questions[:2]).backward()
        with pytest.raises(RuntimeError, match="draw"):  # inside, the weights are not the mean
            GaussianPosterior.from_optimizer(optimizer, model)
    optimizer.step()
    assert_same(dict(q.mean), mean)
    assert_same(dict(q.variance), variance)


def test_weights_of_another_optimizer_are_points(tiny_model):
    model = tiny_model(trained=True)
    params = trainable(model)
    name, p = next(iter(params.items()))
    optimizer = IVON([q for q in params.values() if q is not p], lr=0.1, ess=1e4)
    q = GaussianPosterior.from_optimizer(optimizer, model)
    assert q.metadata["points"] == [name] and q.variance.keys() == params.keys() - {name}
    with q.applied(model, seed=1):
        assert [n for n, w in trainable(model).items() if torch.equal(w, q.mean[n])] == [name]


def test_from_optimizer_takes_the_fp32_mean_of_16_bit_weights():
    torch.manual_seed(0)
    model = nn.Linear(8, 8).bfloat16()
    optimizer = IVON(model.parameters(), lr=1e-3, ess=1e6, seed=0)
    with optimizer.sampled_params(train=True):
        model(torch.ones(1, 8).bfloat16()).sum().backward()
    optimizer.step()
    q = GaussianPosterior.from_optimizer(optimizer, model)
    assert q.mean["weight"].dtype == q.variance["weight"].dtype == torch.float32
    assert torch.equal(q.mean["weight"].bfloat16(), model.weight)
    assert not torch.equal(q.mean["weight"], model.weight.float())


def test_from_optimizer_lists_what_differs_between_groups():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    groups = [{"params": model[0].parameters(), "ess": 10.0}, {"params": model[1].parameters(), "ess": 20.0}]
    q = GaussianPosterior.from_optimizer(IVON(groups, lr=0.1, ess=1.0, hess_init=0.5, weight_decay=0.5), model)
    assert q.metadata == {"step": 0, "ess": [10.0, 20.0], "weight_decay": 0.5}
    assert q.variance["0.weight"].unique().item() == pytest.approx(1 / 10)
    assert q.variance["1.bias"].unique().item() == pytest.approx(1 / 20)


def test_from_optimizer_refuses_another_model():
    optimizer = IVON(nn.Linear(2, 2).parameters(), lr=0.1, ess=1.0)
    with pytest.raises(ValueError, match="None of the optimizer's parameters"):
        GaussianPosterior.from_optimizer(optimizer, nn.Linear(2, 2))


def test_plain_peft_reads_the_folder_and_predicts_at_the_mean(tiny_model, questions, tmp_path):
    import peft

    model = tiny_model()
    q = GaussianPosterior.from_optimizer(trained_with_ivon(model, questions[:2]), model)
    model.save_pretrained(tmp_path)
    q.save(tmp_path)
    batch = collate(questions, model.tokenizer, "text")
    plain = peft.PeftModel.from_pretrained(tiny_model(lora=False), tmp_path).eval()
    with torch.no_grad():
        fresh = answer_logits(tiny_model(), batch)
        for p in lora_parameters(model):  # the posterior brings the mean, whatever the model holds by now
            p.zero_()
        with GaussianPosterior.load(tmp_path).applied(model):
            mean = answer_logits(model, batch)
        got = answer_logits(plain, batch)
    torch.testing.assert_close(got, mean)
    assert (got - fresh)[torch.isfinite(fresh)].abs().max() > 1e-2  # two steps did change the model
    facts = json.loads((tmp_path / "adapter_config.json").read_text("utf8"))
    assert facts["peft_type"] == "LORA" and facts["r"] == 8


# ------------------------------------------------------------------------------------------------ points


def test_points_are_the_same_in_every_draw_and_need_to_be_named(gaussian, tmp_path):
    mean, variance = dict(gaussian.mean), {"a": gaussian.variance["a"]}
    with pytest.raises(ValueError, match=r"mean has 'b' \(1 in all\), which variance lacks"):
        GaussianPosterior(mean, variance)
    q = GaussianPosterior(mean, variance, {"points": ["b"]})
    q.save(tmp_path)
    for kept in (q, GaussianPosterior.load(tmp_path)):
        one, other = kept.sample(1), kept.sample(2, tau=0.5)
        assert torch.equal(one["b"], mean["b"]) and torch.equal(other["b"], mean["b"])
        assert torch.equal(one["a"], gaussian.sample(1)["a"])
    alone = GaussianPosterior({"a": mean["a"]}, variance)
    assert q.kl(0.5) == alone.kl(0.5) and q.summary()["parameters"] == 2
    jacobian = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.ones(1, 1, 3)}
    assert torch.equal(q.covariance(jacobian), alone.covariance({"a": jacobian["a"]}))
    pruned = q.prune(0.5)  # |m|/σ of a is 1 and 10; b is not asked
    assert pruned.mean["a"].tolist() == pytest.approx([0.0, 0.1]) and torch.equal(pruned.mean["b"], mean["b"])
    assert torch.equal(q.scale(4.0).variance["a"], 4 * variance["a"]) and "b" not in q.scale(4.0).variance


def test_a_pruned_kronecker_posterior_is_zero_there_in_every_draw(tmp_path):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 3, generator=generator), torch.randn(2, 2, generator=generator)
    q = KroneckerPosterior.from_factors({"w": torch.randn(2, 3, generator=generator)}, {"w": (a @ a.T, b @ b.T)}, 0.5)
    pruned = q.prune(0.5)
    mask = pruned.pruned["w"]
    assert int(mask.sum()) == 3
    ratio = q.signal_to_noise()["w"]
    assert ratio[mask].max() < ratio[~mask].min()
    pruned.save(tmp_path)
    for kept in (pruned, KroneckerPosterior.load(tmp_path)):
        draw = kept.sample(3)["w"]
        assert (draw[mask] == 0).all() and torch.equal(draw[~mask], q.sample(3)["w"][~mask])
        jacobian = {"w": torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(1))}
        expected = q.covariance({"w": jacobian["w"].masked_fill(mask, 0.0)})
        torch.testing.assert_close(kept.covariance(jacobian), expected)
        assert (kept.variance["w"][mask] < 1e-30).all()


def test_pruning_a_kronecker_posterior_again_keeps_what_was_pruned_before():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 5, generator=generator), torch.randn(6, 6, generator=generator)
    q = KroneckerPosterior.from_factors({"w": torch.randn(6, 5, generator=generator)}, {"w": (a @ a.T, b @ b.T)}, 1.0)
    once = q.prune(0.5)
    gone = once.pruned["w"]
    for twice in (once.prune(0.1), once.prune(0.5)):
        assert torch.equal(twice.mean["w"] == 0, gone) and torch.equal(twice.sample(0)["w"] == 0, gone)
    more = once.prune(0.8)
    assert (more.sample(0)["w"] == 0).sum() == 24 and (more.mean["w"][gone] == 0).all()


def test_one_autocast_around_several_draws_computes_with_each_of_them(tiny_model):
    model, x, inside, apart = tiny_model(trained=True), torch.tensor([[5, 6, 7, 8]]), [], []
    posterior = GaussianPosterior.isotropic(model, 0.05)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for seed in range(3):
            with posterior.applied(model, seed):
                inside.append(model(x).logits)
        inside.append(model(x).logits)
    with torch.no_grad():
        for seed in range(3):
            with posterior.applied(model, seed), torch.autocast("cpu", torch.bfloat16):
                apart.append(model(x).logits)
        with torch.autocast("cpu", torch.bfloat16):
            apart.append(model(x).logits)
    torch.testing.assert_close(torch.stack(inside), torch.stack(apart), rtol=0, atol=0)
    assert not torch.equal(inside[0], inside[1])


def test_an_adapter_that_was_loaded_for_inference_takes_draws(tiny_model, tmp_path):
    import peft

    model, x = tiny_model(trained=True), torch.tensor([[5, 6, 7, 8]])
    posterior = GaussianPosterior.isotropic(model, 0.05)
    model.save_pretrained(tmp_path)
    frozen = peft.PeftModel.from_pretrained(tiny_model(lora=False), tmp_path).eval()
    assert not trainable(frozen)
    with torch.no_grad():
        for seed in (0, 1):
            with posterior.applied(model, seed), posterior.applied(frozen, seed):
                torch.testing.assert_close(frozen(x).logits, model(x).logits)
        torch.testing.assert_close(frozen(x).logits, model(x).logits)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_offloaded_weights_are_refused(tiny_model):
    accelerate = pytest.importorskip("accelerate")
    model = tiny_model(trained=True)
    posterior = GaussianPosterior.isotropic(model, 0.05)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(ValueError, match="weights are offloaded"), posterior.applied(model, 0):
        pass


def test_another_thread_waits_until_the_weights_are_back(tiny_model):
    model, order = tiny_model(), []
    before, posterior = read_weights(model), GaussianPosterior.isotropic(model, 0.1)
    name = next(iter(before))

    def use(seed, inside, go_on):
        with posterior.applied(model, seed):
            with posterior.applied(model, seed):  # the same thread may
                order.append(seed)
            inside.set()
            assert go_on.wait(20)
            assert torch.equal(read_weights(model)[name], posterior.sample(seed)[name])

    first_in, second_in, go_on, at_once = (threading.Event() for _ in range(4))
    at_once.set()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(use, 0, first_in, go_on)
        assert first_in.wait(20)
        second = pool.submit(use, 1, second_in, at_once)
        assert not second_in.wait(0.3)
        go_on.set()
        first.result(), second.result()
    assert order == [0, 1]
    assert all(torch.equal(w, before[name]) for name, w in read_weights(model).items())
    assert all(torch.equal(w, before[name]) for name, w in read_weights(copy.deepcopy(model)).items())


@pytest.mark.parametrize("make", [
    lambda t: GaussianPosterior({"w": t}, {"w": t + 1}),
    lambda t: LowRankPosterior({"w": t}, {"w": t + 1}, {"w": torch.ones(2, 3, 2, device="cpu")}),
])  # fmt: skip
def test_draws_are_the_same_whatever_the_default_device(make):
    posterior = make(torch.zeros(3, 2))
    expected = posterior.sample(1)["w"]
    with torch.device("meta"):  # as set_default_device("cuda") does in a script
        assert torch.equal(posterior.sample(1)["w"], expected)


def test_every_kind_with_a_variance_has_a_summary_and_others_say_what_they_cannot(gaussian):
    low_rank = LowRankPosterior({"w": torch.ones(3)}, {"w": torch.ones(3)}, {"w": torch.ones(2, 3)})
    summary = low_rank.summary()
    assert summary["parameters"] == 3 and summary["sigma_mean"] == pytest.approx(low_rank.variance["w"].sqrt().mean())
    assert gaussian.summary().keys() - summary.keys() == {"kl"}

    class Bare(Posterior):
        mean = metadata = {}

        def sample(self, seed, tau=1.0):
            return {}

    for ask in (Bare().summary, lambda: Bare().scale(0.5), lambda: Bare().prune(0.5)):
        with pytest.raises(ValueError, match="Bare (has no variance|cannot be)"):
            ask()
