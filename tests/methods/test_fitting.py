"""Posteriors for adapters that were trained elsewhere, with any loss."""

from __future__ import annotations

import peft
import pytest
import torch

from ivon_lora_lite import answer_logits, answer_loss, collate, fit_posterior, load_task, predict, trainable
from ivon_lora_lite.posterior import read_weights


@pytest.fixture
def model(tiny_model):
    return tiny_model(trained=True)


@pytest.fixture
def batches(model):
    questions = load_task("everyday@1").train[:4]
    return [collate([q], model.tokenizer) for q in questions]


def loss(model, batch):
    return answer_loss(answer_logits(model, batch), batch["answers"])


def test_the_empirical_fisher_by_hand(model, batches):
    q = fit_posterior(model, loss, batches, "laplace_diag", precision=2.0)
    h = {name: torch.zeros_like(p) for name, p in trainable(model).items()}
    for batch in batches:
        grads = torch.autograd.grad(loss(model, batch), trainable(model).values())
        for name, g in zip(h, grads):
            h[name] += g.square()
    for name, v in q.variance.items():
        torch.testing.assert_close(v, 1 / (h[name] + 2.0))
    free = fit_posterior(model, loss, batches, "laplace_diag")
    assert free.metadata["prior_precision"] > 0


def test_tfb_keeps_the_product_and_the_tolerance(model, batches):
    before = {name: p.clone() for name, p in trainable(model).items()}
    model.train()
    found = [fit_posterior(model, loss, batches, "tfb", tolerance=t).metadata["sigma_q"] for t in (0.003, 0.1)]
    assert found[0] < found[1] and model.training
    assert all(torch.equal(p, before[name]) for name, p in trainable(model).items())
    q = fit_posterior(model, loss, batches, "tfb", tolerance=0.1)
    questions = load_task("everyday@1").test[:4]
    at_mean = predict(model, questions).logits
    torch.testing.assert_close(predict(model, questions, posterior=q).logits, at_mean, atol=1e-4, rtol=1e-4)
    assert predict(model, questions, posterior=q, samples=3).logits.std(0).max() > 0


def test_one_size_costs_the_target(model, batches):
    q = fit_posterior(model, loss, batches, "isotropic", target=0.02)
    assert q.metadata["cost"] == pytest.approx(0.02, rel=0.2)
    assert len({float(v.flatten()[0]) for v in q.variance.values()}) == 1
    assert {name: m.shape for name, m in q.mean.items()} == {n: w.shape for n, w in read_weights(model).items()}


def test_what_cannot_be_fitted_is_refused(model, batches):
    with pytest.raises(ValueError, match="no method 'kfac'"):
        fit_posterior(model, loss, batches, "kfac")
    with pytest.raises(ValueError, match="no batches"):
        fit_posterior(model, loss, [])
    with pytest.raises(ValueError, match="The loss is nan"):
        fit_posterior(model, lambda m, b: loss(m, b) * float("nan"), batches)


@pytest.mark.parametrize("size", [1, 3])
def test_batches_may_be_tuples(model, size):
    stems = [q.stem for q in load_task("everyday@1").train[:4]]
    ids, mask = model.tokenizer(stems, return_tensors="pt", padding=True).values()
    tuples = [(x, m) for x, m in zip(ids.split(size), mask.split(size))]
    dicts = [{"input_ids": x, "attention_mask": m} for x, m in tuples]

    def of_tuple(model, batch):
        return model(input_ids=batch[0], attention_mask=batch[1], labels=batch[0]).loss

    def of_dict(model, batch):
        return of_tuple(model, (batch["input_ids"], batch["attention_mask"]))

    one = fit_posterior(model, of_tuple, tuples, "laplace_diag", precision=1.0)
    other = fit_posterior(model, of_dict, dicts, "laplace_diag", precision=1.0)
    assert all(torch.equal(v, other.variance[name]) for name, v in one.variance.items())
    named = [{"x": x, "mask": m} for x, m in tuples]  # names that are not transformers' own
    third = fit_posterior(model, lambda m, b: of_tuple(m, (b["x"], b["mask"])), named, "laplace_diag", precision=1.0)
    assert all(torch.equal(v, third.variance[name]) for name, v in one.variance.items())


def test_a_mean_over_tokens_is_scaled_by_their_number(model):
    stems = [q.stem for q in load_task("everyday@1").train[:2]]
    batches = [model.tokenizer(stem, return_tensors="pt") for stem in stems]

    def loss(model, batch):
        return model(**batch, labels=batch["input_ids"]).loss

    def targets(batch):
        return batch["input_ids"].shape[1] - 1

    q = fit_posterior(model, loss, batches, "laplace_diag", precision=1.0, size=targets)
    total = {name: torch.zeros_like(p) for name, p in trainable(model).items()}
    for batch in batches:
        ids = batch["input_ids"]
        whole = torch.nn.functional.cross_entropy(model(**batch).logits[0, :-1], ids[0, 1:], reduction="sum")
        for name, g in zip(total, torch.autograd.grad(whole, trainable(model).values())):
            total[name] += g.square()
    for name, v in q.variance.items():
        torch.testing.assert_close(v, 1 / (total[name] + 1), rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match="size of 0"):
        fit_posterior(model, loss, batches, "laplace_diag", precision=1.0, size=lambda batch: 0)


@pytest.mark.parametrize("method", ["tfb", "laplace_diag", "isotropic"])
def test_an_adapter_that_was_loaded_for_inference_gets_a_posterior_and_stays_frozen(model, batches, method):
    free = fit_posterior(model, loss, batches, method)
    for p in trainable(model).values():
        p.requires_grad_(False)
    frozen = fit_posterior(model, loss, batches, method)
    assert not trainable(model)
    assert free.variance.keys() == frozen.variance.keys()
    assert all(torch.equal(v, frozen.variance[name]) for name, v in free.variance.items())


def test_a_model_without_an_adapter_is_refused(tiny_model, batches):
    bare = tiny_model(lora=False)
    with pytest.raises(ValueError, match="no trainable weights and no adapter"):
        fit_posterior(bare, loss, batches, "isotropic")


@pytest.mark.parametrize("batch", [{"texts": ["a", "b"]}, (["a", "b"],), {"weight": torch.tensor(1.0)}])
def test_a_batch_without_a_row_an_example_is_refused(model, batches, batch):
    with pytest.raises(ValueError, match="no tensor of one row an example"):
        fit_posterior(model, lambda m, _: loss(m, batches[0]), [batch], "laplace_diag", precision=1.0)


def test_a_loss_that_overflows_is_beyond_the_tolerance(model, batches):
    at_mean = read_weights(model)

    def bounded(model, batch):
        moved = max(float((w - at_mean[name]).abs().max()) for name, w in read_weights(model).items())
        return loss(model, batch) * (1.0 if moved < widest else float("inf"))

    widest = float("inf")
    free = fit_posterior(model, bounded, batches[:1], "tfb", tolerance=1e6, samples=1).metadata["sigma_q"]
    drawn = fit_posterior(model, bounded, batches[:1], "tfb", tolerance=0.003, samples=1)
    widest = 2 * max(float((w - at_mean[name]).abs().max()) for name, w in drawn.sample(0).items())
    assert 0 < fit_posterior(model, bounded, batches[:1], "tfb", tolerance=1e6, samples=1).metadata["sigma_q"] < free


@pytest.mark.parametrize("method", ["laplace_diag", "tfb", "isotropic"])
def test_a_batch_of_a_data_loader_counts_its_examples(method):
    from torch.utils.data import DataLoader, TensorDataset

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 6, generator=generator), torch.randint(3, (20,), generator=generator)
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(6, 3)), peft.LoraConfig(r=2, target_modules=["0"]))
    for p in trainable(model).values():
        torch.nn.init.normal_(p, std=0.3, generator=generator)
    lists = list(DataLoader(TensorDataset(x, y), batch_size=8))  # the last one is shorter
    assert isinstance(lists[0], list)

    def loss(model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    a, b = (fit_posterior(model, loss, batches, method) for batches in (lists, [tuple(batch) for batch in lists]))
    assert all(torch.equal(v, b.variance[name]) for name, v in a.variance.items())
