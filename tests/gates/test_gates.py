"""Gates by themselves: the quantiser's closed forms, gradients, expected costs by hand; no language model."""

import math

import pytest
import torch
from torch import nn

from ivon_lora_lite.gates import BayesianBits, RankGate, quantize
from ivon_lora_lite.gates.hard_concrete import BETA, GAMMA, THRESHOLD, ZETA, hard_concrete, is_open, probability_open
from ivon_lora_lite.gates.quantizer import BITS, step_sizes

A = torch.tensor(1.7, dtype=torch.float64)  # a half range


def points(count=4001, spread=1.0):
    return torch.linspace(-spread * float(A), spread * float(A), count, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------ the quantiser


def test_steps_are_those_of_a_uniform_grid_of_so_many_bits():
    for bits, step in zip(BITS, step_sizes(A)):
        assert float(step) == pytest.approx(2 * float(A) / (2**bits - 1), rel=1e-12)


@pytest.mark.parametrize("bits", BITS)
def test_up_to_b_bits_it_is_rounding_to_the_b_bit_grid(bits):
    step, x = 2 * A / (2**bits - 1), points()
    x = x[((x / step).frac().abs() - 0.5).abs() > 1e-6]  # no ties
    expected = step * (torch.clamp(x, -A * (1 - 1e-7), A * (1 - 1e-7)) / step).round()
    torch.testing.assert_close(quantize(x, A, bits=bits), expected, rtol=0, atol=1e-12)


def test_every_level_divides_the_largest_error_as_the_steps_say():
    x, errors = points(200_001, 0.999), []
    for bits in BITS[:3]:
        step = 2 * float(A) / (2**bits - 1)
        errors.append(float((quantize(x, A, bits=bits) - x).abs().max()))
        assert errors[-1] <= step / 2 * (1 + 1e-9) and errors[-1] > 0.98 * step / 2
    assert errors[0] / errors[1] == pytest.approx(5, rel=0.02)
    assert errors[1] / errors[2] == pytest.approx(17, rel=0.02)


def test_the_number_of_values_is_that_of_a_symmetric_grid():
    assert len(quantize(points(), A, bits=2).unique()) == 3
    assert len(quantize(points(), A, bits=4).round(decimals=9).unique()) == 15


def test_all_gates_on_is_the_identity_to_a_millionth_of_the_range():
    x = points(100_001).float()
    moved = (quantize(x, A.float(), torch.ones(4)) - x).abs().max()
    assert moved <= 1e-6 * 2 * float(A)
    assert moved > 0 or bool((x == 0).all())  # fp32 cannot hold 32 bits: it is near, not exact


def test_outside_the_range_it_clips_to_the_last_grid_point():
    for bits, last in ((2, 2 / 3), (4, 14 / 15)):
        out = quantize(torch.tensor([-9.0, 9.0, float(A)], dtype=torch.float64), A, bits=bits)
        torch.testing.assert_close(out, last * A * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", BITS)
def test_16_bit_numbers_are_on_the_grid_of_fp32_rounded_once(dtype, bits):
    x = points().to(dtype)
    half_range, gates = x.abs().max().float(), torch.tensor([1.0, 0.6, 0.3, 0.0])
    for options in ({"bits": bits}, {"bits": bits, "gates": gates[: BITS.index(bits)]}):
        out = quantize(x, half_range, **options)
        assert out.dtype == dtype and torch.equal(out, quantize(x.float(), half_range, **options).to(dtype))


def test_a_closed_gate_closes_all_after_it_and_an_open_prefix_is_a_width():
    x = points(101)
    for opened, bits in enumerate(BITS):
        gates = torch.zeros(4, dtype=torch.float64)
        gates[:opened] = 1
        torch.testing.assert_close(quantize(x, A, gates), quantize(x, A, bits=bits), rtol=0, atol=1e-15)
        gates[opened + 1 :] = 1  # beyond the first closed one: they do not matter
        torch.testing.assert_close(quantize(x, A, gates), quantize(x, A, bits=bits), rtol=0, atol=1e-15)


def test_a_half_open_gate_goes_half_the_way():
    x = points(101)
    gates = torch.tensor([0.5, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(quantize(x, A, gates), (quantize(x, A, bits=2) + quantize(x, A, bits=4)) / 2)


def test_zeros_with_no_range_stay_zeros():
    x = torch.zeros(3, requires_grad=True)
    out = quantize(x, torch.zeros(()))
    assert torch.equal(out, torch.zeros(3))
    out.sum().backward()
    assert torch.equal(x.grad, torch.ones(3))  # so a matrix that starts at zero can leave it


def test_a_width_that_is_no_level_is_refused():
    with pytest.raises(ValueError, match="bits is 3"):
        quantize(points(3), A, bits=3)


# --------------------------------------------------------------------------------------------------------- gradients


def surrogate(x, a, gates, at_x, at_a):
    """The quantiser with the rounding errors, in steps, held at those of (at_x, at_a): what straight-through means."""
    clip = lambda v, r: torch.clamp(v, -r * (1 - 1e-7), r * (1 - 1e-7))  # noqa: E731
    rest, was, parts = clip(x, a), clip(at_x, at_a), []
    for step, was_step in zip(step_sizes(a), step_sizes(at_a)):
        error = (was / was_step).round() - was / was_step
        parts.append(step * (rest / step + error))
        rest, was = rest - parts[-1], was - was_step * (was / was_step).round()
    total = parts[-1]
    for part, z in zip(parts[-2::-1], gates.flip(0)):
        total = part + z * total
    return total


def test_gradients_of_weight_range_and_gates_against_finite_differences():
    # inside, near an edge, and outside of [−a, a]; away from ties
    x = torch.tensor([-2.1, -1.31, -0.2, 0.37, 0.9, 1.63, 1.9], dtype=torch.float64)
    gates = torch.tensor([0.9, 0.6, 0.3, 0.2], dtype=torch.float64)
    weights = torch.tensor([1.0, -2.0, 0.5, 1.5, 3.0, -1.0, 2.0], dtype=torch.float64)
    inputs = [t.clone().requires_grad_() for t in (x, A, gates)]
    (weights * quantize(*inputs)).sum().backward()
    assert torch.allclose(surrogate(x, A, gates, x, A), quantize(x, A, gates), atol=1e-14)
    step = 1e-6

    def loss(x_, a_, g_):
        return float((weights * surrogate(x_, a_, g_, x, A)).sum())

    for i, given in enumerate(inputs):
        for index in range(given.numel()):
            sides = []
            for sign in (1, -1):
                moved = [t.detach().clone() for t in inputs]
                moved[i].view(-1)[index] += sign * step
                sides.append(loss(*moved))
            assert float(given.grad.view(-1)[index]) == pytest.approx((sides[0] - sides[1]) / (2 * step), abs=1e-7)


def test_away_from_rounding_the_library_itself_has_the_gates_gradients():
    """In the gates the quantiser is smooth, so its own finite differences must agree."""
    x, phi = points(11), torch.tensor([0.3, -0.2, 0.1, 0.4], dtype=torch.float64, requires_grad=True)
    noise = torch.tensor([0.4, 0.6, 0.5, 0.45], dtype=torch.float64)
    loss = lambda p: (quantize(x, A, hard_concrete(p, noise)) ** 3).sum()  # noqa: E731
    loss(phi).backward()
    for i in range(4):
        d = torch.zeros(4, dtype=torch.float64)
        d[i] = 1e-5
        numeric = float(loss(phi.detach() + d) - loss(phi.detach() - d)) / 2e-5
        assert float(phi.grad[i]) == pytest.approx(numeric, rel=1e-4, abs=1e-9)


def test_straight_through_means_that_the_weight_gets_the_whole_gradient():
    x = points(51, 0.95).requires_grad_()
    quantize(x, A, bits=2).sum().backward()
    assert torch.allclose(x.grad, torch.ones_like(x))


# ------------------------------------------------------------------------------------------------------------- gates


def test_hard_concrete_is_zero_and_one_as_often_as_its_formulas_say():
    u = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for phi in (-1.0, 0.0, 2.0):
        z = hard_concrete(torch.tensor(phi, dtype=torch.float64).expand_as(u), u)
        opened = float(probability_open(torch.tensor(phi)))
        assert float((z > 0).double().mean()) == pytest.approx(opened, abs=4e-3)
        one = 1 / (1 + math.exp(-(phi - BETA * math.log((1 - GAMMA) / (ZETA - 1)))))  # by hand
        assert float((z == 1).double().mean()) == pytest.approx(one, abs=4e-3)


def test_open_at_test_time_means_that_closed_has_less_than_the_threshold():
    phi = torch.linspace(-4, 4, 801)
    assert torch.equal(is_open(phi), 1 - probability_open(phi) < THRESHOLD)
    assert not is_open(torch.tensor(-1.0)) and is_open(torch.tensor(-0.9))


def test_noise_at_the_ends_gives_finite_gradients():
    phi = torch.zeros(2, requires_grad=True)
    hard_concrete(phi, torch.tensor([0.0, 1 - 2**-24])).sum().backward()
    assert torch.isfinite(phi.grad).all()


def set_open(phi: nn.Parameter, probabilities) -> None:
    """Choose φ so that the gates are open with these probabilities."""
    q = torch.as_tensor(probabilities)
    with torch.no_grad():
        phi.copy_(torch.logit(q) + BETA * math.log(-GAMMA / ZETA))


def test_expected_bits_and_rank_by_hand():
    quantizer, rank = BayesianBits(torch.ones(2, 2), start=0.0), RankGate(3, start=0.0)
    set_open(quantizer.phi, [0.9, 0.5, 0.2, 0.1])
    assert quantizer.expected_bits().item() == pytest.approx(2 + 2 * 0.9 + 4 * 0.45 + 8 * 0.09 + 16 * 0.009)
    set_open(rank.phi, [0.8, 0.5, 0.25])
    assert rank.expected_rank().item() == pytest.approx(0.8 + 0.4 + 0.1)


@pytest.mark.parametrize(("phi", "bits"), [((9, 9, 9, 9), 32), ((9, 9, -9, 9), 8), ((-9, 9, 9, 9), 2)])
def test_the_decided_width_ends_at_the_first_closed_gate(phi, bits):
    weight = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    quantizer = BayesianBits(weight, start=0.0)
    with torch.no_grad():
        quantizer.phi.copy_(torch.tensor(phi, dtype=torch.float32))
    assert quantizer.bits() == bits
    assert torch.equal(quantizer(weight, soft=False), quantize(weight, weight.abs().max(), bits=bits))
    assert torch.allclose(quantizer(weight, soft=True), quantizer(weight, soft=False), atol=1e-6)  # φ is far from 0


@pytest.mark.parametrize(("phi", "rank"), [((9, 9, 9), 3), ((9, -9, 9), 1), ((-9, 9, 9), 0)])
def test_rank_gates_are_slicing(phi, rank):
    a, b = torch.randn(3, 5), torch.randn(4, 3)
    gate = RankGate(3, start=0.0)
    with torch.no_grad():
        gate.phi.copy_(torch.tensor(phi, dtype=torch.float32))
    assert gate.rank() == rank
    for soft in (False, True):
        torch.testing.assert_close(b @ gate(a, soft), b[:, :rank] @ a[:rank])


def test_the_range_follows_the_weights_up_at_once_and_down_slowly():
    quantizer = BayesianBits(torch.zeros(2, 2), start=0.0)
    quantizer.observe(torch.tensor([[0.5, -2.0], [0.0, 1.0]]))
    assert quantizer.half_range.item() == 2.0
    quantizer.observe(torch.tensor([0.1]))  # several forward passes in one step
    assert quantizer.half_range.item() == 2.0
    quantizer.decay()
    quantizer.observe(torch.tensor([0.1]))
    assert quantizer.half_range.item() == pytest.approx(1.98)
    with torch.no_grad():
        quantizer.log_scale.fill_(math.log(0.5))
    assert quantizer.half_range.item() == pytest.approx(0.99)
