"""Laplace: curvature against a dense Gauss-Newton matrix, its Gaussian against inverses, the prior against a grid."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ivon_lora_lite import (
    GaussianPosterior,
    KroneckerPosterior,
    Question,
    Run,
    Task,
    answer_logits,
    collate,
    entropy,
    finetune,
    laplace,
    linearized_laplace,
    load_model,
    load_posterior,
    load_run,
    predict,
    score,
    tau_sweep,
    trainable,
)
from ivon_lora_lite.language import reset_lora
from ivon_lora_lite.language.formats import TextFormat
from ivon_lora_lite.methods import prior_precision
from ivon_lora_lite.methods.curvature import diagonal_ggn, kronecker_ggn
from ivon_lora_lite.methods.laplace_approximation import PRECISIONS
from ivon_lora_lite.posterior import applied_weights, read_weights, restored

FORMATS = ("text", "letter")
STRUCTURES = ("kfac", "diag")
# one token, so that the letter format has one token per question
WORDS = [Question(word, ("yes", "no"), i % 2, word, ("A", "B")) for i, word in enumerate(("A", "B", "C"))]


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("llama", trained=True)


@pytest.fixture(scope="module")
def weights(model):
    """Other weights than those that the model holds."""
    generator = torch.Generator().manual_seed(3)
    return {name: 0.3 * torch.randn(p.shape, generator=generator) for name, p in trainable(model).items()}


def run_of(model, weights, format="text", **config):
    facts = {"format": format, "task": "tiny", "train_size": 6, "optimizer": "adamw", "seed": 1, "model": {}}
    return Run(model, weights, None, facts | config)


def jacobian(model, weights, question, format):
    """One question on its own, one backward pass per logit: f ``[C]`` and name → ∂f/∂W ``[C, out, in]``."""
    with applied_weights(model, weights):
        params = trainable(model)
        f = answer_logits(model, collate([question], model.tokenizer, format), format)[0]
        rows = [torch.autograd.grad(one, list(params.values()), retain_graph=True) for one in f]
    return f.detach().double(), {name: torch.stack(c).double() for name, c in zip(params, zip(*rows))}


def dense_ggn(model, weights, questions, format):
    """Σ JᵀΛJ block by block, name → ``[out·in, out·in]``, from the definition of Λ."""
    blocks = {}
    for question in questions:
        f, rows = jacobian(model, weights, question, format)
        p = f.softmax(0)
        curve = torch.diag(p) - torch.outer(p, p)
        for name, j in rows.items():
            block = j.flatten(1).T @ curve @ j.flatten(1)
            blocks[name] = blocks[name] + block if name in blocks else block
    return blocks


def near(got, want, tolerance=1e-4):
    """Near, measured against the largest entry."""
    assert (got.double() - want.double()).abs().max() <= tolerance * want.abs().max().clamp(min=1e-30)


# ----------------------------------------------------------------------------------------------------------- curvature


@pytest.mark.parametrize("format", FORMATS)
def test_the_diagonal_is_that_of_the_dense_matrix(model, weights, questions, format):
    want = dense_ggn(model, weights, questions, format)
    got = diagonal_ggn(model, weights, questions, format=format, batch_size=4)
    assert got.keys() == want.keys() == trainable(model).keys()
    for name, h in got.items():
        assert h.max() > 1e-6
        near(h.flatten(), want[name].diagonal())


def test_with_one_token_per_question_the_kronecker_product_is_the_dense_matrix(model, weights):
    # the same prompt three times: all inputs are equal, so A and B are independent; a single question is the same case
    for questions in (WORDS[:1], WORDS[:1] * 3):
        want = dense_ggn(model, weights, questions, "letter")
        factors = kronecker_ggn(model, weights, questions, format="letter")
        values = [name for name in want if "v_proj" in name]  # with one key, queries have no gradient
        for name in values:
            a, b = factors[name]
            assert want[name].abs().max() > 1e-8
            near(torch.kron(b, a), want[name])
        assert len(values) == 4 and all(torch.kron(*factors[n][::-1]).abs().max() < 1e-9 for n in want.keys() - values)


@pytest.mark.parametrize("format", FORMATS)
def test_kfac_sums_over_the_questions_own_tokens_whatever_the_batch(model, weights, questions, format):
    lengths = [
        int(b["attention_mask"].sum()) if "attention_mask" in b else b["input_ids"].numel()
        for b in (collate([q], model.tokenizer, format) for q in questions)
    ]
    alone = [kronecker_ggn(model, weights, [q], format=format) for q in questions]
    whole = kronecker_ggn(model, weights, questions, format=format, batch_size=3)
    for name, (a, b) in whole.items():
        near(a, sum(one[name][0] for one in alone))  # a padding token would show here
        near(b, sum(one[name][1] * n for one, n in zip(alone, lengths)) / sum(lengths))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_twice_the_questions_is_twice_the_curvature_in_any_order_and_batch(model, weights, questions, structure):
    def curve(chosen, **options):
        if structure == "diag":
            return diagonal_ggn(model, weights, chosen, **options)
        return {n: torch.kron(b, a) for n, (a, b) in kronecker_ggn(model, weights, chosen, **options).items()}

    once, twice = curve(questions, batch_size=10), curve(questions[::-1] + questions, batch_size=3)
    for name, h in once.items():
        near(twice[name], 2 * h, 1e-3)


@pytest.mark.parametrize("fails", [False, True])
def test_weights_modes_hooks_and_gradients_are_left_as_found(tiny_model, weights, questions, monkeypatch, fails):
    model = tiny_model("llama", trained=True).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    if fails:
        monkeypatch.setattr(TextFormat, "tokens", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            diagonal_ggn(model, weights, questions)
    else:
        with torch.no_grad():
            assert all(h.grad_fn is None for h in diagonal_ggn(model, weights, questions).values())
    assert model.training and not any(module._forward_hooks for module in model.modules())
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) and p.grad is None


class Int8(nn.Module):
    """A frozen linear layer without a weight parameter, as a quantised base has."""

    def __init__(self, layer):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("scale", layer.weight.detach().abs().amax(1, keepdim=True) / 127)
        self.register_buffer("codes", (layer.weight.detach() / self.scale).round().to(torch.int8))

    def forward(self, x):
        return x @ (self.codes * self.scale).T.to(x.dtype)


@pytest.mark.parametrize("base", ["int8", "bf16"])
@pytest.mark.parametrize("format", FORMATS)
def test_the_base_may_be_quantised_or_16_bit(tiny_model, weights, questions, base, format):
    model = tiny_model("llama", trained=True)
    plain = diagonal_ggn(model, weights, questions[:4], format=format)
    if base == "int8":
        for module in model.modules():
            if hasattr(module, "lora_A"):
                module.base_layer = Int8(module.base_layer)
    else:
        for p in model.parameters():
            p.data = p.data if p.requires_grad else p.data.bfloat16()
    near_enough = {"int8": 0.9, "bf16": 0.8}[base]
    got = diagonal_ggn(model, weights, questions[:4], format=format)
    both = [torch.cat([h[name].flatten() for name in sorted(h)]).sqrt() for h in (plain, got)]
    assert torch.cosine_similarity(*both, dim=0) > near_enough
    line = linearized_laplace(laplace(run_of(model, weights, format), questions[:4]), questions[4:])
    assert math.isfinite(score(line.predictions(), intervals=False)["nll"])


def test_other_trainable_weights_are_refused(tiny_model, questions):
    model = tiny_model("llama")
    model.get_input_embeddings().weight.requires_grad_(True)
    start = {name: p.detach().clone() for name, p in trainable(model).items()}
    with pytest.raises(ValueError, match="Only A and B of plain LoRA.*not base_model.*embed_tokens"):
        laplace(run_of(model, start), questions)


# ------------------------------------------------------------------------------------------------- Kronecker posterior


def spd(size, generator):
    root = torch.randn(size, size + 1, generator=generator)
    return root @ root.T


@pytest.fixture
def kronecker():
    generator = torch.Generator().manual_seed(0)
    mean = {"a": torch.randn(2, 3, generator=generator), "b": torch.randn(4, 2, generator=generator)}
    factors = {name: (spd(m.shape[1], generator), spd(m.shape[0], generator)) for name, m in mean.items()}
    dense = {
        name: (torch.kron(b, a) + 0.7 * torch.eye(mean[name].numel())).double().inverse()
        for name, (a, b) in factors.items()
    }
    return KroneckerPosterior.from_factors(mean, factors, 0.7, task="tiny"), dense


def test_its_covariance_is_the_inverse_of_the_dense_precision(kronecker):
    posterior, dense = kronecker
    for name, sigma in dense.items():
        j = torch.randn(5, *posterior.mean[name].shape, generator=torch.Generator().manual_seed(1))
        near(posterior.covariance({name: j}), j.flatten(1).double() @ sigma @ j.flatten(1).double().T)
        near(posterior.variance[name].flatten(), sigma.diagonal())
        assert (posterior.variance[name] > 0).all()
        near(posterior.scale(0.25).variance[name].flatten(), 0.25 * sigma.diagonal())
    assert posterior.scale(0.5).scale(0.5).metadata["tau"] == 0.25


def test_its_draws_have_the_dense_covariance(kronecker):
    posterior, dense = kronecker
    count, tau = 1500, 0.5
    draws = [posterior.sample(seed, tau) for seed in range(count)]
    for name, sigma in dense.items():
        noise = torch.stack([(d[name] - posterior.mean[name]).flatten() for d in draws]).double()
        want = tau * sigma
        error = ((want.square() + want.diagonal().outer(want.diagonal())) / count).sqrt()
        assert ((noise.T @ noise / count - want).abs() < 4.5 * error).all()
        assert (noise.mean(0).abs() < 4.5 * (want.diagonal() / count).sqrt()).all()
    one, quarter = posterior.sample(7), posterior.sample(7, 0.25)
    for name, m in posterior.mean.items():
        torch.testing.assert_close(quarter[name] - m, (one[name] - m) / 2)
        assert torch.equal(posterior.sample(7, 0.0)[name], m)


def test_its_file_gives_it_back_and_bad_ones_are_refused(kronecker, tmp_path):
    posterior, _ = kronecker
    posterior.save(tmp_path)
    again = load_posterior(tmp_path)
    assert isinstance(again, KroneckerPosterior) and again.metadata == posterior.metadata
    assert all(torch.equal(again.sample(3)[name], draw) for name, draw in posterior.sample(3).items())
    with pytest.raises(ValueError, match="no posterior of this package"):
        GaussianPosterior.load(tmp_path)
    values = {name: -t for name, t in posterior.input_values.items()}
    for wrong, words in (
        ({"input_values": values}, "negative eigenvalue"),
        ({"metadata": {}}, "prior_precision is None"),
        ({"metadata": {"prior_precision": "0.1"}}, "prior_precision is 0.1"),
        ({"mean": {"a": torch.ones(2, 3)}}, "which mean lacks"),
        ({"mean": {name: m.T.contiguous() for name, m in posterior.mean.items()}}, "expected"),
        ({"output_vectors": {n: v * math.nan for n, v in posterior.output_vectors.items()}}, "not finite"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(posterior, **wrong)
    for tau in (-1.0, math.inf):
        with pytest.raises(ValueError, match="tau is"):
            posterior.sample(0, tau)
    with pytest.raises(ValueError, match="tau=0"):
        posterior.scale(0)


# ------------------------------------------------------------------------------------------------------ prior precision


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("norm", [1e-2, 30.0])
def test_the_prior_precision_is_that_of_a_brute_force_grid(scale, norm):
    values = scale * torch.logspace(-6, 3, 200, dtype=torch.float64)
    values[:50] = 0
    p, effective = prior_precision({"a": values[:120], "b": values[120:]}, norm)
    grid = np.exp(np.linspace(np.log(p) - 8, np.log(p) + 8, 16001))
    cost = 0.5 * (np.log1p(values.numpy()[:, None] / grid).sum(0) + grid * norm)
    assert np.log(p) == pytest.approx(np.log(grid[cost.argmin()]), abs=0.01)
    assert effective == pytest.approx(float((values / (values + p)).sum()))
    assert p * norm == pytest.approx(effective, rel=0.02)  # MacKay's fixed point


def test_the_prior_precision_is_plain_evidence(model, weights, questions):
    # the whole formula with dense matrices, log|H + pI| − log|pI| and all, is largest there
    blocks = dense_ggn(model, weights, questions, "text")
    spectrum = {name: torch.linalg.eigvalsh(h).clamp(min=0) for name, h in blocks.items()}
    norm = sum(float(w.square().sum()) for w in weights.values())
    p, _ = prior_precision(spectrum, norm)

    def evidence(q):
        log_det = sum(torch.linalg.slogdet(h + q * torch.eye(len(h)).double())[1] for h in blocks.values())
        count = sum(len(h) for h in blocks.values())
        return -0.5 * float(log_det - count * math.log(q) + q * norm)

    assert evidence(p) > max(evidence(p * 1.2), evidence(p / 1.2))


# ------------------------------------------------------------------------------------------------------ the whole of it


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_linearised_covariance_is_that_of_dense_matrices(model, weights, questions, format, structure):
    train = questions[:6]
    run = laplace(run_of(model, weights, format), train, structure)
    line = linearized_laplace(run, questions, batch_size=3)
    assert line.metadata["method"] == f"laplace_{structure}" == run.config["method"]
    p = run.posterior.metadata["prior_precision"]
    if structure == "diag":
        h = {n: h.diagonal().diag() for n, h in dense_ggn(model, weights, train, format).items()}
    else:
        factors = kronecker_ggn(model, weights, train, format=format)
        h = {name: torch.kron(b, a).double() for name, (a, b) in factors.items()}
    sigma = {name: torch.linalg.inv(block + p * torch.eye(len(block)).double()) for name, block in h.items()}
    for i, question in enumerate(questions):
        f, rows = jacobian(model, weights, question, format)
        c = len(f)
        want = sum(j.flatten(1) @ sigma[name] @ j.flatten(1).T for name, j in rows.items())
        torch.testing.assert_close(line.mean[i, :c].double(), f, atol=1e-4, rtol=0)
        near(line.covariance[i, :c, :c], want, 1e-3)
        assert torch.linalg.eigvalsh(line.covariance[i, :c, :c].double()).min() > -1e-5 * want.diagonal().max()
        assert (line.mean[i, c:] == -torch.inf).all() and (line.covariance[i, c:] == 0).all()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_more_questions_make_it_narrower(model, weights, questions, structure):
    few, many = (laplace(run_of(model, weights), chosen, structure).posterior for chosen in (questions, questions * 4))

    def at(posterior, p):  # the same prior for both
        if structure == "diag":
            q = posterior.metadata["prior_precision"]
            return {name: 1 / (1 / v - q + p) for name, v in posterior.variance.items()}
        return replace(posterior, metadata={**posterior.metadata, "prior_precision": p}).variance

    p = few.metadata["prior_precision"]
    for name, v in at(few, p).items():
        assert (at(many, p)[name] < v * 1.0001).all()
    assert sum(float(v.sum()) for v in at(many, p).values()) < sum(float(v.sum()) for v in at(few, p).values())
    assert many.metadata["effective_parameters"] > few.metadata["effective_parameters"]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_laplace_run_is_scored_swept_and_saved_like_any_other(model, weights, questions, structure, tmp_path):
    task = Task("tiny", questions, questions[:4], questions[4:])
    before = run_of(model, weights)
    run = laplace(before, task, structure)
    assert before.posterior is None and run.posterior.metadata["questions"] == 6  # what the run was trained on
    assert run.posterior.mean.keys() == weights.keys()
    line = linearized_laplace(run, task.test)
    at_mean = predict(run, task.test)
    torch.testing.assert_close(line.probabilities(0.0), at_mean.ensemble(), atol=1e-5, rtol=0)
    assert entropy(line.probabilities(1.0)).mean() > entropy(at_mean.ensemble()).mean()
    sweep = tau_sweep(run, task.test, taus=(0.0, 1.0), samples=2, linear=line)
    assert torch.equal(sweep.logits[1], predict(run, task.test, samples=2).logits)
    run.posterior.save(tmp_path)
    again = predict(replace(run, posterior=load_posterior(tmp_path)), task.test, samples=2)
    assert torch.equal(again.logits, sweep.logits[1])


def test_a_prior_around_the_start_counts_what_training_moved(model, weights, questions):
    with restored(trainable(model).values()):
        reset_lora(model, 1)  # the seed of the run
        start = read_weights(model)
    moved = {name: w + 0.01 for name, w in start.items()}
    before = {name: p.detach().clone() for name, p in trainable(model).items()}
    zero, around = (laplace(run_of(model, moved), questions, centre=c).posterior for c in ("zero", "start"))
    assert all(torch.equal(p, before[name]) for name, p in trainable(model).items())
    for posterior, centre in ((zero, {n: 0 * w for n, w in start.items()}), (around, start)):
        norm = sum(float((w - centre[name]).double().square().sum()) for name, w in moved.items())
        p, _ = prior_precision({name: posterior.eigenvalues(name) for name in moved}, norm)
        assert posterior.precision == pytest.approx(p, rel=1e-3)
    assert around.precision > 5 * zero.precision and around.metadata["prior_mean"] == "start"


@pytest.mark.slow
def test_a_run_from_a_folder_has_the_start_that_it_had_in_memory(tiny_folder, questions, tmp_path):
    options = {"optimizer": "adamw", "steps": 4, "batch_size": 2, "lr": 1e-2, "progress": False}
    model = load_model(tiny_folder, dtype="fp32", device="cpu", progress=False)
    run = finetune(model, questions, **options)
    again = load_run(run.save(tmp_path / "run"), progress=False)
    here, there = (laplace(r, questions, "diag", centre="start").posterior for r in (run, again))
    assert there.metadata["prior_precision"] == pytest.approx(here.metadata["prior_precision"], rel=1e-4)
    zero = laplace(again, questions, "diag", centre="zero").posterior.metadata["prior_precision"]
    assert there.metadata["prior_precision"] > 5 * zero
    further = finetune(model, questions, start=run.weights, **options)
    loaded = finetune(again.model, questions, **options)
    for continued in (further, load_run(further.save(tmp_path / "on"), progress=False),
                      load_run(loaded.save(tmp_path / "loaded"), progress=False)):  # fmt: skip
        with pytest.raises(ValueError, match="not known any more"):
            laplace(continued, questions, "diag", centre="start")


@pytest.mark.parametrize("structure", STRUCTURES)
def test_validation_chooses_the_precision_of_the_smallest_loss(model, weights, questions, structure):
    task = Task("tiny", questions[:6], questions[6:], questions[6:])
    run = laplace(run_of(model, weights), task, structure, precision="validation")
    chosen = run.posterior.metadata["prior_precision"]
    losses = {}
    for p in PRECISIONS:
        if structure == "diag":
            q = run.posterior.metadata["prior_precision"]
            variance = {name: 1 / (1 / v - q + p) for name, v in run.posterior.variance.items()}
            posterior = replace(run.posterior, variance=variance)
        else:
            posterior = replace(run.posterior, metadata={**run.posterior.metadata, "prior_precision": p})
        line = linearized_laplace(replace(run, posterior=posterior), task.validation)
        losses[p] = score(line.predictions(), intervals=False)["nll"]
    assert losses[chosen] == pytest.approx(min(losses.values()), rel=1e-4)
    assert run.config["method"] == f"laplace_{structure}_validation"


def test_wrong_use_is_named(model, weights, questions):
    with pytest.raises(ValueError, match="no structure 'full'"):
        laplace(run_of(model, weights), questions, "full")
    with pytest.raises(ValueError, match="no centre 'mean'"):
        laplace(run_of(model, weights), questions, centre="mean")
    with pytest.raises(ValueError, match="needs a task"):
        laplace(run_of(model, weights), questions, precision="validation")
    with pytest.raises(ValueError, match="no questions"):
        laplace(run_of(model, weights), [])
    with pytest.raises(ValueError, match="no Laplace posterior"):
        linearized_laplace(run_of(model, weights), questions)
    run = laplace(run_of(model, weights), questions)
    with pytest.raises(ValueError, match="no questions"):
        linearized_laplace(run, [])


@pytest.mark.parametrize("format", FORMATS)
def test_kfac_of_a_layer_does_not_depend_on_where_other_layers_run(tiny_model, questions, format):
    import peft

    def factors(*targets):
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", *targets], task_type="CAUSAL_LM")
        model = peft.get_peft_model(tiny_model(lora=False), config)
        model.tokenizer = model.get_base_model().tokenizer
        for name, p in trainable(model).items():
            zero = "lm_head" in name and "lora_B" in name  # a layer more that changes nothing
            generator = torch.Generator().manual_seed(p.numel())
            p.data.copy_(torch.zeros(p.shape) if zero else 0.2 * torch.randn(p.shape, generator=generator))
        return kronecker_ggn(model.eval(), read_weights(model), questions, format=format)

    alone, beside = factors(), factors("lm_head")
    assert len(beside) == len(alone) + 2
    for name, pair in alone.items():
        for mine, other in zip(pair, beside[name]):
            near(mine, other)
