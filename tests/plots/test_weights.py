"""The learned σ by layer and factor."""

import pytest
import torch

from ivon_lora_lite import GaussianPosterior
from ivon_lora_lite.plots import sigma_by_tensor, sigma_figure


def names():
    return [
        f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_{factor}.weight"
        for layer in (0, 10, 2)
        for module in ("q_proj", "v_proj")
        for factor in "AB"
    ]


def test_quantiles_by_hand():
    variance = {"w": torch.arange(11.0).square() + 1e-12}
    found = sigma_by_tensor(GaussianPosterior({"w": torch.zeros(11)}, variance))
    assert found == {"w": {"p10": pytest.approx(1.0), "p50": pytest.approx(5.0), "p90": pytest.approx(9.0)}}


def test_a_line_for_each_factor_in_the_order_of_layers():
    sigmas = {name: {"p10": k + 0.1, "p50": k + 0.5, "p90": k + 0.9} for k, name in enumerate(names())}
    figure = sigma_figure(sigmas, start=0.05)
    lines = [t for t in figure.data if t.fill is None]
    assert [t.name for t in lines] == ["LoRA's A", "LoRA's B"] * 2
    assert all(list(t.x) == [0, 2, 10] for t in lines)
    assert list(lines[3].y) == [3.5, 11.5, 7.5]  # B of v_proj
    band = next(t for t in figure.data if t.fill)
    assert list(band.x) == [0, 2, 10, 10, 2, 0] and list(band.y) == [0.9, 8.9, 4.9, 4.1, 8.1, 0.1]
    assert [shape.y0 for shape in figure.layout.shapes] == [0.05, 0.05]
    assert [a.text for a in figure.layout.annotations] == ["<b>q_proj</b>", "<b>v_proj</b>"]


def test_other_weights_are_refused():
    with pytest.raises(ValueError, match="None of these is a LoRA factor"):
        sigma_figure({"classifier.weight": {"p10": 1.0, "p50": 1.0, "p90": 1.0}})
