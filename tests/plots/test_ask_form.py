"""The bars of one question, and the form that asks it."""

import pytest
import torch

from ivon_lora_lite.plots import AskForm, answer_figure
from ivon_lora_lite.training import Answer


class FakeRun:
    """Answers with fixed numbers, and remembers what it was asked."""

    def ask(self, stem, choices, samples):
        if not choices:
            raise ValueError("The choices are none; expected <two>.")
        self.asked = (stem, choices, samples)
        draws = torch.tensor([[0.6, 0.4], [0.8, 0.2]])
        return Answer(stem, tuple(choices), torch.tensor([0.9, 0.1]), draws, threshold=0.5)


def test_bars_are_the_mean_and_the_average_with_a_dot_a_draw():
    figure = answer_figure(["salt", "sand"], torch.tensor([0.9, 0.1]), torch.tensor([[0.6, 0.4], [0.8, 0.2]]))
    at_mean, average, dots = figure.data
    assert list(at_mean.y) == [0.9, 0.1] and list(average.y) == pytest.approx([0.7, 0.3])
    assert list(dots.y) == [0.6, 0.4, 0.8, 0.2] and list(dots.x) == list(average.x) * 2
    assert list(figure.layout.xaxis.ticktext) == ["salt", "sand"]
    marked = answer_figure(["salt", "sand"], torch.tensor([0.9, 0.1]), torch.tensor([[0.6, 0.4]]), right=0)
    assert list(marked.layout.xaxis.ticktext) == ["<b>✓ salt</b>", "sand"]


def test_the_form_asks_and_says_what_is_wrong():
    run = FakeRun()
    form = AskForm(run, "Which one melts ice?", ["salt", "sand"], samples=2)
    form.button.click()
    assert run.asked == ("Which one melts ice?", ["salt", "sand"], 2)
    assert "no need to ask a person" in form.said.value and len(form.figure.data) == 3
    form.choices.value = "\n"
    form.ask()
    assert form.said.value == "<p>The choices are none; expected &lt;two&gt;.</p>"
