"""The one-pass Jacobian covariance against explicit gradients, finite differences, quadrature and exact draws."""

from __future__ import annotations

import math

import numpy as np
import peft
import pytest
import torch
import transformers

from ivon_lora_lite import (
    GaussianPosterior,
    Linearized,
    Run,
    answer_logits,
    collate,
    linearized,
    predict,
    score,
    trainable,
)

CASES = [(architecture, format) for architecture in ("llama", "gpt_neox") for format in ("text", "letter")]


def gaussian(model, sigma=0.02, seed=0):
    """A posterior whose mean is not what the model holds and whose variances differ by a factor of 400."""
    generator = torch.Generator().manual_seed(seed)
    mean, variance = {}, {}
    for name, p in trainable(model).items():
        mean[name] = 0.2 * torch.randn(p.shape, generator=generator)
        variance[name] = sigma**2 * 20 ** (2 * torch.rand(p.shape, generator=generator) - 1)
    return GaussianPosterior(mean, variance)


def gradients(model, question, format):
    """Logits of one question on its own, ``[C]``, and their gradients, one backward pass each: name → ``[C, …]``."""
    params = trainable(model)
    logits = answer_logits(model, collate([question], model.tokenizer, format), format)[0]
    rows = [torch.autograd.grad(f, list(params.values()), retain_graph=True) for f in logits]
    return logits.detach(), {name: torch.stack(column) for name, column in zip(params, zip(*rows))}


def alone(model, posterior, question, format):
    """The plainest way to a question's Gaussian: J diag(v) Jᵀ with J from :func:`gradients`, in double precision."""
    with posterior.applied(model):
        mean, jacobian = gradients(model, question, format)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for name, rows in jacobian.items():
        rows, v = rows.double().flatten(1), posterior.variance[name].double().flatten()
        covariance += (rows * v) @ rows.T
    return mean, covariance


def assert_close_relative(got, want, tolerance=1e-4):
    """Near, measured against the largest entry: the covariances of one question are sums of terms of that size."""
    assert (got.double() - want.double()).abs().max() <= tolerance * want.abs().max()


@pytest.fixture(scope="module")
def llama(tiny_model):
    return tiny_model("llama", trained=True)


# ---------------------------------------------------------------------------------------------------------- Jacobian


@pytest.mark.parametrize(("architecture", "format"), CASES)
def test_covariance_equals_that_of_gradients_of_each_question_on_its_own(tiny_model, questions, architecture, format):
    model = tiny_model(architecture, trained=True)
    posterior = gaussian(model)
    got = linearized(model, questions, posterior=posterior, format=format, batch_size=4)
    assert got.covariance.shape == (len(questions), 5, 5) and got.mean.shape == (len(questions), 5)
    for i, question in enumerate(questions):
        c = len(question.choices)
        mean, covariance = alone(model, posterior, question, format)
        assert covariance.diagonal().min() > 1e-4  # else this would compare nothing with nothing
        assert_close_relative(got.covariance[i, :c, :c], covariance)
        torch.testing.assert_close(got.mean[i, :c], mean, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("architecture", "format"), CASES)
def test_with_one_uncertain_weight_the_covariance_is_that_of_finite_differences(
    tiny_model, questions, architecture, format
):
    # no autograd on this side: with all the variance on one weight, Σ = J_k J_kᵀ, and J_k is a slope
    model = tiny_model(architecture, trained=True)
    posterior, generator = gaussian(model), torch.Generator().manual_seed(1)
    names = [name for name in posterior.mean if "lora_B" in name]
    step = 0.004
    for name in (names[0], names[-1]):
        k = int(torch.randint(posterior.mean[name].numel(), (), generator=generator))
        variance = {other: torch.full_like(m, 1e-20) for other, m in posterior.mean.items()}
        variance[name].view(-1)[k] = 1.0
        got = linearized(model, questions, posterior=GaussianPosterior(posterior.mean, variance), format=format)
        sides = []
        for sign in (1, -1):
            moved = {other: m.clone() for other, m in posterior.mean.items()}
            moved[name].view(-1)[k] += sign * step
            shifted = GaussianPosterior(moved, posterior.variance)
            sides.append(predict(model, questions, posterior=shifted, format=format).logits[0])
        slope = ((sides[0] - sides[1]) / (2 * step)).nan_to_num(0.0)  # −∞ minus −∞ where there is no choice
        assert slope.abs().max() > 0.01
        assert_close_relative(got.covariance, slope.unsqueeze(-1) * slope.unsqueeze(-2), 0.01)


def test_the_reference_gradients_equal_finite_differences_along_a_random_direction(llama, questions):
    # what the first test compares with is itself checked, along a direction in which all weights move
    posterior, generator = gaussian(llama), torch.Generator().manual_seed(2)
    direction = {name: torch.randn(m.shape, generator=generator) for name, m in posterior.mean.items()}
    length = math.sqrt(sum(float(d.square().sum()) for d in direction.values()))
    step = 0.02
    sides = []
    for sign in (1, -1):
        moved = {name: m + sign * step / length * direction[name] for name, m in posterior.mean.items()}
        sides.append(predict(llama, questions, posterior=GaussianPosterior(moved, posterior.variance)).logits[0])
    slope = (sides[0] - sides[1]) / (2 * step)
    for i, question in enumerate(questions):
        with posterior.applied(llama):
            _, jacobian = gradients(llama, question, "text")
        along = sum((rows * direction[name]).flatten(1).sum(1) for name, rows in jacobian.items()) / length
        torch.testing.assert_close(
            slope[i, : len(along)], along, atol=0.01 * float(slope[slope.isfinite()].std()), rtol=0.01
        )


@pytest.mark.parametrize("format", ["text", "letter"])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batch_size_does_not_matter(llama, questions, format, batch_size):
    posterior = gaussian(llama)
    want = linearized(llama, questions, posterior=posterior, format=format, batch_size=8)
    got = linearized(llama, questions, posterior=posterior, format=format, batch_size=batch_size)
    torch.testing.assert_close(got.mean, want.mean, atol=1e-4, rtol=0)
    assert_close_relative(got.covariance, want.covariance)


def test_questions_keep_their_order_and_labels(llama, questions):
    # inside, questions are batched in order of length
    posterior = gaussian(llama)
    straight = linearized(llama, questions, posterior=posterior)
    backwards = linearized(llama, questions[::-1], posterior=posterior)
    assert straight.labels.tolist() == [q.answer for q in questions]
    assert torch.equal(backwards.labels, straight.labels.flip(0))
    torch.testing.assert_close(backwards.mean, straight.mean.flip(0), atol=1e-4, rtol=0)
    assert_close_relative(backwards.covariance, straight.covariance.flip(0))


@pytest.mark.parametrize("format", ["text", "letter"])
def test_mean_equals_predict_at_the_mean(llama, questions, format):
    posterior = gaussian(llama)
    got = linearized(llama, questions, posterior=posterior, format=format)
    want = predict(llama, questions, posterior=posterior, format=format)
    torch.testing.assert_close(got.mean, want.logits[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(got.probabilities(0.0), want.ensemble(), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["text", "letter"])
def test_exact_draws_at_a_small_tau_have_the_linearised_covariance(llama, questions, format):
    posterior, tau, draws = gaussian(llama), 1e-4, 300
    line = linearized(llama, questions, posterior=posterior, format=format)
    exact = predict(llama, questions, posterior=posterior, samples=draws, tau=tau, format=format, batch_size=10).logits
    for i, question in enumerate(questions):
        c = len(question.choices)
        noise = (exact[:, i, :c] - line.mean[i, :c]).double() / tau**0.5  # [S, C]
        want = line.covariance[i, :c, :c].double()
        # a sample covariance of Gaussians has the variance (Σ_ij² + Σ_ii Σ_jj) / S
        error = ((want.square() + want.diagonal().outer(want.diagonal())) / draws).sqrt()
        assert ((noise.T @ noise / draws - want).abs() < 4 * error).all(), question.stem
        ratio = noise.std(0) / want.diagonal().sqrt()
        assert ((ratio - 1).abs() < 4 / math.sqrt(2 * draws)).all(), question.stem


# ------------------------------------------------------------------------------------------------- what a Run brings


def test_a_run_brings_its_posterior_and_format(llama, questions):
    posterior = gaussian(llama)
    run = Run(llama, dict(posterior.mean), posterior, {"format": "letter"})
    got, want = linearized(run, questions), linearized(llama, questions, posterior=posterior, format="letter")
    assert torch.equal(got.mean, want.mean) and torch.equal(got.covariance, want.covariance)
    assert got.metadata["format"] == "letter"
    other = gaussian(llama, seed=5)  # one given counts more than the run's own
    assert torch.equal(
        linearized(run, questions, posterior=other).mean,
        linearized(llama, questions, posterior=other, format="letter").mean,
    )


def test_without_a_posterior_the_message_names_the_way_out(llama, questions):
    for source in (llama, Run(llama, {}, None, {"format": "text"})):
        with pytest.raises(ValueError, match="no posterior.*optimizer='ivon'"):
            linearized(source, questions)


def test_a_posterior_over_other_tensors_than_loras_is_refused(tiny_model, questions):
    model = tiny_model("llama")
    norm = next(module for name, module in model.named_modules() if name.endswith("input_layernorm"))
    norm.weight.requires_grad_(True)
    with pytest.raises(ValueError, match="Only A and B of plain LoRA on linear layers may be trainable"):
        linearized(model, questions, posterior=GaussianPosterior.isotropic(model, 1e-4))


SHORT = {"vocab_size": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
NOT_EVERY_TOKEN = {
    "attention to an encoder that is not there": (
        "bart", {"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 64,
        "is_decoder": True, "is_encoder_decoder": False}, "encoder_attn",
    ),
    "a shared expert that sees the tokens in one line": (
        "qwen2_moe", {"hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2}, "shared_expert.up_proj",
    ),
}  # fmt: skip


@pytest.mark.parametrize("format", ["text", "letter"])
@pytest.mark.parametrize("case", NOT_EVERY_TOKEN)
def test_a_layer_that_is_not_applied_to_every_token_is_named(tiny_tokenizer, questions, case, format):
    architecture, options, place = NOT_EVERY_TOKEN[case]
    config = transformers.AutoConfig.for_model(architecture, **SHORT, **options)
    base = transformers.AutoModelForCausalLM.from_config(config)
    targets = [
        name.split(".", 1)[1] for name, m in base.named_modules() if place in name and type(m) is torch.nn.Linear
    ]
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM")).eval()
    model.tokenizer = tiny_tokenizer
    with pytest.raises(ValueError, match=rf"{place}.*is not applied to every token of a batch.*use draws"):
        linearized(model, questions[:2], posterior=gaussian(model), format=format)


@pytest.mark.parametrize("format", ["text", "letter"])
def test_broken_weights_are_an_error(tiny_model, questions, format):
    model = tiny_model(trained=True)
    posterior = gaussian(model)
    model.get_input_embeddings().weight.data[model.tokenizer(questions[0].prompt)["input_ids"][-1]] = torch.nan
    with pytest.raises(FloatingPointError, match="answer logits are not finite"):
        linearized(model, questions[:2], posterior=posterior, format=format)


def test_an_unknown_format_is_refused(llama, questions):
    with pytest.raises(ValueError, match="no answer format 'essay'"):
        linearized(llama, questions, posterior=gaussian(llama), format="essay")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_weights_gradients_hooks_and_training_mode_are_left_as_found(
    tiny_model, questions, monkeypatch, training, fails
):
    model = tiny_model("llama", trained=True).train(training)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    posterior = gaussian(model)
    if fails:

        def broken(*args):
            raise RuntimeError("out of memory")

        monkeypatch.setattr("ivon_lora_lite.evaluation.jacobians.answer_logits", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            linearized(model, questions, posterior=posterior)
    else:
        got = linearized(model, questions, posterior=posterior)
        # in training mode LoRA's dropout would make the logits random
        torch.testing.assert_close(
            got.mean, predict(model, questions, posterior=posterior).logits[0], atol=1e-5, rtol=0
        )
    assert model.training == training
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), name
        assert p.grad is None
    assert not any(module._forward_hooks for module in model.modules())


def test_it_works_where_gradients_are_switched_off(llama, questions):
    posterior = gaussian(llama)
    want = linearized(llama, questions, posterior=posterior)
    with torch.no_grad():
        got = linearized(llama, questions, posterior=posterior)
    assert torch.equal(got.covariance, want.covariance)
    assert not got.mean.requires_grad and not got.covariance.requires_grad


# ----------------------------------------------------------------------------------------------------- probabilities


@pytest.fixture(scope="module")
def by_hand():
    """One question of two choices, one of three; N(0, 0) pads the first. Correlated logits."""
    mean = torch.tensor([[0.3, -0.4, -torch.inf], [1.0, 0.2, -0.5]])
    root = torch.tensor([[[1.0, 0.0, 0.0], [0.6, 1.2, 0.0], [0.0, 0.0, 0.0]], [[1.5, 0, 0], [0.5, 1, 0], [-1, 0.3, 2]]])
    return Linearized(mean, root @ root.mT, torch.tensor([0, 2]), {"task": "by hand"})


@pytest.mark.parametrize("format", ["text", "letter"])
@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0, 4.0])
def test_rows_sum_to_one_and_absent_choices_have_nothing(llama, questions, format, tau):
    line = linearized(llama, questions, posterior=gaussian(llama, sigma=0.1), format=format)
    probs = line.probabilities(tau)
    assert torch.isfinite(probs).all()
    torch.testing.assert_close(probs.sum(-1), torch.ones(len(questions)).double(), atol=1e-5, rtol=0)
    for i, question in enumerate(questions):
        c = len(question.choices)
        assert (probs[i, :c] > 0).all() and (probs[i, c:] == 0).all()
        assert (line.mean[i, c:] == -torch.inf).all() and torch.isfinite(line.mean[i, :c]).all()
        assert (line.covariance[i, c:] == 0).all() and (line.covariance[i, :, c:] == 0).all()


def test_covariances_are_symmetric_and_have_no_negative_eigenvalue(llama, questions):
    line = linearized(llama, questions, posterior=gaussian(llama))
    assert_close_relative(line.covariance, line.covariance.mT, 1e-6)
    values = torch.linalg.eigvalsh(line.covariance.double())
    assert (values.min(-1).values > -1e-5 * values.max(-1).values).all()


@pytest.mark.parametrize("tau", [0.01, 0.25, 1.0, 2.0])
def test_probabilities_of_two_choices_equal_the_integral(by_hand, tau):
    # two logits: the softmax is a sigmoid of their difference, which is N(μ, τ s²) with the correlation in s²
    covariance = by_hand.covariance[0]
    mu, s = 0.7, float((covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]).sqrt())
    nodes, weight = np.polynomial.hermite_e.hermegauss(60)
    want = float((weight / (1 + np.exp(-mu - tau**0.5 * s * nodes))).sum() / weight.sum())
    assert by_hand.probabilities(tau)[0, 0] == pytest.approx(want, abs=5e-4)
    assert by_hand.error(tau) < 2e-3


@pytest.mark.parametrize("spread", [1.0, 7.0])
def test_the_points_integrate_better_than_16384_random_draws(spread):
    """At a spread of 7 the softmax is nearly a step: there 256 random draws turn one argmax in ten."""
    generator = torch.Generator().manual_seed(0)
    root = spread / 2 * torch.randn(30, 4, 4, generator=generator)
    line = Linearized(2 * torch.randn(30, 4, generator=generator), root @ root.mT, torch.zeros(30, dtype=torch.long))

    def average(count):
        total = torch.zeros(30, 4, dtype=torch.float64)
        for _ in range(count // 2**13):
            half = torch.randn(2**12, 30, 4, generator=generator)
            for noise in (half, -half):
                draws = line.mean + torch.einsum("nij,snj->sni", root, noise)
                total += draws.softmax(-1).sum(0, dtype=torch.float64)
        return total / count

    reference, random = average(2**20), average(2**14)
    ours = (line.probabilities().double() - reference).square().mean().sqrt()
    assert ours < (random - reference).square().mean().sqrt() and ours < 2e-3
    assert (line.probabilities().argmax(-1) == reference.argmax(-1)).all()
    assert float((line.probabilities().double() - reference).abs().max()) < 4 * line.error() + 2e-3


def test_the_same_numbers_come_every_time_whatever_torchs_own_seed(by_hand):
    again = Linearized(by_hand.mean, by_hand.covariance, by_hand.labels)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = by_hand.probabilities(0.7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(again.probabilities(0.7), first)


def test_probabilities_are_smooth_in_tau(by_hand):
    # the same ε for every τ: a slider must not show Monte-Carlo noise. Fresh draws would jump by about 0.02.
    taus = [0.01 + i / 500 for i in range(500)]
    curve = torch.stack([by_hand.probabilities(tau) for tau in taus]).double()  # [T, N, C]
    first, second = curve.diff(dim=0), curve.diff(n=2, dim=0)
    assert first.abs().max() < 0.003 and second.abs().max() < 2e-4
    assert first.abs().sum(0).max() > 0.02  # it does move
    near_zero = by_hand.probabilities(1e-8) - by_hand.probabilities(0.0)
    assert near_zero.abs().max() < 1e-4


def test_tau_zero_is_the_softmax_of_the_mean(by_hand):
    torch.testing.assert_close(by_hand.probabilities(0.0), by_hand.mean.double().softmax(-1), atol=1e-6, rtol=0)


def test_without_variance_every_tau_gives_the_means_probabilities(by_hand):
    point = Linearized(by_hand.mean, torch.zeros_like(by_hand.covariance), by_hand.labels)
    torch.testing.assert_close(point.probabilities(3.0), by_hand.mean.double().softmax(-1), atol=1e-6, rtol=0)


def test_tau_scales_the_covariance(by_hand):
    scaled = Linearized(by_hand.mean, 0.25 * by_hand.covariance, by_hand.labels)
    torch.testing.assert_close(scaled.probabilities(1.0), by_hand.probabilities(0.25), atol=1e-5, rtol=0)


def test_a_negative_tau_is_refused(by_hand):
    for method in (by_hand.error, by_hand.probabilities, by_hand.predictions):
        with pytest.raises(ValueError, match="tau is -0.5"):
            method(-0.5)


def test_predictions_carry_the_same_probabilities_and_say_what_they_are(by_hand):
    predictions = by_hand.predictions(0.25)
    torch.testing.assert_close(predictions.ensemble(), by_hand.probabilities(0.25), atol=1e-6, rtol=0)
    assert predictions.samples == 1  # the average is kept, not the draws
    assert predictions.metadata == {"task": "by hand", "tau": 0.25, "linearized": True}
    assert dict(score(predictions)) == pytest.approx(dict(score(by_hand.probabilities(0.25), by_hand.labels)), abs=1e-5)


def test_lora_on_other_layers_counts_too(tiny_model, questions):
    # the factors are found by their weights, not by the names of query and value projections
    import peft

    base = tiny_model("llama", lora=False)
    tokenizer = base.tokenizer
    model = peft.get_peft_model(
        base, peft.LoraConfig(r=2, target_modules=["o_proj", "down_proj"], task_type="CAUSAL_LM")
    ).eval()
    model.tokenizer = tokenizer
    posterior = gaussian(model)
    assert any("down_proj" in name for name in posterior.mean)
    got = linearized(model, questions[:3], posterior=posterior)
    for i, question in enumerate(questions[:3]):
        c = len(question.choices)
        assert_close_relative(got.covariance[i, :c, :c], alone(model, posterior, question, "text")[1])
