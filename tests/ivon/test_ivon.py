"""IVON against the oracle `ivon-opt`, against closed forms, and under everything that a training loop does to it."""

import contextlib
import copy
import itertools
import math
import re
import weakref
from types import SimpleNamespace

import ivon as oracle
import pytest
import torch
from conftest import flat
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from ivon_lora_lite import IVON
from ivon_lora_lite.ivon import lists
from ivon_lora_lite.ivon.finite import FiniteGuard, not_finite

KEEP = {"lr": 0.05, "ess": 50.0, "hess_init": 0.5, "beta2": 0.99}


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def problem(seed=0):
    """Two tensors, a regression loss and a quartic one: gradients and curvature that vary."""
    generator = torch.Generator().manual_seed(seed)
    w = [nn.Parameter(torch.randn(4, 3, generator=generator)), nn.Parameter(torch.randn(5, generator=generator))]
    x, y = torch.randn(48, 3, generator=generator), torch.randn(48, 4, generator=generator)

    def loss(rows=slice(None)):
        return (x[rows] @ w[0].T - y[rows]).square().mean() + w[1].pow(4).sum() / 10 + (w[1] - 1).square().sum()

    return w, loss


def hessians(optimizer):
    return flat([optimizer.state[p]["hess"] for group in optimizer.param_groups for p in group["params"]])


# ------------------------------------------------------------------------------------------------------------ oracle


def play(optimizer, w, loss, steps, draws, displacements=None):
    """Train; returns the displacements θ − m of every draw."""
    out = []
    for _ in range(steps):
        for _ in range(draws):
            before = flat(w)
            with optimizer.sampled_params(train=True):
                out.append(flat(w) - before)
                optimizer.zero_grad()
                loss().backward()
        optimizer.step()
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    "approx, draws, debias, rescale, clip, decay",
    list(itertools.product(["price", "gradsq"], [1, 3], [True, False], [True, False], [math.inf, 0.1], [0.0, 1e-2])),
)
def test_equals_ivon_opt_over_200_steps_in_double_precision(double, approx, draws, debias, rescale, clip, decay):
    options = dict(
        **KEEP, mc_samples=draws, hess_approx=approx, debias=debias, rescale_lr=rescale, clip_radius=clip,
        weight_decay=decay,
    )  # fmt: skip
    w, loss = problem()
    theirs = oracle.IVON(w, **options)
    noise = iter(play(theirs, w, loss, 200, draws))
    ours_w, ours_loss = problem()
    ours = IVON(ours_w, **options)
    sample = ours._draws.draw

    def same_noise(groups, state, stream):
        out = sample(groups, state, stream)
        for p, part in zip(out, next(noise).split([p.numel() for p in out])):
            out[p].copy_(part.view_as(p) * math.sqrt(KEEP["ess"]))
        return out

    ours._draws.draw = same_noise
    play(ours, ours_w, ours_loss, 200, draws)
    torch.testing.assert_close(flat(ours_w), flat(w), atol=1e-6, rtol=0)
    torch.testing.assert_close(hessians(ours), theirs.param_groups[0]["hess"], atol=1e-6, rtol=0)


def test_step_with_closure_equals_the_explicit_loop():
    results = []
    for by_closure in (True, False):
        w, loss = problem()
        optimizer = IVON(w, **KEEP, mc_samples=2, seed=3)

        def closure(optimizer=optimizer, loss=loss):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        for _ in range(5):
            if by_closure:
                assert optimizer.step(closure) > 0
            else:
                play(optimizer, w, loss, 1, 2)
        results.append(flat(w))
    assert torch.equal(*results)


# ------------------------------------------------------------------------------------------------------ closed forms


@pytest.mark.slow
def test_recovers_the_posterior_of_linear_regression(double):
    """With λ = N and prior precision λδ the best diagonal Gaussian has the exact mean and v = 1/(N (diag H + δ))."""
    generator = torch.Generator().manual_seed(1)
    n, d, delta = 200, 3, 0.1
    x = torch.randn(n, d, generator=generator) @ torch.tensor([[1.0, 0.4, 0], [0, 1, 0.2], [0, 0, 0.5]])
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + torch.randn(n, generator=generator)
    hessian = x.T @ x / n  # of the mean negative log-likelihood with unit noise
    exact_mean = torch.linalg.solve(hessian + delta * torch.eye(d), x.T @ y / n)
    exact_variance = 1 / (n * (hessian.diagonal() + delta))

    w = nn.Parameter(torch.zeros(d))
    optimizer = IVON([w], lr=0.1, ess=n, hess_init=0.5, beta2=0.999, weight_decay=delta, rescale_lr=False, seed=0)
    means, variances = [], []
    for step in range(20_000):
        if step in (3000, 6000):
            optimizer.param_groups[0]["lr"] /= 5
        with optimizer.sampled_params(train=True):
            loss = 0.5 * (y - x @ w).square().mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= 5000:
            means.append(w.detach().clone())
            variances.append(optimizer.variance(w))
    m, v = torch.stack(means).mean(0), torch.stack(variances).mean(0)
    # Monte-Carlo error: the noise of one gradient is H σ ε; averaged over 15,000 correlated steps it is below σ/10. One
    # ĥ has a relative standard deviation of about √2 to 2, so their average has one of 2/√15,000 = 1.6 %
    assert ((m - exact_mean).abs() < 0.1 * exact_variance.sqrt()).all()
    torch.testing.assert_close(v, exact_variance, rtol=0.065, atol=0)


def test_price_estimator_is_unbiased_for_a_cubic_loss(double):
    """E[ĝ ε/σ] = E_q[∇²ℓ] (Price's theorem). For ℓ = θ³ that is 6m, whatever σ."""
    w = nn.Parameter(torch.full((50_000,), 0.7))
    optimizer = IVON([w], lr=0.0, ess=4.0, hess_init=1.0, beta1=0.0, beta2=0.0, weight_decay=0.0, seed=0)
    with optimizer.sampled_params(train=True):
        w.pow(3).sum().backward()
    # with β₂ = 0 the update is h = ĥ + ½ (h₀ − ĥ)²/h₀; solve it for ĥ by reading the estimate from its parts
    estimate = w.grad * optimizer._perturbation[w] * math.sqrt(4.0) * 1.0  # ĝ·ε/√h·√λ·h with h = 1
    error = estimate.std() / math.sqrt(w.numel())
    assert abs(estimate.mean() - 6 * 0.7) < 4 * error
    assert error < 0.1  # so that the test can fail
    optimizer.step()
    expected = estimate + 0.5 * (1 - estimate).square()
    torch.testing.assert_close(optimizer.state[w]["hess"], expected)


@settings(max_examples=60, deadline=None)
@given(
    gradient=st.floats(-1e8, 1e8),
    hess=st.floats(1e-6, 1e3),
    decay=st.floats(0, 10),
    beta2=st.floats(0, 0.999999),
    approx=st.sampled_from(["price", "gradsq"]),
)
def test_hessian_plus_decay_never_falls_below_half_its_former_value(gradient, hess, decay, beta2, approx):
    w = nn.Parameter(torch.zeros(8, dtype=torch.float64))
    optimizer = IVON([w], lr=0.0, ess=10.0, hess_init=hess, beta2=beta2, weight_decay=decay, hess_approx=approx, seed=1)
    with optimizer.sampled_params(train=True):
        w.grad = torch.full_like(w, gradient)
    optimizer.step()
    assert (optimizer.state[w]["hess"] + decay >= 0.5 * (hess + decay) * (1 - 1e-9)).all()


# ------------------------------------------------------------------------------------------------------- composition


def test_accumulation_over_micro_batches_equals_one_batch():
    results = []
    for parts in (1, 4):
        w, loss = problem()
        optimizer = IVON(w, **KEEP, seed=5)
        for _ in range(20):
            for part in range(parts):
                size = 48 // parts
                with optimizer.sampled_params(train=True):
                    (loss(slice(part * size, (part + 1) * size)) / parts).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append((flat(w), hessians(optimizer)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_every_micro_batch_of_a_step_sees_the_same_draw():
    w, loss = problem()
    optimizer = IVON(w, **KEEP, seed=5)
    seen = []
    for _ in range(2):
        for _ in range(3):
            with optimizer.sampled_params(train=True):
                seen.append(flat(w))
                loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[1], seen[2])
    assert not torch.allclose(seen[2], seen[3], atol=1e-3)


def test_clipping_scales_gradient_and_hessian_product_alike():
    w, loss = problem()
    optimizer = IVON(w, lr=0.0, ess=50.0, hess_init=0.5, beta1=0.0, beta2=0.9, weight_decay=0.0, seed=2)
    with optimizer.sampled_params(train=True):
        loss().backward()
    norm = nn.utils.clip_grad_norm_(w, 0.1)
    assert norm > 0.1
    g = flat([p.grad for p in w])
    estimate = g * flat([optimizer._perturbation[p] for p in w]) * math.sqrt(50.0) * 0.5
    optimizer.step()
    gap = 0.1 * (0.5 - estimate)
    torch.testing.assert_close(hessians(optimizer), 0.5 - gap + 0.5 * gap.square() / 0.5)
    torch.testing.assert_close(flat([optimizer.state[p]["momentum"] for p in w]), g)


def test_grad_scaler_gives_the_unscaled_update_and_skips_overflows():
    results = []
    for scale in (None, 1024.0):
        w, loss = problem()
        optimizer = IVON(w, **KEEP, seed=7)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for step in range(6):
            with optimizer.sampled_params(train=True):
                value = loss() * (math.inf if step == 2 else 1.0)
                scaler.scale(value).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(w, 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        results.append((flat(w), hessians(optimizer)))
    # one run skipped the overflow in GradScaler, the other in the optimizer
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_parameters_keep_an_fp32_mean_and_follow_the_fp32_run(dtype):
    trajectories = []
    for kind in (torch.float32, dtype):
        w = nn.Parameter(torch.linspace(-1, 1, 64).to(kind))
        optimizer = IVON([w], lr=1e-4, ess=1e4, hess_init=1.0, weight_decay=0.0, rescale_lr=False, seed=0)
        for _ in range(200):
            with optimizer.sampled_params(train=True):
                (w.float() - 0.3).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        trajectories.append(optimizer.mean(w).float())
        state = optimizer.state[w]
        assert state["hess"].dtype == state["momentum"].dtype == torch.float32
        assert torch.equal(w.detach(), optimizer.mean(w).to(kind))
    moved = (trajectories[0] - torch.linspace(-1, 1, 64)).abs().mean()
    # steps of 1e-4 are below the resolution of bf16: without the fp32 mean nothing would move
    assert moved > 5e-3
    assert (trajectories[0] - trajectories[1]).abs().max() < 0.2 * moved


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_put_into_16_bit_parameters_between_steps_stays_as_in_fp32(dtype):
    means = []
    for kind in (torch.float32, dtype):
        w = nn.Parameter(torch.ones(4, dtype=kind))
        optimizer = IVON([w], lr=1e-3, ess=1e4, weight_decay=0.0, rescale_lr=False, seed=0)
        for step in range(3):
            if step == 1:
                w.data[0] = 5.0
                assert optimizer.mean(w)[0] == 5.0
            with optimizer.sampled_params(train=True):
                w.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        means.append(optimizer.mean(w).clone())
    torch.testing.assert_close(*means, rtol=0, atol=1e-6)  # the others have kept what 16 bits cannot hold


def test_parameters_without_gradient_or_frozen_are_left_alone():
    used, unused, frozen = (nn.Parameter(torch.ones(3)) for _ in range(3))
    frozen.requires_grad_(False)
    optimizer = IVON([used, unused, frozen], **KEEP, seed=0)
    with optimizer.sampled_params(train=True):
        assert torch.equal(frozen, torch.ones(3))  # no noise
        assert not torch.equal(unused, torch.ones(3))
        used.square().sum().backward()
    optimizer.step()
    assert not torch.equal(used, torch.ones(3))
    assert torch.equal(unused, torch.ones(3)) and optimizer.state[unused]["step"] == 0
    assert frozen not in optimizer.state


def test_groups_have_their_own_hyperparameters_and_new_groups_join():
    a, b = nn.Parameter(torch.ones(2000)), nn.Parameter(torch.ones(2000))
    optimizer = IVON([{"params": [a], "ess": 1e4}], **KEEP, seed=0)
    with optimizer.sampled_params(train=True):
        a.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.add_param_group({"params": [b], "ess": 1e2, "hess_init": 2.0, "lr": 0.0})
    with optimizer.sampled_params(train=True):
        (a.sum() + b.sum()).backward()
        spread = (b - 1).std()
    optimizer.step()
    assert abs(spread - 1 / math.sqrt(1e2 * (2.0 + 1e-4))) < 0.1 * spread
    assert optimizer.state[a]["step"] == 2 and optimizer.state[b]["step"] == 1
    assert torch.equal(b, torch.ones(2000))  # its learning rate is 0


def test_a_group_equals_an_optimizer_of_its_own_in_debiasing():
    """A parameter that joins late must be debiased by its own step count."""
    late, alone = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    early = nn.Parameter(torch.ones(1))
    # hardly any noise, and a Hessian that stays
    options = dict(lr=0.1, ess=1e12, hess_init=1.0, beta2=1 - 1e-14, weight_decay=0.0, rescale_lr=False)
    both, single = IVON([early], **options, seed=0), IVON([alone], **options, seed=0)
    for optimizer, params in ((both, [early]), (both, [early, late]), (single, [alone])):
        if params == [early, late]:
            optimizer.add_param_group({"params": [late]})
        with optimizer.sampled_params(train=True):
            sum(p.square().sum() for p in params).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(late, alone, rtol=1e-5, atol=0)


# ------------------------------------------------------------------------------------------------------ what can fail


def test_non_finite_gradients_change_nothing_and_are_counted():
    w, loss = problem()
    optimizer = IVON(w, **KEEP, seed=0, max_skipped=3)
    play(optimizer, w, loss, 2, 1)
    before, h = flat(w), hessians(optimizer)
    momentum = flat([optimizer.state[p]["momentum"] for p in w])
    for bad in (math.nan, math.inf):
        with optimizer.sampled_params(train=True):
            loss().backward()
        w[1].grad[2] = bad
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(flat(w), before) and torch.equal(hessians(optimizer), h)
    assert torch.equal(flat([optimizer.state[p]["momentum"] for p in w]), momentum)
    assert optimizer.skipped_steps == 2 and optimizer.state[w[0]]["step"] == 2
    play(optimizer, w, loss, 1, 1)  # a good step ends the row
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        for _ in range(3):
            with optimizer.sampled_params(train=True):
                (loss() * math.nan).backward()
            optimizer.step()
            optimizer.zero_grad()


def test_exceptions_restore_the_mean_exactly():
    w, loss = problem()
    optimizer = IVON(w, **KEEP, seed=0)
    before = flat(w)
    with pytest.raises(ZeroDivisionError), optimizer.sampled_params(train=True):
        loss().backward()
        raise ZeroDivisionError
    assert torch.equal(flat(w), before)
    optimizer.zero_grad()
    play(optimizer, w, loss, 1, 1)  # and training goes on


@pytest.mark.parametrize("train", [True, False])
def test_leaving_restores_the_mean_bit_by_bit(train):
    w = nn.Parameter(torch.randn(1000) * torch.logspace(-8, 8, 1000))
    optimizer = IVON([w], lr=0.1, ess=1.0, hess_init=1e-4, seed=0)
    before = w.detach().clone()
    with optimizer.sampled_params(train=train):
        assert not torch.equal(w, before)
    assert torch.equal(w, before)


def test_misuse_raises_and_says_what_to_do():
    w, loss = problem()
    optimizer = IVON(w, **KEEP, seed=0)
    with pytest.raises(RuntimeError, match="sampled_params"):
        optimizer.step()
    with optimizer.sampled_params(train=True):
        loss().backward()
        with pytest.raises(RuntimeError, match="cannot be nested"), optimizer.sampled_params():
            pass
        with pytest.raises(RuntimeError, match="leave the context"):
            optimizer.step()
        with pytest.raises(RuntimeError, match="leave sampled_params"):
            optimizer.state_dict()
    with pytest.raises(RuntimeError, match="pending"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with optimizer.sampled_params(train=True), pytest.raises(RuntimeError, match="mc_samples"):
        optimizer.zero_grad()  # would silently lose the first gradients


@pytest.mark.parametrize(
    "wrong", [{"lr": -1}, {"ess": 0}, {"hess_init": 0}, {"beta1": 1}, {"beta2": -0.1}, {"weight_decay": -1},
              {"clip_radius": 0}, {"mc_samples": 0}, {"mc_samples": 1.5}, {"hess_approx": "exact"}],
)  # fmt: skip
def test_arguments_outside_their_range_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        IVON([nn.Parameter(torch.ones(1))], **{"lr": 0.1, "ess": 1.0, **wrong})


def test_several_draws_refuse_gradients_that_were_changed_afterwards():
    w, loss = problem()
    optimizer = IVON(w, **KEEP, mc_samples=2, seed=0)
    for _ in range(2):
        with optimizer.sampled_params(train=True):
            loss().backward()
    nn.utils.clip_grad_norm_(w, 1e-3)
    with pytest.raises(RuntimeError, match="mc_samples=1"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="All mc_samples=2"), optimizer.sampled_params(train=True):
        pass


def test_too_few_draws_are_refused():
    w, loss = problem()
    optimizer = IVON(w, **KEEP, mc_samples=2, seed=0)
    with optimizer.sampled_params(train=True):
        loss().backward()
    with pytest.raises(RuntimeError, match="1 of mc_samples=2"):
        optimizer.step()


# ----------------------------------------------------------------------------------------------------- evaluation


def test_evaluation_draws_differ_and_do_not_change_training():
    results = []
    for evaluate in (False, True):
        w, loss = problem()
        optimizer = IVON(w, **KEEP, seed=9)
        for _ in range(5):
            with optimizer.sampled_params(train=True):
                loss().backward()
            if evaluate:  # even between the backward pass and the step
                with torch.inference_mode(), optimizer.sampled_params():
                    first = float(loss())
                with torch.no_grad(), optimizer.sampled_params():
                    second = float(loss())
                assert first != second
            optimizer.step()
            optimizer.zero_grad()
        results.append(flat(w))
    assert torch.equal(*results)


def test_draws_have_the_posterior_variance():
    w = nn.Parameter(torch.zeros(100_000))
    optimizer = IVON([w], lr=0.1, ess=25.0, hess_init=0.15, weight_decay=0.01, seed=0)
    with optimizer.sampled_params():
        v = w.detach().var()
    torch.testing.assert_close(v, optimizer.variance(w).mean(), rtol=0.02, atol=0)
    assert optimizer.variance(w)[0] == pytest.approx(1 / (25 * 0.16), rel=1e-5)


# ------------------------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("draws", [1, 2])
def test_a_resumed_run_is_bit_equal(tmp_path, dtype, draws):
    def start():
        torch.manual_seed(123)  # another global state must not matter
        w, loss = problem()
        w = [nn.Parameter(p.detach().to(dtype)) for p in w]
        target = torch.linspace(-1, 1, 12).view(4, 3)

        def own_loss():
            return (w[0].float() - target).square().sum() + (w[1].float() - 0.5).pow(4).sum()

        return w, own_loss, IVON(w, **KEEP, mc_samples=draws, seed=4)

    w, loss, optimizer = start()
    play(optimizer, w, loss, 12, draws)
    w2, loss2, first = start()
    play(first, w2, loss2, 5, draws)
    torch.save({"optimizer": first.state_dict(), "weights": [p.detach() for p in w2]}, tmp_path / "checkpoint.pt")
    w3, loss3, second = start()
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for p, value in zip(w3, saved["weights"]):
        p.data.copy_(value)
    second.load_state_dict(saved["optimizer"])
    assert second.state[w3[0]]["hess"].dtype == torch.float32
    play(second, w3, loss3, 7, draws)
    assert torch.equal(flat(w), flat(w3)) and torch.equal(hessians(optimizer), hessians(second))


def test_checkpoints_of_another_shape_or_option_set_are_refused():
    w, loss = problem()
    optimizer = IVON(w, **KEEP, seed=0)
    play(optimizer, w, loss, 1, 1)
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match="hess_approx='price'"):
        IVON(problem()[0], **KEEP, hess_approx="gradsq").load_state_dict(copy.deepcopy(state))
    other = [nn.Parameter(torch.ones(4, 2)), nn.Parameter(torch.ones(5))]
    with pytest.raises(ValueError, match=r"shape \(4, 3\)"):
        IVON(other, **KEEP).load_state_dict(copy.deepcopy(state))
    with pytest.raises(ValueError, match="other parameter groups"):
        IVON(w[:1], **KEEP).load_state_dict(copy.deepcopy(state))
    with pytest.raises(ValueError, match="no 'ivon' entry"):
        optimizer.load_state_dict(torch.optim.AdamW(w).state_dict())


@pytest.mark.parametrize(("made", "asked"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_a_checkpoint_of_another_precision_is_refused_before_anything_is_loaded(made, asked):
    def fresh(dtype):
        w = nn.Parameter(torch.ones(3, dtype=dtype))
        return w, IVON([w], lr=0.1, ess=10.0, seed=0)

    w, first = fresh(made)
    play(first, [w], lambda: w.square().sum(), 1, 1)
    _, second = fresh(asked)
    with pytest.raises(ValueError, match=f"Parameter 0 is {asked}, and the checkpoint is of another precision"):
        second.load_state_dict(first.state_dict())
    _, third = fresh(made)
    third.load_state_dict(first.state_dict())


@pytest.mark.parametrize("mc_samples", [1, 2])
def test_sparse_gradients_are_refused(mc_samples):
    layer = nn.Embedding(5, 3, sparse=True)
    before = layer.weight.detach().clone()
    optimizer = IVON(layer.parameters(), lr=0.1, ess=10.0, seed=0, mc_samples=mc_samples)
    with pytest.raises(ValueError, match="dense gradients"), optimizer.sampled_params(train=True):
        layer(torch.tensor([1, 2])).sum().backward()
    assert torch.equal(layer.weight, before)


def test_learning_rate_schedulers_work():
    w, loss = problem()
    optimizer = IVON(w, **KEEP, seed=0)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=4)
    for _ in range(4):
        play(optimizer, w, loss, 1, 1)
        scheduler.step()
    before = flat(w)
    play(optimizer, w, loss, 1, 1)
    assert optimizer.param_groups[0]["lr"] == 0 and torch.equal(flat(w), before)


# ------------------------------------------------------------------------------------- the accelerator's code path


@pytest.fixture
def deferred(monkeypatch):
    """On accelerators the answer to "is the gradient finite?" stays on the device; here it does so on the CPU."""

    def check(self, grads, states):
        self._read(wait=False)
        self.defer([not_finite([g]) for g in grads], states)
        return True

    def late(self, grads, states):
        check(self, grads, states)
        host, _, states = self._waiting.pop()
        event = SimpleNamespace(query=lambda: False, synchronize=lambda: None)  # there only for those who wait
        self._waiting.append((host, event, states))
        return True

    def switch(on):
        monkeypatch.setattr(FiniteGuard, "check", {True: check, "late": late}.get(on, plain))

    plain = FiniteGuard.check
    return switch


def accelerated(deferred, on, steps=8, spoiled=(), **options):
    """Mean and Hessian after some steps, with a NaN in the losses of those that are ``spoiled``."""
    deferred(on)
    w, loss = problem()
    optimizer = IVON(w, **{**KEEP, "clip_radius": 0.5, "weight_decay": 0.01, "seed": 0, **options})
    for step in range(steps):
        with optimizer.sampled_params(train=True):
            (loss() * (math.nan if step in spoiled else 1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer, flat(w), hessians(optimizer)


@pytest.mark.parametrize("approx", ["price", "gradsq"])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_the_accelerators_path_equals_the_plain_one(deferred, approx, decay):
    options = {"hess_approx": approx, "weight_decay": decay}
    _, mean, hess = accelerated(deferred, False, **options)
    _, other_mean, other_hess = accelerated(deferred, True, **options)
    torch.testing.assert_close(other_mean, mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(other_hess, hess, rtol=1e-6, atol=1e-7)


def test_the_accelerators_path_skips_steps_that_are_not_finite(deferred):
    """A skipped step changes no value, and is counted when the answer has arrived."""
    _, mean, hess = accelerated(deferred, True, steps=3)
    optimizer, other_mean, other_hess = accelerated(deferred, True, steps=4, spoiled={3})
    assert torch.equal(other_mean, mean) and torch.equal(other_hess, hess)
    assert optimizer.skipped_steps == 1
    assert {state["step"] for state in optimizer.state.values()} == {3}


@pytest.mark.parametrize("spoiled", [{0}, {1, 2}])
def test_a_skipped_step_does_not_count_in_the_debiasing_although_its_answer_arrives_late(deferred, spoiled):
    options = {"steps": 4, "spoiled": spoiled, "clip_radius": math.inf}
    _, mean, hess = accelerated(deferred, False, **options)
    optimizer, other_mean, other_hess = accelerated(deferred, "late", **options)
    torch.testing.assert_close(other_mean, mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(other_hess, hess, rtol=1e-6, atol=1e-7)
    assert optimizer.skipped_steps == len(spoiled)


def test_large_tensors_pass_through_the_cache_in_parts():
    """Splitting the list of tensors must not change the result."""
    results = []
    for limit in (10, 10**9):
        lists.CACHE_ELEMENTS, before = limit, lists.CACHE_ELEMENTS
        try:
            w, loss = problem()
            optimizer = IVON(w, **KEEP, seed=0)
            play(optimizer, w, loss, 5, 1)
        finally:
            lists.CACHE_ELEMENTS = before
        results.append(flat(w))
    assert torch.equal(*results)


def test_several_draws_notice_a_gradient_that_was_replaced():
    w, loss = problem()
    optimizer = IVON(w, **KEEP, mc_samples=2, seed=0)
    for _ in range(2):
        with optimizer.sampled_params(train=True):
            loss().backward()
    w[0].grad = w[0].grad.clone()
    with pytest.raises(RuntimeError, match="mc_samples=1"):
        optimizer.step()


@pytest.mark.parametrize("decay", [0.0, 1e-2])
@pytest.mark.parametrize("missing", [False, True], ids=["all gradients", "one gradient missing"])
def test_flat_state_gives_the_same_as_tensor_by_tensor(monkeypatch, decay, missing):
    """State in one block of memory is worked on as one tensor; where it cannot be, tensor by tensor."""
    results, flats, joined = [], [], lists.joined
    for joining in (True, False):
        calls = []

        def watched(*given, joining=joining, calls=calls):
            out = joined(*given) if joining else given
            calls.append(len(out[0]) < len(given[0]))
            return out

        for module in ("draws", "optimizer"):
            monkeypatch.setattr(f"ivon_lora_lite.ivon.{module}.joined", watched)
        w, loss = problem()
        optimizer = IVON(w, **KEEP, weight_decay=decay, seed=0)
        for _ in range(5):
            with optimizer.sampled_params(train=True):
                loss().backward()
            if missing:
                w[0].grad = None
            optimizer.step()
            optimizer.zero_grad()
        results.append(torch.cat([flat_tensor.flatten() for flat_tensor in (*w, hessians(optimizer))]))
        flats.append(any(calls))
    assert flats == [True, False]
    torch.testing.assert_close(*results)


def test_a_resumed_optimizer_has_its_state_in_one_block_again():
    w, loss = problem()
    first = IVON(w, **KEEP, seed=0)
    play(first, w, loss, 2, 1)
    again, _ = problem()
    second = IVON(again, **KEEP, seed=0)
    second.load_state_dict(first.state_dict())
    for name in ("hess", "momentum"):
        blocks = {second.state[p][name].untyped_storage().data_ptr() for p in again}
        assert len(blocks) == 1 and blocks != {first.state[w[0]][name].untyped_storage().data_ptr()}


# -------------------------------------------------------------------------------------- loops that would be wrong


def test_a_deep_copy_goes_on_as_the_original():
    w, loss = problem()
    optimizer = IVON(w, **KEEP, seed=3)
    play(optimizer, w, loss, 3, 1)
    other_w, other = copy.deepcopy((w, optimizer))
    for parameters, each in ((w, optimizer), (other_w, other)):
        for _ in range(3):
            with each.sampled_params(train=True):
                each.zero_grad()
                (parameters[0].square().sum() + (parameters[1] - 1).pow(4).sum()).backward()
            each.step()
    assert torch.equal(flat(w), flat(other_w)) and torch.equal(hessians(optimizer), hessians(other))


def test_a_backward_pass_after_the_context_is_refused():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), torch.ones(2, 3)
    optimizer = IVON(model.parameters(), **KEEP)

    def loss():  # its layers are computed again in the backward pass
        return checkpoint(model, x, use_reentrant=False).square().sum()

    with optimizer.sampled_params(train=True):
        value = loss()
    value.backward()  # the second time they see the mean
    with pytest.raises(RuntimeError, match="outside sampled_params"):
        optimizer.step()
    optimizer.zero_grad()
    play(optimizer, list(model.parameters()), loss, 2, 1)  # and a right step works afterwards


@pytest.mark.parametrize("by_closure", [True, False])
def test_gradients_accumulated_at_the_mean_before_the_draw_are_refused(by_closure):
    results = []
    for astray in (True, False):
        w, loss = problem()
        optimizer = IVON(w, **KEEP, seed=0)

        def closure(loss=loss):
            value = loss(slice(24, 48))
            value.backward()
            return value

        def step(optimizer=optimizer, closure=closure):
            if by_closure:
                return optimizer.step(closure)
            with optimizer.sampled_params(train=True):
                closure()
            optimizer.step()

        for _ in range(2):
            if astray:  # as a framework accumulates: only the last micro-batch is in the closure
                loss(slice(24)).backward()
                with pytest.raises(RuntimeError, match="before the draw"):
                    step()
            optimizer.zero_grad()
            step()
            optimizer.zero_grad()
        results.append(flat(w))
    assert torch.equal(*results)  # what was refused has left no trace


def test_gradients_of_zero_are_no_gradients_to_a_closure():
    results = []
    for set_to_none in (True, False):
        w, loss = problem()
        optimizer = IVON(w, **KEEP, seed=0)

        def closure(loss=loss):
            value = loss()
            value.backward()
            return value

        for _ in range(3):
            optimizer.zero_grad(set_to_none=set_to_none)
            optimizer.step(closure)
        results.append(flat(w))
    assert torch.equal(*results)


@pytest.mark.parametrize("draws", [1, 2])
def test_gradients_that_are_cleared_are_freed(draws):
    w, loss = problem()
    optimizer = IVON(w, **KEEP, mc_samples=draws, seed=0)
    for _ in range(draws):
        with optimizer.sampled_params(train=True):
            loss().backward()
    gradients = [weakref.ref(p.grad) for p in w]
    optimizer.step()
    optimizer.zero_grad()
    assert [gradient() for gradient in gradients] == [None, None]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_whose_dtype_changes_after_the_optimizer_was_made_trains_on(dtype):
    model = nn.Linear(4, 2)
    optimizer = IVON(model.parameters(), **KEEP)
    model.to(dtype)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    for _ in range(3):
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
        optimizer.step()
    assert model.weight.dtype == dtype and torch.isfinite(model.weight).all()
    assert optimizer.variance(model.weight).isfinite().all()


def test_one_autocast_around_several_draws_computes_with_each_of_them():
    w, x = nn.Parameter(torch.ones(8, 8)), torch.ones(8)
    optimizer, losses = IVON([w], lr=0.1, ess=10.0, hess_init=1.0, seed=0, mc_samples=3), []
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            with optimizer.sampled_params(train=True):
                loss = (w @ x).float().square().sum()
                loss.backward()
                losses.append(float(loss.detach()))
                exact = float((w.detach().bfloat16() @ x.bfloat16()).float().square().sum())
                assert losses[-1] == exact
        assert float((w @ x).float().square().sum()) == 8 * 8**2  # the mean again
    assert len(set(losses)) == 3


@pytest.mark.parametrize("mc_samples", [1, 2])
def test_a_nan_gradient_is_skipped_and_counted_however_many_draws_a_step_has(mc_samples):
    w = nn.Parameter(torch.ones(3))
    optimizer = IVON([w], lr=0.1, ess=10.0, seed=0, mc_samples=mc_samples)
    for _ in range(mc_samples):
        with optimizer.sampled_params(train=True):
            (w * float("nan")).sum().backward()
    optimizer.step()
    assert optimizer.skipped_steps == 1 and w.tolist() == [1.0, 1.0, 1.0]


def test_offloaded_parameters_are_refused():
    with pytest.raises(ValueError, match="offloaded"):
        IVON([nn.Parameter(torch.ones(3, device="meta"))], lr=0.1, ess=10.0)


def one_linear():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 1)


def test_a_step_that_grad_scaler_skips_or_a_batch_left_out_is_no_end_of_the_loop():
    """In ivon-opt's order, zero_grad() within the context: the draw stays, and the gradients of the next pass count."""
    model, x = one_linear(), 10 * torch.ones(4, 3)
    optimizer = IVON(model.parameters(), lr=0.1, ess=100.0, seed=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    for _ in range(40):
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            scaler.scale(model(x).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
    taken = {optimizer.state[p]["step"] for p in model.parameters()}
    assert taken.pop() > 5 and not taken
    before = [p.detach().clone() for p in model.parameters()]
    for left_out in (True, False):
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            if left_out:
                continue
            model(x).square().mean().backward()
    optimizer.step()
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before))
    with pytest.raises(RuntimeError, match="would lose the first gradients"):
        for _ in range(2):
            with optimizer.sampled_params(train=True):
                optimizer.zero_grad()
                model(x).square().mean().backward()


def test_after_an_exception_the_next_context_has_a_draw_of_its_own():
    model = one_linear()
    optimizer, draws = IVON(model.parameters(), lr=0.1, ess=1.0, seed=0), []
    for fails in (True, False):
        with contextlib.suppress(MemoryError), optimizer.sampled_params(train=True):
            draws.append(model.weight.detach().clone())
            if fails:
                raise MemoryError
            optimizer.zero_grad()
            model(torch.ones(1, 3)).sum().backward()
    assert not torch.equal(*draws)
    optimizer.step()


def test_a_step_of_several_draws_can_be_left_out():
    model = one_linear()
    optimizer, before = IVON(model.parameters(), lr=0.1, ess=10.0, mc_samples=2, seed=0), model_copy(model)
    for left_out in (True, False):
        for _ in range(2):
            with optimizer.sampled_params(train=True):
                model(torch.ones(1, 3)).square().sum().backward()
        if left_out:
            optimizer.zero_grad()
            assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before))
    optimizer.step()
    assert {optimizer.state[p]["step"] for p in model.parameters()} == {1}


def model_copy(model):
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("name", ["lr", "ess", "hess_init", "weight_decay"])
@pytest.mark.parametrize("value", [math.inf, "0.1", None, math.nan])
def test_what_is_no_finite_number_is_no_setting(name, value):
    with pytest.raises(ValueError, match=f"{name} is .*; expected a number"):
        IVON(one_linear().parameters(), **{"lr": 0.1, "ess": 10.0, name: value})


def test_at_least_one_step_may_be_skipped():
    with pytest.raises(ValueError, match="max_skipped is 0; expected a whole number of at least 1"):
        IVON(one_linear().parameters(), lr=0.1, ess=10.0, max_skipped=0)


def test_noise_goes_on_where_a_gpu_has_another_number_and_begins_anew_on_a_device_of_another_kind():
    w = torch.nn.Parameter(torch.zeros(6))
    one, other = (IVON([w], lr=0.0, ess=10.0, seed=5) for _ in range(2))

    def draw(optimizer):
        with optimizer.sampled_params(train=True):
            drawn = w.detach().clone()
        optimizer.zero_grad()
        return drawn

    first = [draw(one), draw(one)]
    state = one.state_dict()
    streams = state["ivon"]["noise"]["generators"]
    assert all(re.fullmatch(r"cpu:train:[01]", key) for key in streams)  # of the first device of its kind, no number
    state["ivon"]["noise"]["generators"] = {key.replace("cpu", "cuda"): s for key, s in streams.items()}
    other.load_state_dict(state)
    new = [draw(other), draw(other)]
    assert not any(torch.equal(a, b) for a in first for b in new)
    assert set(other.state_dict()["ivon"]["noise"]["generators"]) >= {"cuda:train:0", "cpu:train:0"}  # nothing is lost


def test_shards_are_refused():
    w = torch.nn.Parameter(torch.zeros(3))
    w._fsdp_flattened = True  # so FSDP marks what is left of a parameter with use_orig_params=True
    with pytest.raises(ValueError, match="is sharded"):
        IVON([w], lr=0.1, ess=10.0)


def test_training_goes_on_after_the_variance_was_read_in_inference_mode():
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = IVON([w], lr=0.1, ess=10.0)
    with torch.inference_mode():
        assert optimizer.variance(w).shape == w.shape
    with optimizer.sampled_params(train=True):
        w.square().sum().backward()
    optimizer.step()
