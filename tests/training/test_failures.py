"""A failure never looks like a number: what is not finite stops, and says so, before anything is saved or scored."""

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer

from ivon_lora_lite import Predictions, Question, finetune, lora_parameters, predict, score

OPTIONS = {"steps": 4, "batch_size": 4, "progress": False}


def spoil(model):
    """A model whose last norm holds one NaN: every hidden state is NaN."""
    next(p for name, p in model.named_parameters() if name.endswith("model.norm.weight")).data[3] = torch.nan
    return model


def test_predictions_of_a_broken_model_are_refused(tiny_model, task):
    with pytest.raises(FloatingPointError, match="not finite"):
        predict(spoil(tiny_model("llama")), task.test)


@pytest.mark.parametrize("optimizer", ["adamw", "ivon"])
def test_a_broken_model_is_not_trained(tiny_model, task, optimizer):
    with pytest.raises(FloatingPointError):
        finetune(spoil(tiny_model("llama")), task, optimizer=optimizer, **OPTIONS)


def test_a_run_whose_every_step_the_gradient_scaler_skipped_is_no_run(tiny_model, task, monkeypatch):
    monkeypatch.setattr(AcceleratedOptimizer, "step", lambda self, closure=None: setattr(self, "_is_overflow", True))
    with pytest.raises(FloatingPointError, match="nothing was learned"):
        finetune(tiny_model("llama"), task, optimizer="ivon", **OPTIONS)


def test_adamw_that_diverges_stops(tiny_model, task):
    with pytest.raises(FloatingPointError, match=r"[Ll]ower the learning rate"):
        finetune(tiny_model("llama"), task, optimizer="adamw", lr=1e30, **OPTIONS)


def test_broken_draws_are_refused(tiny_model, task):
    run = finetune(tiny_model("llama"), task, optimizer="ivon", **OPTIONS)
    for v in run.posterior.variance.values():
        v.fill_(3e38)  # a standard deviation of 2e19: the logits overflow
    with pytest.raises(FloatingPointError, match="draw"):
        predict(run, task.test, samples=2)


def test_weights_that_are_not_finite_are_not_predicted_with(tiny_model, task):
    model = tiny_model("llama")
    lora_parameters(model)[1].data[0, 0] = torch.inf
    with pytest.raises(FloatingPointError):
        predict(model, task.test)


@pytest.mark.parametrize(
    "probs",
    [
        [[2.0, -1.0], [0.5, 0.5]],  # logits
        [[0.5, 0.4], [0.5, 0.5]],  # do not sum to 1
        [[float("nan"), 0.5], [0.5, 0.5]],
        [[1.5, -0.5], [0.5, 0.5]],  # sum to 1, but one is negative
    ],
)
def test_what_are_no_probabilities_has_no_score(probs):
    with pytest.raises(ValueError, match="probabilit"):
        score(torch.tensor(probs), torch.tensor([0, 1]))


@pytest.mark.parametrize("answer", [-1, 3, 1.0, "1", None])
def test_an_answer_that_is_none_of_the_choices_is_refused_where_the_question_is_made(answer):
    with pytest.raises(ValueError, match="answer"):
        Question("How many?", ("one", "two", "three"), answer, "How many?", ("A", "B", "C"))


def test_predictions_that_hold_no_logits_are_refused():
    for odd in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="logits"):
            Predictions(torch.tensor([[[odd, 0.0]]]), torch.tensor([0]), {})
    with pytest.raises(ValueError, match="Labels run"):
        score(Predictions(torch.tensor([[[0.0, 0.0]]]), torch.tensor([2]), {}), intervals=False)
