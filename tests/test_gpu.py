"""What must hold on an accelerator: everything is what the CPU gives.

    python -m pytest -m gpu tests/test_gpu.py

Where there is no CUDA device, each test compares the CPU with itself, on the code path that accelerators take, so that
at least the tests are known to run.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import flat
from torch import nn

from ivon_lora_lite import (
    IVON,
    GaussianPosterior,
    answer_logits,
    collate,
    finetune,
    linearized,
    lora_parameters,
    predict,
)
from ivon_lora_lite.ivon.draws import NoiseStreams
from ivon_lora_lite.ivon.finite import FiniteGuard, not_finite

CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
)
SETTINGS = {"lr": 0.05, "ess": 50.0, "hess_init": 0.5, "beta2": 0.99, "clip_radius": 0.5, "seed": 0}


@pytest.fixture(params=["cpu", CUDA])
def device(request, monkeypatch):
    """A device; on the CPU, the answer to "is the gradient finite?" stays deferred as it does on an accelerator."""
    if request.param == "cpu":

        def check(self, grads, states):
            self._read(wait=False)
            self.defer([not_finite([g]) for g in grads], states)
            return True

        monkeypatch.setattr(FiniteGuard, "check", check)
    else:
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    return request.param


@pytest.fixture
def same_noise(monkeypatch):
    """Every device gets the numbers that the CPU's generator makes."""

    def fill(self, noise, purpose):
        generator = self._generator(torch.device("cpu"), f"{purpose} for {len(noise)} numbers", 0)
        noise.copy_(torch.randn(noise.shape, generator=generator).to(noise))

    monkeypatch.setattr(NoiseStreams, "fill", fill)


def trained(devices, steps=60, dtype=torch.float32, spoiled=(), **options):
    """Mean and Hessian after some steps with gradients that a CPU computed, so that only IVON differs."""
    generator = torch.Generator().manual_seed(0)
    shapes, targets = [(8, 32), (32, 8), (5,)], []
    params = []
    for k, shape in enumerate(shapes):
        start, target = (torch.randn(shape, generator=generator) for _ in range(2))
        params.append(nn.Parameter(start.to(devices[k % len(devices)], dtype)))
        targets.append(target)
    optimizer = IVON(params, **(SETTINGS | options))
    for step in range(steps):
        for _ in range(optimizer.mc_samples):
            with optimizer.sampled_params(train=True):
                for p, target in zip(params, targets):
                    gradient = (p.detach().cpu().float() - target) * (1 + target.abs())
                    p.grad = (gradient * (math.inf if step in spoiled else 1)).to(p)
        optimizer.step()
        optimizer.zero_grad()
    means = flat([optimizer.mean(p).float().cpu() for p in params])
    return optimizer, means, flat([optimizer.variance(p).cpu() for p in params])


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("approx", ["price", "gradsq"])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_steps_are_the_cpus(device, same_noise, draws, approx, decay):
    options = {"mc_samples": draws, "hess_approx": approx, "weight_decay": decay}
    _, mean, variance = trained([device], **options)
    _, mean_of_cpu, variance_of_cpu = trained(["cpu"], **options)
    torch.testing.assert_close(mean, mean_of_cpu, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(variance, variance_of_cpu, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_parameters_are_the_cpus(device, same_noise, dtype):
    """The mean is kept in fp32 on both."""
    _, mean, variance = trained([device], dtype=dtype)
    _, mean_of_cpu, variance_of_cpu = trained(["cpu"], dtype=dtype)
    torch.testing.assert_close(mean, mean_of_cpu, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(variance, variance_of_cpu, rtol=2e-2, atol=1e-4)


def test_parameters_on_two_devices_are_the_cpus(device, same_noise):
    _, mean, variance = trained(["cpu", device], spoiled={5})
    optimizer, mean_of_cpu, variance_of_cpu = trained(["cpu"], spoiled={5})
    if device == "cpu":
        torch.testing.assert_close(mean, mean_of_cpu, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(variance, variance_of_cpu, rtol=1e-5, atol=1e-5)
    else:  # a device has noise of its own: both runs know the same optimum, and both skipped the same step
        assert mean.isfinite().all() and variance.gt(0).all()
        assert (mean - mean_of_cpu).abs().mean() < 0.05  # two seeds differ by 0.02
    assert optimizer.skipped_steps == 1


def test_steps_with_gradients_that_are_not_finite_change_nothing(device, same_noise):
    optimizer, mean, variance = trained([device], steps=6, spoiled={6, 5})
    before, mean_before, variance_before = trained([device], steps=5)
    assert torch.equal(mean, mean_before) and torch.equal(variance, variance_before)
    assert (optimizer.skipped_steps, before.skipped_steps) == (1, 0)
    assert {state["step"] for state in optimizer.state.values()} == {5}
    with pytest.raises(FloatingPointError, match="3 steps in a row"):
        trained([device], steps=9, spoiled=range(2, 9), max_skipped=3)[0].skipped_steps  # noqa: B018


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_grad_scaler_gives_the_unscaled_update_and_skips_overflows(device, dtype):
    """In fp16 under autocast too, as the paper's preset trains on GPUs without bf16."""
    results = []
    for scaled in (False, True):
        torch.manual_seed(0)
        layer = nn.Linear(16, 16).to(device)
        x, y = torch.randn(32, 16).to(device), torch.randn(32, 16).to(device)
        optimizer = IVON(layer.parameters(), **SETTINGS)
        scaler = torch.amp.GradScaler(device, init_scale=1024.0, enabled=scaled)
        for step in range(6):
            with (
                optimizer.sampled_params(train=True),
                torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32),
            ):
                loss = (layer(x) - y).float().square().mean() * (math.inf if step == 2 else 1.0)
                scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        results.append(flat(list(layer.parameters())).cpu())
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(results[1], results[0], rtol=tolerance, atol=tolerance)


def test_noise_is_normal_belongs_to_the_seed_and_goes_on_after_a_checkpoint(device):
    def displacements(optimizer, p, count):
        out = []
        for _ in range(count):
            with optimizer.sampled_params(train=True):
                out.append(p.detach().cpu().clone())
            optimizer.zero_grad()
        return out

    def fresh(seed):
        p = nn.Parameter(torch.zeros(400, 100, device=device))
        return p, IVON([p], lr=0.0, ess=4.0, hess_init=1.0, weight_decay=0.0, seed=seed)

    p, optimizer = fresh(3)
    first, second = displacements(optimizer, p, 2)
    state = copy.deepcopy(optimizer.state_dict())
    (third,) = displacements(optimizer, p, 1)
    assert first.mean().abs() < 0.01 and abs(float(first.std()) - 0.5) < 0.01  # σ = 1/√(λ h₀)
    assert abs(float((first * second).mean())) < 0.01
    q, again = fresh(3)
    assert torch.equal(displacements(again, q, 1)[0], first)
    q, other = fresh(4)
    assert not torch.equal(displacements(other, q, 1)[0], first)
    other.load_state_dict(state)
    assert torch.equal(displacements(other, q, 1)[0], third)
    with other.sampled_params():  # evaluation has a stream of its own
        evaluated = q.detach().cpu().clone()
    fourth, fourth_again = displacements(optimizer, p, 1)[0], displacements(other, q, 1)[0]
    assert torch.equal(fourth, fourth_again) and not torch.equal(evaluated, fourth)


@pytest.fixture
def models(tiny_model, device):
    """The same model with trained LoRA, on the CPU and on the device; in fp32."""
    on_cpu = tiny_model("llama", trained=True)
    on_device = copy.deepcopy(on_cpu).to(device)
    on_device.tokenizer = on_cpu.tokenizer
    return on_cpu, on_device


@pytest.mark.parametrize("format", ["text", "letter"])
def test_packed_scoring_is_the_cpus(models, questions, format):
    with torch.no_grad():
        expected, found = (answer_logits(m, collate(questions, m.tokenizer, format), format).cpu() for m in models)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("together", [1, 3])
def test_draws_one_by_one_and_stacked_are_the_cpus(models, questions, together):
    """A posterior draws on the CPU, so a seed means the same everywhere."""
    posterior = GaussianPosterior.isotropic(models[0], 0.05)
    options = {"posterior": posterior, "samples": 3, "tau": 0.5, "draws_per_pass": together}
    expected, found = (predict(m, questions, **options).logits for m in models)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_linearised_gaussian_is_the_cpus(models, questions):
    posterior = GaussianPosterior.isotropic(models[0], 0.05)
    expected, found = (linearized(m, questions, posterior=posterior) for m in models)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.covariance, expected.covariance, rtol=1e-3, atol=1e-3)


def test_a_run_trains_and_predicts_there(models, task, device, tmp_path):
    run = finetune(models[1], task, optimizer="ivon", steps=4, ess=1e4, progress=False)
    assert {p.device.type for p in lora_parameters(run.model)} == {device}
    assert all(w.isfinite().all() for w in run.weights.values())
    folder = run.save(tmp_path / "run")
    again = type(run).load(folder, models[0])
    expected, found = (predict(r, task.test, samples=2).logits for r in (run, again))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
