"""BLoB, ScalaBL, PAC-tuning, GIFT-SW and TFB against closed forms, dense algebra and a grid."""

from __future__ import annotations

import math
import sys

import peft
import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from ivon_lora_lite import (
    LoraSettings,
    collate,
    finetune,
    load_model,
    load_posterior,
    load_run,
    load_task,
    predict,
    tau_sweep,
)
from ivon_lora_lite.evaluation import jacobian, visit_gradients
from ivon_lora_lite.gates import GateSettings
from ivon_lora_lite.language import answer_logits, reset_lora
from ivon_lora_lite.language.adapters import peft_config
from ivon_lora_lite.methods import (
    BlobSettings,
    GiftSettings,
    KeepBest,
    PacSettings,
    RowPosterior,
    ScalablSettings,
    WeightCollector,
    balanced,
    blob,
    gift_sw,
    pac_tuning,
    scalabl,
    tfb,
)
from ivon_lora_lite.methods.blob import flipout
from ivon_lora_lite.methods.scalabl import ScalablTraining
from ivon_lora_lite.methods.tfb import largest_within
from ivon_lora_lite.methods.variational import Owners, gaussian_kl
from ivon_lora_lite.posterior import lora_layers, read_weights, trainable
from ivon_lora_lite.training.run import started_from

SHORT = {"steps": 6, "train_size": 8, "progress": False, "eval_every": 0, "seed": 3}


@pytest.fixture
def model(tiny_model):
    return tiny_model()


@pytest.fixture(scope="module")
def task():
    return load_task("everyday@1")


def randomise(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in trainable(model).values():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))


def train_without_dropout(model):
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


# ------------------------------------------------------------------------------------------------ BLoB


def test_the_kl_and_its_gradient_are_those_of_gaussians():
    mean, sigma = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([0.3, -1.0], [0.1, 0.5]))
    kl = gaussian_kl(mean, sigma, 0.2)
    expected = kl_divergence(Normal(mean, sigma), Normal(0.0, 0.2)).sum()
    assert float(kl) == pytest.approx(float(expected), rel=1e-7)
    kl.backward()
    torch.testing.assert_close(mean.grad, mean.detach() / 0.04)
    torch.testing.assert_close(sigma.grad, sigma.detach() / 0.04 - 1 / sigma.detach())


def test_flipout_has_the_mean_and_variance_of_plain_draws_and_decorrelates_questions():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 5, generator=generator)
    x[0, 1] = x[0, 0]  # the same input, in two questions
    sigma = torch.rand(3, 5, generator=generator) + 0.1
    owner, draws = torch.tensor([[0, 1]]), 20_000
    out = torch.empty(draws, 2, 3)
    for k in range(draws):
        epsilon = torch.randn(3, 5, generator=generator)
        signs = (torch.randint(2, (2, n), generator=generator) * 2.0 - 1 for n in (5, 3))
        out[k] = flipout(x, sigma * epsilon, owner, *signs)[0]
    variance = sigma.square() @ x[0, 0].square()  # of Σ_j σ_ij ε_ij x_j
    error = variance / draws**0.5
    assert ((out.mean(0)).abs() < 4 * (variance / draws).sqrt()).all()
    assert ((out.var(0) - variance).abs() < 6 * error).all()
    shared = (out[:, 0] * out[:, 1]).mean(0)  # one plain draw for both would make this the variance
    assert (shared.abs() < 5 * error).all()


@pytest.mark.parametrize("format", ["text", "letter"])
def test_every_token_has_the_noise_of_its_question(model, task, format):
    questions = task.train[:3]
    batch = collate(questions, model.tokenizer, format)
    owners = Owners()
    owners.see(model, batch, format)
    rows, length = batch["input_ids"].shape
    owner, count = owners.of(torch.zeros(rows, length, 4))
    assert count == 3
    if format == "text":
        blocks = batch["sees"][batch["block"]]
        assert all(owner[0][blocks == block].unique().tolist() == [k] for k, block in enumerate(blocks.unique()))
    else:
        assert (owner == torch.arange(3)[:, None])[batch["attention_mask"] > 0].all()
        assert batch["attention_mask"].sum() < batch["attention_mask"].numel()  # there is padding to leave out


def test_noise_is_there_in_training_only_and_the_same_in_a_second_pass(model, task):
    randomise(model)
    batch = collate(task.train[:2], model.tokenizer, "text")
    with BlobSettings(start=0.5).attach(model, seed=1) as training:
        training.see(model, batch, "text")
        train_without_dropout(model)
        one, again = (answer_logits(model, batch) for _ in range(2))
        training.see(model, batch, "text")
        other = answer_logits(model, batch)
        model.eval()
        at_mean = answer_logits(model, batch)
    assert torch.equal(one, again) and not torch.allclose(one, other) and not torch.allclose(one, at_mean)
    torch.testing.assert_close(at_mean, answer_logits(model, batch))


def test_a_single_question_sees_one_plain_draw(model, task):
    """With one question the signs are those of a draw of A: the noisy pass is a pass with other weights."""
    randomise(model)
    batch = collate(task.train[:1], model.tokenizer, "text")
    with BlobSettings(start=0.5).attach(model, seed=1) as training:
        training.see(model, batch, "text")
        train_without_dropout(model)
        noisy = answer_logits(model, batch)
        noise = {name: (training.g[name].square() * e) * (r.T * s) for name, (e, s, r) in training.noise.items()}
    with torch.no_grad():
        for name, p in trainable(model).items():
            p.add_(noise.get(name, torch.zeros(())))
    model.eval()
    torch.testing.assert_close(answer_logits(model, batch), noisy.detach(), atol=1e-5, rtol=1e-4)


def test_blob_is_a_run_with_a_posterior_over_a(model, task, tmp_path):
    run = blob(model, task, **SHORT, lr=1e-3, start=0.3, kl_weight=0.5, noise_lr=0.05)
    assert set(run.posterior.variance) == {name for name in run.weights if ".lora_A." in name}
    start = 0.3**4
    moved = torch.cat([v.flatten() for v in run.posterior.variance.values()])
    assert not ((moved >= start / 4) & (moved <= start)).all()  # G began in [ε/√2, ε]
    assert [entry["noise_kl"] for entry in run.history if "noise_kl" in entry]
    questions = task.test[:6]
    drawn = predict(run, questions, samples=3)
    assert drawn.logits.std(0).max() > 0
    run.save(tmp_path / "run")
    again = load_run(tmp_path / "run", model)
    assert torch.equal(predict(again, questions, samples=3).logits, drawn.logits)
    sweep = tau_sweep(again, questions, taus=(0.0, 1.0), samples=2)
    torch.testing.assert_close(sweep.predictions(0.0).logits, predict(run, questions).logits)


def test_a_heavy_kl_pulls_the_noise_to_the_prior(model, task):
    """The sign of the KL's gradient: σ starts far below σ_p and grows, the more the heavier the KL."""
    sigma = {}
    for weight in (1e-6, 10.0):
        run = blob(model, task, **SHORT, lr=1e-4, kl_weight=weight, noise_lr=0.05)
        sigma[weight] = torch.cat([v.flatten() for v in run.posterior.variance.values()]).sqrt().mean()
    assert sigma[10.0] > 1.3 * sigma[1e-6]


@pytest.mark.parametrize("settings", [{"kl_weight": 0.0}, {"start": -1.0}, {"prior_sigma": math.inf}])
def test_settings_out_of_range_are_refused(settings):
    name = next(iter(settings))
    for kind in (BlobSettings, ScalablSettings):
        with pytest.raises(ValueError, match=f"{name} is .*; expected a finite number above 0"):
            kind(**settings)


def test_noise_that_vanished_is_still_a_gaussian(model, task):
    run = finetune(model, task, optimizer="adamw", **{**SHORT, "steps": 1})
    with BlobSettings().attach(model, seed=0) as training:
        for g in training.g.values():
            g.data.fill_(1e-12)
    variance = training.posterior(run, {"points": sorted(run.weights.keys() - training.g.keys())}).variance
    assert all((v > 0).all() for v in variance.values())


@pytest.mark.parametrize("kind", [blob, scalabl, pac_tuning, gift_sw])
@pytest.mark.parametrize("wrong", ["prior_sgima", "kl_wieght"])
def test_settings_of_another_name_are_refused(model, task, kind, wrong):
    with pytest.raises(ValueError, match=f"has no setting '{wrong}'"):
        kind(model, task, **SHORT, **{wrong: 7.0})


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "given"), [(scalabl, "adapter"), (scalabl, "start"), (blob, "start")])
def test_training_goes_on_from_an_adapter_or_from_weights(kind, given, tiny_folder, task, tmp_path):
    options = {"dtype": "fp32", "device": "cpu", "progress": False}
    model, questions = load_model(tiny_folder, **options), task.test[:4]
    run = finetune(model, task, optimizer="adamw", **SHORT, lr=1e-2)
    expected = predict(run, questions).logits
    still, start = {**SHORT, "steps": 1, "lr": 1e-12, "noise_lr": 1e-12}, {"start": run.weights}
    fresh = kind(model, task, **still)
    assert not torch.allclose(predict(fresh, questions).logits, expected, atol=1e-3)
    if given == "adapter":
        model, start = load_model(tiny_folder, adapter=run.save(tmp_path / "run"), **options), {}
    found = kind(model, task, **still, **start)
    torch.testing.assert_close(predict(found, questions).logits, expected, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------------------ ScalaBL


def test_delta_w_is_b_s_a(model, task):
    """In training LoRA's product is B diag(s) A with the s that was drawn, and afterwards B diag(μ) A."""
    reset_lora(model, 5)
    before = {name: w.double() for name, w in read_weights(model).items()}
    batch = collate(task.train[:1], model.tokenizer, "text")
    seen = {}
    with ScalablSettings(start=0.4).attach(model, seed=1) as training:
        assert isinstance(training, ScalablTraining)
        name, module = next(iter(training.modules.items()))
        _, values, _ = torch.linalg.svd(before[name], full_matrices=False)
        torch.testing.assert_close(training.log_mean[name].exp().double(), values, atol=1e-6, rtol=1e-5)
        rows = module.weight.detach().double()
        torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)).double(), atol=1e-5, rtol=0)
        handle = module.register_forward_hook(lambda m, args, out: seen.update(x=args[0], out=out))
        training.see(model, batch, "text")
        model.train()
        answer_logits(model, batch)
        handle.remove()
        s = training.log_mean[name].exp() + training.log_sigma[name].exp() * training.noise[name][0]
        expected = seen["x"] @ (torch.diag(s) @ module.weight).T
        torch.testing.assert_close(seen["out"], expected, atol=1e-5, rtol=1e-4)
        model.eval()
        inside = answer_logits(model, batch)
    torch.testing.assert_close(answer_logits(model, batch), inside, atol=1e-5, rtol=1e-4)


def test_scalabl_draws_are_adapters_with_scaled_rows(model, task, tmp_path):
    run = scalabl(model, task, **SHORT, lr=1e-3)
    posterior = run.posterior
    assert {name for name in run.weights if ".lora_B." in name} == set(posterior.metadata["points"])
    draw = posterior.sample(4, tau=0.25)
    for name, spread in posterior.spread.items():
        ratio = (draw[name] / run.weights[name]).nan_to_num(1.0)  # one number a row
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), atol=1e-4, rtol=1e-4)
        share = (spread / run.weights[name]).nan_to_num()[:, 0]
        twice = posterior.sample(4, tau=1.0)[name] / run.weights[name]
        torch.testing.assert_close(twice[:, 0] - 1, 2 * (ratio[:, 0] - 1), atol=1e-4, rtol=1e-3)
        assert (share > 0).all()
    run.save(tmp_path / "run")
    again = load_run(tmp_path / "run", model)
    assert isinstance(load_posterior(tmp_path / "run"), RowPosterior)
    questions = task.test[:4]
    assert torch.equal(predict(again, questions, samples=2).logits, predict(run, questions, samples=2).logits)


def test_a_start_with_a_row_of_zeros_has_logarithms(model, task):
    with torch.no_grad():
        for pair in lora_layers(model).values():
            pair.a.weight[0] = 0
            pair.b.weight.normal_(0, 0.1)
    start = read_weights(model)
    run = scalabl(model, task, start=start, **SHORT)
    assert all(v.isfinite().all() for v in run.posterior.variance.values())


def test_the_covariance_of_rows_is_that_of_draws():
    generator = torch.Generator().manual_seed(0)
    mean, spread = torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator)
    q = RowPosterior({"a": mean, "b": mean}, {"a": spread}, {"points": ["b"]})
    jacobian = {name: torch.randn(2, 3, 4, generator=generator) for name in "ab"}
    deviations = torch.stack([q.sample(seed)["a"] - mean for seed in range(4000)])
    moved = torch.einsum("cij,sij->sc", jacobian["a"], deviations)
    expected = q.covariance(jacobian)
    torch.testing.assert_close(moved.T @ moved / 4000, expected, atol=0.1 * float(expected.max()), rtol=0)
    torch.testing.assert_close(q.scale(4.0).covariance(jacobian), 4 * expected)
    with pytest.raises(ValueError, match="mean has 'b'"):
        RowPosterior({"a": mean, "b": mean}, {"a": spread})


# ------------------------------------------------------------------------------------------------ TFB


def test_the_product_stays_and_noise_is_divided_by_singular_values(model, task):
    run = finetune(model, task, optimizer="adamw", **SHORT, lr=1e-2)
    weights, inverse = balanced(run.model, run.weights)
    pairs = [(name, name.replace("lora_A", "lora_B")) for name in inverse]
    assert len(pairs) == len(lora_layers(model))
    for a, b in pairs:
        old, new = (w[b].double() @ w[a].double() for w in (run.weights, weights))
        assert (old - new).abs().max() < 1e-6
        gram = weights[b].double().T @ weights[b].double()  # B' has orthogonal columns of length d
        d = torch.linalg.svdvals(run.weights[b].double())
        torch.testing.assert_close(gram.diag().sqrt(), d, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(inverse[a][:, 0].double() * d, torch.ones(len(d)).double(), atol=1e-3, rtol=0)
    bayes = tfb(run, task.validation[:6], tolerance=0.05, samples=3, halvings=4)
    sigma_q = bayes.posterior.metadata["sigma_q"]
    a = pairs[0][0]
    torch.testing.assert_close(bayes.posterior.variance[a][:, :1], (sigma_q * inverse[a]).square())
    questions = task.test[:6]
    torch.testing.assert_close(predict(bayes, questions).logits, predict(run, questions).logits, atol=1e-4, rtol=1e-4)


def test_the_bisection_finds_what_a_grid_finds():
    def change(x):
        return x**2

    found = largest_within(change, 0.01, 1e-3, 1.0, 20)
    grid = max(x / 1e4 for x in range(10, 10_000) if change(x / 1e4) <= 0.01)
    assert found <= 0.1 and found == pytest.approx(grid, abs=1e-4)
    assert largest_within(change, 2.0, 1e-3, 1.0, 20) == 1.0
    for hopeless in (change, lambda x: math.nan):
        with pytest.raises(ValueError, match="beyond the tolerance of 1e-09 already"):
            largest_within(hopeless, 1e-9, 1e-3, 1.0, 20)


def test_noise_that_overflows_is_too_much(model, task, monkeypatch):
    def bounded(source, questions, *, posterior=None, **options):
        if posterior is not None and posterior.metadata["sigma_q"] > limit:
            raise FloatingPointError("the draw's logits are not finite")
        return predict(source, questions, posterior=posterior, **options)

    run = finetune(model, task, optimizer="adamw", **{**SHORT, "steps": 2}, lr=1e-2)
    limit = 0.003
    monkeypatch.setattr(sys.modules["ivon_lora_lite.methods.tfb"], "predict", bounded)
    found = tfb(run, task.validation[:4], tolerance=1e6, samples=1, halvings=8).posterior.metadata["sigma_q"]
    assert 0.9 * limit < found <= limit


def test_a_larger_tolerance_allows_more_noise_and_labels_may_be_the_models_own(model, task):
    run, anchors = finetune(model, task, optimizer="adamw", **SHORT, lr=1e-2), task.validation[:8]
    found = [tfb(run, anchors, tolerance=t, samples=3, halvings=6).posterior.metadata["sigma_q"] for t in (0.003, 0.03)]
    assert found[0] < found[1]
    true = tfb(run, anchors, labels="true", criterion="acc", tolerance=0.5, samples=2, halvings=3)
    assert true.posterior.metadata["labels"] == "true"
    for wrong in ({"labels": "mine"}, {"criterion": "ece"}):
        with pytest.raises(ValueError, match="There is no"):
            tfb(run, anchors, **wrong)


# ------------------------------------------------------------------------------------------------ the output layer


def with_output_layer(tiny_model):
    import peft

    plain = tiny_model(lora=False)
    tokenizer = plain.tokenizer
    settings = LoraSettings(r=2, dropout=0.0, targets=("q_proj", "v_proj", "lm_head"))
    model = peft.get_peft_model(plain, peft_config(plain, settings))
    model.tokenizer = tokenizer
    return model.eval()


@pytest.mark.parametrize("format", ["text", "letter"])
def test_the_jacobian_knows_an_output_layer_that_runs_at_some_positions(tiny_model, task, format):
    model = with_output_layer(tiny_model)
    randomise(model)
    weights, questions = read_weights(model), task.test[:3]
    found = {}

    def keep(index, f, factors):
        found[index] = jacobian(factors)

    visit_gradients(model, weights, questions, keep, format=format)
    for index, question in enumerate(questions):
        f = answer_logits(model, collate([question], model.tokenizer, format), format)[0]
        params = trainable(model)
        for c in range(len(f)):
            grads = torch.autograd.grad(f[c], params.values(), retain_graph=True)
            for name, g in zip(params, grads):
                torch.testing.assert_close(found[index][name][c], g, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("format", ["text", "letter"])
def test_the_output_layer_may_have_lora_too(tiny_model, task, format):
    model = with_output_layer(tiny_model)
    assert any("lm_head" in name for name in trainable(model))
    options = {**SHORT, "format": format}
    questions = task.test[:5]
    for run in (blob(model, task, **options), scalabl(model, task, **options), finetune(model, task, **options)):
        drawn = predict(run, questions, samples=2)
        slowly = predict(run, questions, samples=2, draws_per_pass=1, batch_size=1)
        torch.testing.assert_close(drawn.logits, slowly.logits, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------------------ PAC-tuning


def test_its_kl_is_that_of_gaussians_with_the_prior_that_makes_it_smallest(model):
    randomise(model)
    with PacSettings(start=0.2).attach(model, seed=1) as training:
        name, module = next(iter(training.modules.items()))
        with torch.no_grad():
            module.weight.add_(0.1)
        training.modules, others = {name: module}, training.modules
        assert {n.split(".")[-2] for n in others} == {"lora_A", "lora_B"}
        sigma, kl = training.log_sigma[name].exp(), training.kl()
        found = [
            float(kl_divergence(Normal(module.weight - training.start[name], sigma), Normal(0.0, prior)).sum())
            for prior in torch.linspace(0.05, 1.0, 400)
        ]
        assert float(kl) == pytest.approx(min(found), rel=1e-3)
        kl.backward()
        assert training.log_sigma[name].grad.abs().max() > 0 and module.weight.grad.abs().max() > 0


def test_a_noisy_pass_is_a_pass_with_other_weights_in_both_factors(model, task):
    randomise(model)
    batch = collate(task.train[:3], model.tokenizer, "text")
    with PacSettings(start=0.3).attach(model, seed=1) as training:
        training.see(model, batch, "text")
        train_without_dropout(model)
        noisy = answer_logits(model, batch)
        added = {name: (training.log_sigma[name].exp() * e).detach() for name, e in training.noise.items()}
    assert added.keys() == trainable(model).keys()
    with torch.no_grad():
        for name, p in trainable(model).items():
            p.add_(added[name])
    model.eval()
    torch.testing.assert_close(answer_logits(model, batch), noisy.detach(), atol=1e-4, rtol=1e-3)


def test_the_noise_is_learned_in_stage_1_and_stays_in_stage_2(model, task):
    options = {**SHORT, "steps": 12, "lr": 1e-3, "noise_lr": 0.1, "start": 0.1}

    def trained(**more):
        posterior = pac_tuning(model, task, **{**options, **more}).posterior
        return {name: v.clone() for name, v in posterior.variance.items()}, posterior.mean

    stopped, mean = trained(stage=0.5)
    assert stopped.keys() == mean.keys()  # A and B
    assert not all(((v >= 0.005) & (v <= 0.01)).all() for v in stopped.values())  # σ began in [ε/√2, ε]
    whole, _ = trained(stage=1.0)
    assert max(float((whole[n] - v).abs().max()) for n, v in stopped.items()) > 1e-4  # the second half had moved it
    never, _ = trained(stage=1e-9)
    assert all(((v >= 0.0049) & (v <= 0.0101)).all() for v in never.values())
    with pytest.raises(ValueError, match="at most 1"):
        PacSettings(stage=1.5)


def test_the_learning_rate_of_the_noise_decays_to_0_over_stage_1(model, task):
    with PacSettings(noise_lr=0.1, stage=0.5).attach(model, seed=0) as training:
        training.questions = task.train[:8]
        rates = []
        for step in range(8):
            training.penalty(step, 8)
            rates += [group["lr"] for group in training.optimizer.param_groups]
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025, 0, 0, 0, 0])


def test_the_noise_does_not_start_from_the_numbers_of_the_weights(model):
    reset_lora(model, 21)
    with BlobSettings().attach(model, seed=21) as training:
        pairs = [(trainable(model)[name].detach().flatten(), g.detach().flatten()) for name, g in training.g.items()]
    assert len(pairs) == 4
    assert all(torch.corrcoef(torch.stack(pair))[0, 1].abs() < 0.3 for pair in pairs)


# ------------------------------------------------------------------------------------------------ what they refuse


@pytest.mark.parametrize("train", [blob, scalabl, pac_tuning, gift_sw])
def test_half_frozen_lora_and_gates_are_refused_in_a_sentence(model, task, train):
    with pytest.raises(ValueError, match="must both be trainable, and without gates"):
        train(model, task, gates=GateSettings(), **SHORT)
    for pair in lora_layers(model).values():
        pair.a.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="q_proj: A and B of LoRA must both be trainable"):
        train(model, task, **SHORT)


@pytest.mark.parametrize("settings", [ScalablSettings, GateSettings])
@pytest.mark.parametrize(
    "callback", [lambda task: KeepBest(task.validation[:2], "text", 2), lambda _: WeightCollector()]
)
def test_weights_under_which_the_model_computes_with_others_are_not_kept(model, task, settings, callback):
    with pytest.raises(ValueError, match=f"under {settings.__name__} the model computes with others"):
        finetune(model, task, optimizer="adamw", attachments=[settings()], callbacks=[callback(task)], **SHORT)


def test_runs_that_began_elsewhere_than_lora_does_say_so(model, task):
    point = finetune(model, task, optimizer="adamw", **SHORT)
    for run in (
        scalabl(model, task, **SHORT),
        gift_sw(model, task, **SHORT),
        tfb(point, task.validation[:4], samples=1),
    ):
        with pytest.raises(ValueError, match="not known any more"):
            started_from(run)
    assert started_from(blob(model, task, **SHORT)).keys() == point.weights.keys()


# ------------------------------------------------------------------------------------------------ GIFT-SW


def salient(squares, share):
    """By sorting, the columns with the largest sums of squares."""
    order = sorted(range(len(squares)), key=lambda j: -float(squares[j]))
    return set(order[: round(share * len(squares))])


@pytest.mark.parametrize("format", ["text", "letter"])
def test_columns_are_salient_whose_inputs_are_largest_at_the_questions_own_tokens(model, task, format):
    reset_lora(model, 5)
    questions, seen = task.train[:3], {}
    model.get_input_embeddings().weight.data[model.tokenizer.pad_token_id] = 1.0  # padding would count
    with GiftSettings(share=0.25).attach(model, seed=1) as training:
        training.questions = questions
        before = {name: module.weight.detach().clone() for name, module in training.modules.items()}
        training.see(model, collate(questions, model.tokenizer, format), format)
        for name, module in training.modules.items():
            seen[name] = torch.zeros(module.in_features)
            handle = module.register_forward_hook(lambda m, args, out, name=name: seen.update({name: args[0]}))
            total = torch.zeros(module.in_features)
            for q in questions:  # one at a time there is no padding
                with torch.no_grad():
                    answer_logits(model, collate([q], model.tokenizer, format), format)
                total += seen[name].square().sum((0, 1))
            handle.remove()
            torch.testing.assert_close(training.squares[name], total, rtol=1e-4, atol=1e-4)
            kept = salient(total, 0.25)
            for j in range(module.in_features):
                expected = before[name][:, j] if j in kept else torch.zeros(len(module.weight))
                assert torch.equal(module.weight[:, j], expected)
                assert (training.sigma[name][:, j] == (0.0 if j in kept else 0.03)).all()


def test_in_training_the_other_columns_are_noise(model, task):
    reset_lora(model, 5)
    batch = collate(task.train[:3], model.tokenizer, "text")
    with GiftSettings(sigma=0.5).attach(model, seed=1) as training:
        training.questions = task.train[:3]
        training.see(model, batch, "text")
        randomise_b(model)
        train_without_dropout(model)
        noisy, again = (answer_logits(model, batch) for _ in range(2))
        added = {name: training.sigma[name] * e for name, e in training.noise.items()}
        model.eval()
        at_mean = answer_logits(model, batch).detach()
    assert torch.equal(noisy, again) and not torch.allclose(noisy, at_mean, atol=1e-3)
    torch.testing.assert_close(answer_logits(model, batch), at_mean)
    with torch.no_grad():
        for name, e in added.items():
            assert ((e == 0).float().mean() - 0.25).abs() < 0.02
            trainable(model)[name].add_(e)
    torch.testing.assert_close(answer_logits(model, batch), noisy.detach(), atol=1e-4, rtol=1e-3)


def randomise_b(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in trainable(model).items():
            if ".lora_B." in name:
                p.copy_(0.2 * torch.randn(p.shape, generator=generator))


def test_delta_w_is_0_in_columns_that_are_not_salient(model, task, tmp_path):
    run = gift_sw(model, task, **SHORT, lr=1e-2, sigma=0.2, share=0.5, weight_decay=0.1)
    for name in (name for name in run.weights if ".lora_A." in name):
        others = run.posterior.variance[name][0] > 1e-3
        assert (run.posterior.variance[name] > 1e-3).equal(others.expand_as(run.weights[name]))
        assert others.float().mean() == pytest.approx(0.5, abs=0.02)
        assert (run.posterior.variance[name][:, others] == torch.tensor(0.2).square()).all()
        delta = run.weights[name.replace("lora_A", "lora_B")] @ run.weights[name]
        assert (delta[:, others] == 0).all() and (delta[:, ~others].norm(dim=0) > 0).all()
    assert run.config["gift_sw"] == {"sigma": 0.2, "share": 0.5}
    run.save(tmp_path / "run")
    again, questions = load_run(tmp_path / "run", model), task.test[:4]
    assert torch.equal(predict(again, questions, samples=2).logits, predict(run, questions, samples=2).logits)


def test_with_all_columns_salient_it_is_adamw(model, task):
    run, plain = (
        gift_sw(model, task, **SHORT, lr=1e-2, share=1.0),
        finetune(model, task, optimizer="adamw", **SHORT, lr=1e-2),
    )
    assert all(torch.equal(run.weights[name], w) for name, w in plain.weights.items())
    noisy = gift_sw(model, task, **SHORT, lr=1e-2, share=0.5, sigma=1e-6)
    assert not all(torch.allclose(noisy.weights[name], w, atol=1e-4) for name, w in plain.weights.items())


def test_it_begins_with_a_fresh_adapter_and_a_share_of_the_columns(model, task):
    start = finetune(model, task, optimizer="adamw", **SHORT, lr=1e-2).weights
    with pytest.raises(ValueError, match="fresh adapter"):
        gift_sw(model, task, **SHORT, start=start)
    gift_sw(model, task, **SHORT)  # nothing is left on the model
    with pytest.raises(ValueError, match="at most 1"):
        GiftSettings(share=1.5)


@pytest.mark.parametrize("settings", [BlobSettings, ScalablSettings, PacSettings, GiftSettings])
def test_noise_of_ones_own_is_not_added_to_that_of_ivon(model, task, settings):
    with pytest.raises(ValueError, match=f"{settings.__name__} needs optimizer='adamw'"):
        finetune(model, task, attachments=[settings()], **SHORT)


def test_a_rank_above_a_layers_width(tiny_model, task):
    model = tiny_model(lora=False)
    wide = peft.get_peft_model(model, peft_config(model, LoraSettings(r=24)))  # of 16 outputs of the values
    wide.tokenizer = model.tokenizer
    run = finetune(wide, task, optimizer="adamw", **SHORT, lr=1e-2)
    weights, inverse = balanced(wide, run.weights)
    for name in inverse:
        b = name.replace("lora_A", "lora_B")
        torch.testing.assert_close(weights[b] @ weights[name], run.weights[b] @ run.weights[name], atol=1e-6, rtol=1e-5)
        ignored = torch.linalg.svdvals(run.weights[b]).numel() < len(weights[name])
        assert (inverse[name] == 0).any() == ignored  # rows that B' ignores get no noise
        assert {n: w.shape for n, w in weights.items()} == {n: w.shape for n, w in run.weights.items()}
    noisy = tfb(run, task.validation[:8], samples=2, halvings=2)
    draw = noisy.posterior.sample(0)
    assert max(float(draw[name].abs().max()) for name in inverse) < 100
    torch.testing.assert_close(
        predict(noisy, task.test[:4], samples=0).logits, predict(run, task.test[:4]).logits, atol=1e-4, rtol=1e-4
    )
    wide = peft.get_peft_model(tiny_model(lora=False), peft_config(model, LoraSettings(r=40)))
    wide.tokenizer = model.tokenizer
    with pytest.raises(ValueError, match="has rank 40 and 32 inputs"):
        scalabl(wide, task, **SHORT)
