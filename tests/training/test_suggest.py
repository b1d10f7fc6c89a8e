"""suggest: the cost of noise against closed forms, the search for σ, what is left behind, what is refused."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import flat

from ivon_lora_lite import (
    IVON,
    Suggestion,
    answer_logits,
    choose_sigma,
    collate,
    finetune,
    hyperparameters,
    lora_parameters,
    noise_cost,
    predict,
    reset_lora,
    suggest_hyperparameters,
)
from ivon_lora_lite.files import read_json
from ivon_lora_lite.training import COSTS, MOVE, prediction_shift, preset_sigma, usual_target
from ivon_lora_lite.training.cost_of_noise import CLOSE

CURVATURES = torch.tensor([0.5, 2.0, 4.0, 8.0])


def quadratic(curvatures=CURVATURES):
    """½ Σ aᵢθᵢ², whose noise costs ½ σ² Σ aᵢ in expectation wherever θ is."""
    theta = torch.nn.Parameter(torch.linspace(-1, 3, len(curvatures)))
    return theta, lambda: 0.5 * (curvatures * theta**2).sum()


# ---------------------------------------------------------------------------------------------------- noise_cost


def test_cost_on_a_quadratic_is_half_the_trace_times_the_variance():
    theta, loss = quadratic()
    cost, error = noise_cost(loss, [theta], 0.3, draws=4000)
    exact = 0.5 * 0.3**2 * float(CURVATURES.sum())
    # Var of ½σ²Σaε² is ½σ⁴Σa²
    assert error == pytest.approx(math.sqrt(0.5 * 0.3**4 * float((CURVATURES**2).sum()) / 4000), rel=0.1)
    assert abs(cost - exact) < 4 * error


def test_pairs_cancel_the_gradient_exactly():
    theta, loss = quadratic()
    far = torch.nn.Parameter(theta.detach() * 100)  # a gradient a hundred times as large
    near = noise_cost(loss, [theta], 0.1)[0]
    other = noise_cost(lambda: 0.5 * (CURVATURES * far.double() ** 2).sum(), [far], 0.1)[0]
    assert other == pytest.approx(near, rel=1e-2)
    linear = torch.nn.Parameter(torch.ones(5, dtype=torch.float64))
    assert noise_cost(lambda: 1e3 * linear.sum(), [linear], 0.1)[0] == pytest.approx(0, abs=1e-9)


def test_every_sigma_sees_the_same_noise_and_another_seed_other_noise():
    theta, loss = quadratic()
    theta.data = theta.data.double()
    unit = noise_cost(loss, [theta], 1.0, seed=5)[0]
    for sigma in (0.01, 0.1, 3.0):
        assert noise_cost(loss, [theta], sigma, seed=5)[0] == pytest.approx(unit * sigma**2, rel=1e-6)
    assert noise_cost(loss, [theta], 1.0, seed=6)[0] != pytest.approx(unit, rel=1e-3)
    assert noise_cost(loss, [theta], 0.0) == (0.0, 0.0)


def test_the_cost_of_noise_is_that_of_the_noisy_weights_under_an_autocast_too():
    w, x = torch.nn.Parameter(torch.ones(8, 8)), torch.ones(8)
    cost = lambda: noise_cost(lambda: (w @ x).float().square().sum(), [w], 0.1, draws=50)[0]  # noqa: E731
    with torch.autocast("cpu", torch.bfloat16):
        under = cost()
    assert under == pytest.approx(cost(), rel=0.1) and under == pytest.approx(64 * 0.1**2, rel=0.5)


def test_pairs_are_counted_and_one_has_no_error():
    theta, loss = quadratic()
    calls = []
    cost, error = noise_cost(lambda: calls.append(1) or loss(), [theta], 0.1, draws=1)
    assert len(calls) == 3 and cost > 0 and math.isnan(error)
    calls.clear()
    noise_cost(lambda: calls.append(1) or loss(), [theta], 0.1, draws=3)
    assert len(calls) == 7


def test_weights_and_random_numbers_are_restored_even_after_an_error():
    theta, loss = quadratic()
    before, state = theta.detach().clone(), torch.get_rng_state()

    def greedy():
        torch.randn(3)
        assert not torch.is_grad_enabled()
        return loss()

    noise_cost(greedy, [theta], 0.5)
    assert torch.equal(theta, before) and torch.equal(torch.get_rng_state(), state)

    calls = []

    def failing():
        calls.append(theta.detach().clone())
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return loss()

    with pytest.raises(RuntimeError, match="out of memory"):
        noise_cost(failing, [theta], 0.5)
    assert not torch.equal(calls[-1], before) and torch.equal(theta, before)
    assert theta.requires_grad and torch.equal(torch.get_rng_state(), state)


def test_16_bit_weights_get_noise_and_are_restored_exactly():
    theta = torch.nn.Parameter(torch.linspace(-1, 1, 300).bfloat16())
    before = theta.detach().clone()
    cost, error = noise_cost(lambda: 0.5 * (theta.float() ** 2).sum(), [theta], 0.1, draws=50)
    assert theta.dtype == torch.bfloat16 and torch.equal(theta, before)
    assert cost == pytest.approx(0.5 * 0.01 * 300, abs=4 * error + 0.02)


def test_it_works_in_inference_mode():
    theta, loss = quadratic()
    outside = noise_cost(loss, [theta], 0.1)
    with torch.inference_mode():
        assert noise_cost(loss, [theta], 0.1) == outside
    loss().backward()  # the weights are ordinary tensors still


@pytest.mark.parametrize(
    "options, words",
    [
        ({"sigma": -0.1}, "sigma is -0.1"),
        ({"sigma": math.nan}, "sigma is nan"),
        ({"sigma": math.inf}, "sigma is inf"),
        ({"draws": 0}, "draws is 0"),
        ({"params": []}, "no trainable parameters"),
        ({"loss": lambda: float("nan")}, "loss is nan at the weights as they are"),
    ],
)
def test_noise_cost_refuses(options, words):
    theta, loss = quadratic()
    with pytest.raises(ValueError, match=words):
        noise_cost(**{"loss": loss, "params": [theta], "sigma": 0.1, **options})


def test_a_loss_that_overflows_under_noise_is_named_with_its_sigma():
    theta, _ = quadratic()
    with pytest.raises(ValueError, match="loss is inf with noise of σ = 50"):
        noise_cost(lambda: theta.square().sum().exp(), [theta], 50.0)


# ---------------------------------------------------------------------------------------------------- choose_sigma


@pytest.mark.parametrize("target", [1e-4, 0.02, 3.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_sigma_on_a_quadratic_is_the_closed_form(target, scale):
    theta, loss = quadratic(scale * CURVATURES.double())
    theta.data = theta.data.double()
    sigma, cost, error, curve = choose_sigma(loss, [theta], target, within=(1e-6, 1e3), draws=400)
    exact = math.sqrt(2 * target / (scale * float(CURVATURES.sum())))
    # σ ~ √cost: half the relative error of the cost, which is Monte Carlo's and the search's tolerance
    assert abs(sigma / exact - 1) < 0.5 * (4 * error / cost + 1.1 * CLOSE)
    assert cost == pytest.approx(target, rel=CLOSE)
    assert curve == sorted(curve) and (sigma, cost) in curve
    assert [c for _, c in curve] == sorted(c for _, c in curve)


def test_the_search_is_short():
    theta, loss = quadratic()
    for target in (1e-3, 0.02, 0.5):
        assert len(choose_sigma(loss, [theta], target)[3]) <= 12
    quartic = choose_sigma(lambda: (theta**4).sum(), [theta], 2.0)
    assert len(quartic[3]) <= 12 and quartic[1] == pytest.approx(2.0, rel=CLOSE)


def test_a_negative_cost_below_the_target_is_no_obstacle():
    """Where the loss is concave at m and convex further out, little noise lowers it."""
    theta = torch.nn.Parameter(torch.zeros(50, dtype=torch.float64))
    loss = lambda: (theta**4 - 0.01 * theta**2).sum()  # noqa: E731
    sigma, cost, _, curve = choose_sigma(loss, [theta], 0.01, start=0.01)
    assert curve[0][1] < 0 and cost == pytest.approx(0.01, rel=CLOSE) and sigma > 0.05


def test_a_step_in_the_loss_ends_the_search():
    theta = torch.nn.Parameter(torch.zeros(3))
    sigma, cost, _, _ = choose_sigma(lambda: (theta.abs().max() > 0.5).float(), [theta], 0.4, draws=1)
    assert cost in (0.0, 1.0) and 0.01 < sigma < 1


def test_a_bound_on_sigma_is_kept_and_found_exactly():
    theta, loss = quadratic()
    free = choose_sigma(loss, [theta], 0.1)
    for bound in (0.005, 0.02, 0.03, 0.5 * free[0]):  # below the start of the search, on it, and above
        sigma, cost, _, curve = choose_sigma(loss, [theta], 0.1, at_most=bound)
        assert sigma == bound and cost < 0.1 and max(s for s, _ in curve) == bound
    for bound in (1.01 * free[0], 3.0):  # no obstacle, though the search may touch it
        sigma, cost, _, curve = choose_sigma(loss, [theta], 0.1, at_most=bound)
        assert cost == pytest.approx(0.1, rel=CLOSE) and max(s for s, _ in curve) <= bound


@pytest.mark.parametrize(
    "options, words",
    [
        ({"at_most": 0.0}, "at_most is 0.0"),
        ({"at_most": 11.0}, "at_most is 11.0"),
        ({"target": 0.0}, "target is 0.0"),
        ({"target": -1.0}, "target is -1.0"),
        ({"target": math.nan}, "target is nan"),
        ({"target": 1e9, "within": (1e-3, 1.0)}, r"No σ from 0\.03 to 0\.96 costs the target of 1e\+09: .* to 5\.01"),
        ({"target": 1e-9, "within": (1e-2, 1.0)}, r"No σ from 0\.015 to 0\.03 costs the target of 1e-09"),
        ({"start": 0.0}, "start is 0.0"),
        ({"within": (1.0, 2.0)}, r"within is \(1.0, 2.0\)"),
        ({"params": []}, "no trainable parameters"),
        ({"loss": lambda: math.nan}, "loss is nan at the weights"),
        ({"loss": lambda: math.inf}, "loss is inf at the weights"),
        ({"loss": lambda: torch.rand(())}, "switch dropout off"),
    ],
)
def test_choose_sigma_refuses(options, words):
    theta, loss = quadratic()
    before = theta.detach().clone()
    with pytest.raises(ValueError, match=words):
        choose_sigma(**{"loss": loss, "params": [theta], "target": 0.1, **options})
    assert torch.equal(theta, before)


# ---------------------------------------------------------------------------------------------------- on a model


OPTIONS = {"target": 0.01, "sigma_max": math.inf, "questions": 6, "draws": 3, "seed": 3}


@pytest.mark.parametrize("format", ["text", "letter"])
def test_shift_is_the_divergence_of_the_predictions(tiny_model, questions, format):
    """Questions have two to five choices, so some logits are −∞."""
    model = tiny_model("llama", trained=True)
    before = predict(model, questions, format=format).logits[0].log_softmax(-1)
    shift = prediction_shift(model, questions, format, batch_size=3)
    with torch.no_grad():
        assert float(shift()) == pytest.approx(0, abs=1e-6)
        for p in lora_parameters(model):
            p.mul_(1.3)
        after = predict(model, questions, format=format).logits[0].log_softmax(-1)
        by_hand = torch.where(before > -torch.inf, before.exp() * (before - after), 0.0).nansum(-1).mean()
        assert float(by_hand) > 1e-3
        assert float(shift()) == pytest.approx(float(by_hand), rel=1e-3)


def test_cost_of_small_noise_is_half_the_trace_of_the_fisher_matrix(tiny_model, questions):
    """E KL[p_m ‖ p_{m+σε}] → ½ σ² tr F,  F = Σ_c p_c ∇log p_c ∇log p_cᵀ."""
    model, some = tiny_model("llama", trained=True).double(), questions[:3]
    trace = 0.0
    for question in some:
        log_p = answer_logits(model, collate([question], model.tokenizer, "text"))[0].log_softmax(-1)
        for value in log_p:
            grads = torch.autograd.grad(value, lora_parameters(model), retain_graph=True)
            trace += float(value.detach().exp() * sum(g.square().sum() for g in grads)) / len(some)
    cost, error = noise_cost(prediction_shift(model, some), lora_parameters(model), 3e-3, draws=60)
    assert error < 0.2 * cost
    assert abs(cost - 0.5 * 3e-3**2 * trace) < 4 * error


def test_end_to_end(tiny_model, task):
    model = tiny_model("llama")
    found = suggest_hyperparameters(model, task, hess_init=2e-3, weight_decay=1e-3, **OPTIONS)
    assert isinstance(found, Suggestion)
    assert found.cost == pytest.approx(found.target, rel=CLOSE) and found.error > 0 and found.seconds > 0
    costs = [cost for _, cost in found.curve]
    assert costs == sorted(costs) and (found.sigma, found.cost) in found.curve
    assert found.sigma == pytest.approx(1 / math.sqrt(found.ess * (2e-3 + 1e-3)))
    assert f"{found.sigma:.3g}" in str(found)
    assert found.beta2 == 1 - MOVE / 200  # the steps of finetune's default
    # IVON starts with this σ, and finetune takes the settings as they are
    optimizer = IVON(lora_parameters(model), lr=0.1, **found.settings())
    assert optimizer.diagnostics()["sigma_mean"] == pytest.approx(found.sigma, rel=1e-4)
    run = finetune(model, task, steps=2, batch_size=2, progress=False, **found.settings())
    used = run.config["settings"]
    assert (used["ess"], used["weight_decay"], used["beta2"]) == (found.ess, 1e-3, found.beta2)


def test_beta2_fits_the_length_of_the_run(tiny_model, task):
    """(1 − 0.32/n)ⁿ ≈ e^−0.32 whatever n: h keeps three quarters of h₀."""
    for steps in (50, 5000):
        beta2 = suggest_hyperparameters(tiny_model("llama"), task, steps=steps, **OPTIONS).beta2
        assert beta2**steps == pytest.approx(math.exp(-MOVE), rel=2e-3)


def test_no_more_noise_than_the_bound(tiny_model, task):
    model = tiny_model("llama")
    free = suggest_hyperparameters(model, task, **OPTIONS)
    bound = free.sigma / 2
    bounded = suggest_hyperparameters(model, task, **{**OPTIONS, "sigma_max": bound})
    assert bounded.sigma == bound and bounded.cost < bounded.target and bounded.ess > free.ess


def test_noise_and_its_cost_grow_with_the_length_of_the_run(tiny_model, task):
    for sigma, steps in zip(COSTS, (200, 800)):
        preset = hyperparameters("ivon", "small", "everyday", steps)  # where the default bound is from
        assert (preset["ess"] * preset["hess_init"]) ** -0.5 == pytest.approx(sigma, rel=3e-3)
        assert preset_sigma(steps) == pytest.approx(sigma, rel=3e-3)
        assert usual_target(steps) == pytest.approx(COSTS[sigma], rel=0.02)
    assert usual_target(200) < usual_target(350) < usual_target(800)
    usual = {name: value for name, value in OPTIONS.items() if name not in ("target", "sigma_max")}
    for steps in (200, 800):
        found = suggest_hyperparameters(tiny_model("llama"), task, steps=steps, **usual)
        assert found.target == usual_target(steps) and found.sigma <= preset_sigma(steps)


def test_a_seed_fixes_it_and_the_models_weights_do_not_matter(tiny_model, task):
    model = tiny_model("llama")
    first = suggest_hyperparameters(model, task, **OPTIONS)
    with torch.no_grad():
        for p in lora_parameters(model):
            p.normal_()
    random.seed(5)
    torch.manual_seed(5)
    again = suggest_hyperparameters(model, task.train, **OPTIONS)
    assert (again.sigma, again.curve) == (first.sigma, first.curve)
    assert suggest_hyperparameters(model, task, **{**OPTIONS, "seed": 4}).sigma != first.sigma


def test_it_measures_at_the_start_of_finetune_or_after_a_pilot(tiny_model, task):
    model = tiny_model("llama")
    at_start = suggest_hyperparameters(model, task, **OPTIONS)
    chosen = random.Random(3).sample(task.train, 6)
    reset_lora(model, 3)
    by_hand = noise_cost(prediction_shift(model, chosen), lora_parameters(model), at_start.sigma, 3, seed=3)
    assert by_hand == pytest.approx((at_start.cost, at_start.error), rel=1e-4)
    piloted = suggest_hyperparameters(model, task, pilot_steps=3, **OPTIONS)
    assert piloted.sigma != at_start.sigma and piloted.cost == pytest.approx(0.01, rel=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("pilot_steps", [0, 2])
def test_the_model_and_all_random_numbers_are_left_alone(tiny_model, task, pilot_steps):
    model = tiny_model("llama", trained=True).train()
    frozen = next(m for m in model.modules() if not list(m.children())).eval()  # modes may differ within a model
    for p in lora_parameters(model):
        p.grad = torch.ones_like(p)
    before, grads = flat(lora_parameters(model)), [p.grad for p in lora_parameters(model)]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    suggest_hyperparameters(model, task, pilot_steps=pilot_steps, **OPTIONS)
    assert torch.equal(flat(lora_parameters(model)), before) and model.training and not frozen.training
    assert all(p.grad is g and bool((g == 1).all()) for p, g in zip(lora_parameters(model), grads))
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    with pytest.raises(ValueError, match="No σ"):
        suggest_hyperparameters(model, task, pilot_steps=pilot_steps, **{**OPTIONS, "target": 1e9})
    assert torch.equal(flat(lora_parameters(model)), before) and model.training and not frozen.training
    assert torch.equal(torch.get_rng_state(), states[0])


def test_more_directions_for_noise_need_less_of_it(tiny_model, task):
    """Freezing A leaves fewer noisy weights, so each may be noisier."""
    model = tiny_model("llama")
    both = suggest_hyperparameters(model, task, **OPTIONS).sigma
    for name, p in model.named_parameters():
        if "lora_A" in name:
            p.requires_grad_(False)
    assert suggest_hyperparameters(model, task, **OPTIONS).sigma > both


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"target": 0.0}, "target is 0.0"),
        ({"questions": 0}, "questions is 0"),
        ({"draws": 0}, "draws is 0"),
        ({"pilot_steps": -1}, "pilot_steps is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"sigma_max": 0.0}, "sigma_max is 0.0"),
        ({"hess_init": 0.0}, "hess_init is 0.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"train_size": 0}, "no training questions"),
        ({"format": "essay"}, "no answer format 'essay'"),
    ],
)
def test_wrong_options_are_named(tiny_model, task, wrong, words):
    with pytest.raises(ValueError, match=words):
        suggest_hyperparameters(tiny_model("llama"), task, **{**OPTIONS, **wrong})


def test_a_model_without_trainable_weights_or_with_broken_ones_is_refused(tiny_model, task):
    with pytest.raises(ValueError, match="no trainable parameters"):
        suggest_hyperparameters(tiny_model("llama", lora=False), task, **OPTIONS)
    broken = tiny_model("llama")
    with torch.no_grad():
        next(p for p in broken.parameters() if not p.requires_grad).fill_(torch.nan)
    with pytest.raises(ValueError, match="loss is nan at the weights as they are"):
        suggest_hyperparameters(broken, task, **OPTIONS)


RECORDED = Path(__file__).parents[2] / "data" / "runs" / "suggest"


def test_the_default_targets_are_the_recorded_costs_of_the_tuned_preset():
    """benchmarks/suggest.py measured them, three seeds each."""
    records = [read_json(file)["costs"] for file in sorted(RECORDED.glob("today-seed*.json"))]
    assert len(records) == 3
    for k, (sigma, cost) in enumerate(COSTS.items()):
        assert [row[k]["sigma"] for row in records] == [sigma] * 3
        assert cost == float(f"{sum(row[k]['cost'] for row in records) / 3:.2g}")


def test_what_is_said_of_the_recorded_trials_is_what_they_say():
    """Unbounded λ of equal cost: worse on ARC-Easy. An h that may move: better on all tasks. Shapes: not told apart."""

    def differences(part, setting, base="borrowed"):
        records = [
            [read_json(file) for file in sorted(RECORDED.glob(f"{part}-{name}-seed*.json"))] for name in (setting, base)
        ]
        nll = [[r["scores"]["draws"]["nll"] for r in of] for of in records]
        assert len(nll[0]) == len(nll[1]) == 3
        return [a - b for a, b in zip(*nll)]

    assert min(differences("transfer", "equal-cost")) > 0
    for part, base in (("transfer", "borrowed"), ("task", "borrowed"), ("isotropic", "fixed")):
        assert max(differences(part, "fast", base)) < 0
    for part in ("rank", "shape"):
        assert all(abs(d) < 0.03 for setting in ("fast", "suggested") for d in differences(part, setting))
    for task in ("arc_easy", "openbookqa"):  # there `fast` stands for the suggestion
        found = read_json(RECORDED / f"suggested-{task}-r8.json")
        assert found["sigma"] == 0.035 and found["cost"] < found["target"] and found["beta2"] == 0.999
    for lora in ("r32", "all"):
        assert read_json(RECORDED / f"suggested-everyday-{lora}.json")["sigma"] < 0.8 * 0.035
