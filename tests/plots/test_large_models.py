"""Figures about large models: bars of memory, and published scores."""

import pytest

from ivon_lora_lite.plots import COLORS, memory_figure, published_figure
from ivon_lora_lite.plots.large_models import PARTS


def test_bars_hold_the_three_parts_and_say_their_sum():
    figure = memory_figure({"bf16": (12.5, 0.02, 0.08), "4 bits": (4.4, 0.02, 0.08)}, {"small": 8, "large": 20})
    assert [bar.name for bar in figure.data] == list(PARTS)
    assert [list(bar.x) for bar in figure.data] == [[12.5, 4.4], [0.02, 0.02], [0.08, 0.08]]
    texts = [a.text for a in figure.layout.annotations]
    assert "12.6 GiB, of which 0.10 are LoRA and IVON" in texts and "large" in texts
    assert [line.x0 for line in figure.layout.shapes] == [8, 20]
    assert figure.layout.xaxis.range[1] > 20  # all cards can be seen


def test_three_numbers_are_wanted():
    with pytest.raises(ValueError, match="'8 bits' has 2 numbers; expected frozen weights, LoRA, IVON"):
        memory_figure({"8 bits": (7.0, 0.1)})


def test_paths_go_from_adamw_over_the_mean_to_the_draws():
    tasks = {
        "easy": {"AdamW": (14.5, 84.9), "IVON@mean": (10.1, 87.5), "IVON": (3.6, 85.7)},
        "hard": {"AdamW": (31.4, 66.7), "IVON@mean": (25.8, 69.9), "IVON": (10.7, 66.3)},
    }
    figure = published_figure(tasks)
    lines, points = figure.data[:2], figure.data[2:]
    assert [list(zip(line.x, line.y)) for line in lines] == [list(path.values()) for path in tasks.values()]
    assert [p.name for p in points] == ["AdamW", "IVON@mean", "IVON"]
    assert [p.marker.color for p in points] == [COLORS["adamw"], COLORS["ivon"], COLORS["ivon"]]
    (low, high), (left, right) = figure.layout.yaxis.range, figure.layout.xaxis.range
    assert low < 66.3 and high > 87.5 and left == 0 and right > 31.4
    assert [a.text for a in figure.layout.annotations] == list(tasks)
