"""Matrices as heat maps with one colour scale."""

import pytest
import torch

from ivon_lora_lite.plots import matrix_figure


def test_all_panels_share_one_symmetric_scale():
    figure = matrix_figure({"thin": torch.tensor([[1.0], [-3.0]]), "wide": torch.arange(20.0).reshape(2, 10) / 10})
    assert [trace.coloraxis for trace in figure.data] == ["coloraxis", "coloraxis"]
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-3.0, 3.0)
    assert figure.data[0].z.tolist() == [[1.0], [-3.0]]
    assert [a.text for a in figure.layout.annotations] == ["<b>thin</b>", "<b>wide</b>"]


def test_a_panel_is_as_wide_as_its_matrix_and_a_thin_one_can_still_be_seen():
    figure = matrix_figure({"half": torch.ones(3, 20), "whole": torch.ones(3, 40), "thin": torch.ones(3, 1)})
    half, whole, thin = (
        axis.domain[1] - axis.domain[0] for axis in (figure.layout.xaxis, figure.layout.xaxis2, figure.layout.xaxis3)
    )
    assert half / whole == pytest.approx(0.5)
    assert thin > 0.1 and thin < half
    assert figure.layout.yaxis.autorange == "reversed"  # row 0 is on top, as in print


def test_a_limit_is_kept_and_zeros_can_be_drawn():
    assert matrix_figure({"x": 9 * torch.ones(2, 2)}, limit=2.0).layout.coloraxis.cmax == 2.0
    assert matrix_figure({"x": torch.zeros(2, 2)}).layout.coloraxis.cmax == 1.0


def test_what_is_no_matrix_is_refused():
    with pytest.raises(ValueError, match="'v' is not a matrix"):
        matrix_figure({"v": torch.ones(3)})
    with pytest.raises(ValueError, match="no matrix"):
        matrix_figure({})


def test_a_trained_matrix_is_drawn_in_few_bytes():
    figure = matrix_figure({"x": torch.full((30, 40), 1 / 3, requires_grad=True, dtype=torch.float64)})
    assert len(figure.to_json()) < len(matrix_figure({"x": torch.ones(1, 1)}).to_json()) + 30 * 40 * 6
