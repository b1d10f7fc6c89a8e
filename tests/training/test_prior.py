"""λ = γ √N and a prior for every matrix, against their equations."""

import copy

import pytest
import torch

from ivon_lora_lite import IVON, finetune, load_task
from ivon_lora_lite.training import PerMatrixIVON, refit_prior, sqrt_ess

OPTIONS = {"lr": 0.1, "ess": 50.0, "hess_init": 0.5, "beta2": 0.9, "seed": 1, "rescale_lr": False}


def test_lambda_grows_with_the_root_of_the_examples():
    assert sqrt_ess(160) == pytest.approx(5000 * 160**0.5) and sqrt_ess(4, gamma=3.0) == 6.0
    for wrong in ((0, 1.0), (5, 0.0)):
        with pytest.raises(ValueError, match="expected at least 1 and a number above 0"):
            sqrt_ess(*wrong)


def test_delta_follows_every_matrix_and_the_first_step_is_that_of_ivon():
    def weights():
        generator = torch.Generator().manual_seed(0)
        shapes = ((2, 3), (4,))
        return [torch.nn.Parameter(scale * torch.randn(s, generator=generator)) for s, scale in zip(shapes, (3.0, 0.1))]

    plain, own = weights(), weights()
    usual, fitted = IVON(plain, weight_decay=0.1, **OPTIONS), PerMatrixIVON(own, weight_decay=0.1, **OPTIONS)
    for step in range(3):
        for optimizer, params in ((usual, plain), (fitted, own)):
            with optimizer.sampled_params(train=True):
                sum(p.square().sum() for p in params).backward()
            before = [(optimizer.mean(p).clone(), optimizer.state[p]["hess"].clone()) for p in params]
            deltas = [group["weight_decay"] for group in optimizer.param_groups]
            optimizer.step()
            optimizer.zero_grad()
        if step == 0:
            assert all(torch.equal(p, q) for p, q in zip(plain, own))
        for p, group, delta, (m, h) in zip(own, fitted.param_groups, deltas, before):
            assert not torch.equal(m, p) and not torch.equal(h, fitted.state[p]["hess"])
            v = 1 / (50.0 * (fitted.state[p]["hess"] + delta))  # with the δ that the step was taken with
            expected = 1 / (50.0 * float((p.detach().square() + v).mean()))
            assert group["weight_decay"] == pytest.approx(expected, rel=1e-5)
    small, large = (group["weight_decay"] for group in reversed(fitted.param_groups))
    assert small > 10 * large  # small weights have a tight prior


def test_an_optimizer_without_steps_keeps_its_prior():
    optimizer = IVON([torch.nn.Parameter(torch.ones(2))], weight_decay=0.3, **OPTIONS)
    refit_prior(optimizer)
    assert optimizer.param_groups[0]["weight_decay"] == 0.3


def test_a_skipped_step_leaves_the_prior_as_it_is():
    p = torch.nn.Parameter(torch.ones(4))
    optimizer, deltas = PerMatrixIVON([p], **OPTIONS), []
    for factor in (1.0, float("nan"), 1.0):
        with optimizer.sampled_params(train=True):
            (factor * p.square()).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        deltas.append(optimizer.param_groups[0]["weight_decay"])
    assert optimizer.skipped_steps == 1 and deltas[0] == deltas[1] != deltas[2]


def test_a_copy_and_a_loaded_state_go_on_fitting_the_prior():
    def step(optimizer) -> float:
        (group,) = optimizer.param_groups
        with optimizer.sampled_params(train=True):
            group["params"][0].square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return group["weight_decay"]

    first = PerMatrixIVON([torch.nn.Parameter(torch.ones(4))], **OPTIONS)
    step(first)
    copied = copy.deepcopy(first)
    loaded = PerMatrixIVON([torch.nn.Parameter(first.mean(first.param_groups[0]["params"][0]).clone())], **OPTIONS)
    loaded.load_state_dict(copy.deepcopy(first.state_dict()))
    before = first.param_groups[0]["weight_decay"]
    assert before != (after := step(first)) == step(copied)
    assert step(loaded) != before and len(loaded._optimizer_step_post_hooks) == 1
    assert after != step(first)


def test_finetune_takes_both_by_name(tiny_model):
    task, options = load_task("everyday@1"), {"steps": 3, "train_size": 9, "progress": False, "eval_every": 0}
    run = finetune(tiny_model(), task, ess="sqrt", prior="per_matrix", **options)
    assert run.config["settings"]["ess"] == 15_000.0 and run.posterior.metadata["ess"] == 15_000.0
    deltas = run.posterior.metadata["weight_decay"]
    assert len(deltas) == len(run.weights) and len(set(deltas)) > 1 and min(deltas) > 0
    with pytest.raises(ValueError, match="ess is 'root'; expected a number, or 'sqrt'"):
        finetune(tiny_model(), task, ess="root", **options)
    with pytest.raises(ValueError, match="There is no prior 'mine'"):
        finetune(tiny_model(), task, prior="mine", **options)
