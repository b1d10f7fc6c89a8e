"""AdaLoRA's directions by |m|/σ: which are taken away, against the formula written out."""

import peft
import pytest
import torch

from ivon_lora_lite import IVON, trainable
from ivon_lora_lite.applications import rank_by_signal
from ivon_lora_lite.posterior import check_saveable


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(6, 5), torch.nn.Linear(5, 4)

    def forward(self, x):
        return self.second(self.first(x).relu())


def adalora():
    torch.manual_seed(0)
    config = peft.AdaLoraConfig(
        init_r=4, target_r=2, target_modules=["first", "second"], total_step=12, tinit=1, tfinal=2, deltaT=1
    )
    return peft.get_peft_model(Two(), config)


@pytest.fixture
def model():
    return adalora()


def train(model, steps, signal, dtype=torch.float32):
    params = [p for name, p in model.named_parameters() if p.requires_grad]
    optimizer = IVON(params, lr=0.5, ess=100.0, hess_init=1.0, beta2=0.9, seed=1)
    if signal:
        rank_by_signal(model, optimizer)
    generator = torch.Generator().manual_seed(2)
    for step in range(1, steps + 1):
        x = torch.randn(16, 6, generator=generator)
        with optimizer.sampled_params(train=True):
            (model(x.to(dtype)) - x[:, :4].sin()).square().mean().backward()
        optimizer.step()
        if step == steps:
            before = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    return optimizer, before


def kept(model):
    parts = {name: p for name, p in model.named_parameters() if "lora_E" in name}
    return {name.rpartition(".lora_E")[0]: (p != 0).flatten().tolist() for name, p in parts.items()}


def test_the_directions_that_stay_have_the_largest_signal_to_noise(model):
    optimizer, before = train(model, 10, signal=True)  # the budget is at its end: 4 of 8 directions
    ratio = {
        name: before[name].abs() / optimizer.variance(p).sqrt()
        for name, p in model.named_parameters()
        if name in before
    }
    scores = {}
    for name in ratio:
        if "lora_E" in name:
            a, b = ratio[name.replace("lora_E", "lora_A")], ratio[name.replace("lora_E", "lora_B")]
            scores[name.rpartition(".lora_E")[0]] = ratio[name].flatten() + a.mean(1) + b.mean(0)
    largest = torch.cat(list(scores.values())).sort(descending=True).values[3]
    assert kept(model) == {name: (value >= largest).tolist() for name, value in scores.items()}
    assert sum(sum(row) for row in kept(model).values()) == 4


def test_its_own_score_would_keep_others(model):
    train(model, 10, signal=True)
    by_signal = kept(model)
    again = adalora()
    train(again, 10, signal=False)
    assert kept(again) != by_signal and sum(sum(row) for row in kept(again).values()) == 4


def test_a_model_without_adalora_is_refused():
    model = peft.get_peft_model(Two(), peft.LoraConfig(target_modules=["first"]))
    optimizer = IVON([p for p in model.parameters() if p.requires_grad], lr=0.1, ess=10.0)
    with pytest.raises(ValueError, match="no AdaLoRA"):
        rank_by_signal(model, optimizer)


def test_directions_that_were_taken_away_are_zero_in_the_mean_of_16_bit_weights_too(model):
    model.to(torch.bfloat16)
    optimizer, _ = train(model, 10, signal=True, dtype=torch.bfloat16)
    values = {name: p for name, p in model.named_parameters() if "lora_E" in name}
    assert sum(int((p == 0).sum()) for p in values.values()) == 4
    for p in values.values():
        assert torch.equal(optimizer.mean(p) == 0, p == 0)


def test_names_stay_while_directions_are_taken_away(model):
    names = list(trainable(model))
    assert "base_model.model.first.lora_E" in names
    train(model, 10, signal=False)
    assert model.peft_config["default"].rank_pattern
    assert list(trainable(model)) == names


def test_a_model_with_adalora_is_not_finetuned(model):
    with pytest.raises(ValueError, match="kind ADALORA"):
        check_saveable(model)
