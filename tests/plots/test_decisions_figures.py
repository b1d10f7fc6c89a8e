"""Risk against coverage, handing over with a slider, and doubt over a plane."""

import re

import pytest
import torch

from ivon_lora_lite import Predictions, abstain
from ivon_lora_lite.evaluation import doubts, right_answers, risk_coverage
from ivon_lora_lite.language import Question
from ivon_lora_lite.plots import COLORS, COVERAGES, CoverageExplorer, doubt_maps_figure, risk_figure


def made(seed: int, n: int = 200, draws: int = 3) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    logits = 2 * torch.randn(draws, n, 4, generator=generator) + 2 * torch.nn.functional.one_hot(labels, 4)
    return Predictions(logits, labels)


CHOICES = ("a", "b", "c&d", "e")
QUESTIONS = [Question("", CHOICES, i % 4, f"<Who> is {i}?", tuple("ABCD"), str(i)) for i in range(200)]


def test_lines_are_the_librarys_curves_and_their_mean():
    runs = {"AdamW": [made(1), made(2)], "AdamW + temperature": [made(3), made(4)], "IVON@mean": [made(5), made(6)]}
    figure = risk_figure(runs)
    assert len(figure.data) == 9
    for k, (title, row) in enumerate(runs.items()):
        *thin, mean = figure.data[3 * k : 3 * k + 3]
        assert mean.name == title and mean.showlegend is None and not any(t.showlegend for t in thin)
        assert {t.line.color for t in (*thin, mean)} == {COLORS["ivon" if "IVON" in title else "adamw"]}
        assert mean.line.dash == ("solid" if title == "AdamW" else "dash")
        for line, p in zip(thin, row):
            coverage, risk = risk_coverage(doubts(p)["confidence"], right_answers(p))
            assert line.x[0] == pytest.approx(0.1) and line.x[-1] == 1
            for x, y in zip(line.x, line.y):
                assert y == pytest.approx(float(risk[(coverage - x).abs().argmin()]), abs=1e-4)
        assert mean.y[40] == pytest.approx((thin[0].y[40] + thin[1].y[40]) / 2, abs=1e-4)


def test_the_slider_moves_the_dot_the_numbers_and_the_questions():
    runs = {"AdamW": made(1), "IVON": made(2)}
    explorer = CoverageExplorer(runs, QUESTIONS)
    assert explorer.coverage.value == 0.8 and COVERAGES[0] == 0.1 and COVERAGES[-1] == 1.0
    for title, coverage in (("AdamW", 0.8), ("IVON", 0.3), ("IVON", 1.0)):
        explorer.method.value, explorer.coverage.value = title, coverage
        decision, right, text = abstain(runs[title], coverage), right_answers(runs[title]), explorer.said.value
        handed, dot = decision.handed_over, explorer.figure.data[-1]
        assert torch.equal(explorer.decision.handed_over, handed) and dot.marker.color == COLORS["now"]
        assert (dot.x, dot.y) == ((pytest.approx(coverage),), (pytest.approx(1 - decision.accuracy),))
        numbers = [int((~handed).sum()), 200, int((~right[~handed]).sum()), int((~right[handed]).sum())]
        (answered, of, given, caught) = re.search(
            r"<b>(\d+) of (\d+)</b>.*<b>(\d+)</b> wrong\..*<b>(\d+)</b> times", text
        ).groups()
        assert f"{title} answers" in text and f"<b>{decision.accuracy:.1%}</b> right" in text
        assert list(map(int, (answered, of, given, caught))) == numbers
        # the questions listed are the least doubtful of those handed over
        assert len(explorer.listed) == min(3, int(handed.sum())) and all(handed[i] for i in explorer.listed)
        rest = [i for i in range(200) if handed[i] and i not in explorer.listed]
        assert not rest or decision.doubt[explorer.listed].max() <= decision.doubt[rest].min()
        assert text.count("&lt;Who&gt; is") == len(explorer.listed) and "<Who>" not in text
        for i in explorer.listed:
            assert f"is {i}?" in text
        assert text.count("✓") == sum(bool(right[i]) for i in explorer.listed)


def test_maps_are_in_percent_of_a_coins_doubt_and_points_have_the_symbol_of_their_class():
    x, y, ln2 = torch.linspace(0, 1, 4), torch.linspace(0, 2, 3), torch.log(torch.tensor(2.0))
    points, labels = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]]), torch.tensor([1, 0, 1])
    some = torch.linspace(0, 1, 12).reshape(3, 4) * ln2
    figure = doubt_maps_figure({"a": (some, points, labels), "b": (some / 2, points[:1], labels[:1])}, x, y)
    assert [t.type for t in figure.data] == ["heatmap", "scatter", "scatter"] * 2
    assert figure.data[0].z[0].tolist() == [0, 9, 18, 27] and figure.data[3].z[2, 3] == 50
    assert figure.data[0].showscale and not figure.data[3].showscale
    assert [len(t.x) for t in figure.data if t.type == "scatter"] == [1, 2, 0, 1]
    assert figure.data[1].marker.symbol != figure.data[2].marker.symbol
    assert figure.data[3].xaxis == "x2"
