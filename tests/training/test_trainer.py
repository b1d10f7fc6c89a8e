"""IVON in transformers.Trainer: accumulation, evaluation with draws, checkpoints, kill and resume."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from ivon_lora_lite import IVON, GaussianPosterior, IVONMixin, IVONTrainer, trainable
from ivon_lora_lite.training import Beside
from ivon_lora_lite.training.trainer import averaging

IVON_OPTIONS = {"ess": 1e4, "hess_init": 1e-2, "weight_decay": 0.0, "rescale_lr": False, "clip_radius": 1e-2}


def classifier(seed=0):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3,
        max_position_embeddings=16,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def rows(n=64, seed=0):
    """The label is the first token modulo 3."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 32, (n, 8), generator=generator)
    return [{"input_ids": row, "labels": row[0] % 3} for row in ids]


def arguments(folder, **changes):
    settings = {
        "output_dir": str(folder), "max_steps": 20, "per_device_train_batch_size": 8, "learning_rate": 0.1,
        "report_to": "none", "disable_tqdm": True, "logging_steps": 5, "save_strategy": "no", "use_cpu": True,
        "max_grad_norm": 0.0, "dataloader_pin_memory": False, "per_device_eval_batch_size": 16,
    }  # fmt: skip
    return TrainingArguments(**(settings | changes))


def trained(folder, model=None, options=IVON_OPTIONS, resume=None, **changes):
    trainer = IVONTrainer(
        model or classifier(),
        arguments(folder, **changes),
        train_dataset=rows(),
        eval_dataset=rows(32, 1),
        ivon=options,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.slow
def test_a_classifier_learns_and_logs_diagnostics(tmp_path):
    trainer = trained(tmp_path, max_steps=150, learning_rate=0.5)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
    assert last["ivon_sigma_mean"] == pytest.approx(1 / (1e4 * 1e-2) ** 0.5, rel=0.1)
    assert {"ivon_snr_p50", "ivon_clipped", "ivon_hess_moved", "ivon_kl", "ivon_skipped_steps"} <= last.keys()


@pytest.mark.slow
def test_accumulation_equals_one_large_batch(tmp_path):
    large = trained(tmp_path / "a", per_device_train_batch_size=8)
    small = trained(tmp_path / "b", per_device_train_batch_size=2, gradient_accumulation_steps=4)
    model = classifier()
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    moved = (weights(large) - start).abs().mean()
    assert moved > 0
    # dropout differs between the two ways to batch, so it is off in this model
    assert (weights(large) - weights(small)).abs().mean() < 0.02 * moved


@pytest.fixture(autouse=True)
def no_dropout(monkeypatch):
    plain = BertConfig.__init__

    def without(self, *args, **kwargs):
        plain(self, *args, **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **kwargs})

    monkeypatch.setattr(BertConfig, "__init__", without)


def test_mixed_precision_trains(tmp_path):
    trainer = trained(tmp_path, bf16=True, max_steps=10)
    assert torch.isfinite(weights(trainer)).all()
    assert trainer.ivon_optimizer.state[next(trainer.model.parameters())]["step"] == 10


@pytest.mark.slow
def test_without_ivon_it_is_the_plain_trainer(tmp_path):
    ours = trained(tmp_path / "a", options=None, learning_rate=1e-3)
    plain = Trainer(classifier(), arguments(tmp_path / "b", learning_rate=1e-3), train_dataset=rows())
    plain.train()
    assert torch.equal(weights(ours), weights(plain))


def test_an_ivon_optimizer_can_be_handed_over(tmp_path):
    model = classifier()
    optimizer = IVON(model.parameters(), lr=0.1, **IVON_OPTIONS)
    trainer = IVONTrainer(model, arguments(tmp_path), train_dataset=rows(), optimizers=(optimizer, None))
    assert not trainer.model_accepts_loss_kwargs  # so accumulation divides the loss, as with ivon=
    trainer.train()
    assert trainer.ivon_optimizer is optimizer
    assert optimizer.state[next(model.parameters())]["step"] == 20


def test_evaluation_with_draws_averages_probabilities_and_restores_the_mean(tmp_path):
    trainer = trained(tmp_path, options={**IVON_OPTIONS, "ess": 1e2})
    before = weights(trainer)
    at_mean = trainer.evaluate()["eval_loss"]
    trainer.eval_samples = 3
    with_draws = trainer.predict(rows(32, 1))
    assert torch.equal(weights(trainer), before)
    assert trainer.evaluate()["eval_loss"] != at_mean
    posterior = GaussianPosterior.from_optimizer(trainer.ivon_optimizer, trainer.model)
    batch = {k: torch.stack([r[k] for r in rows(32, 1)]) for k in ("input_ids",)}
    trainer.model.eval()
    by_hand = []
    for seed in range(3):
        with posterior.applied(trainer.model, seed), torch.no_grad():
            by_hand.append(trainer.model(**batch).logits.softmax(-1))
    expected = torch.stack(by_hand).mean(0)
    torch.testing.assert_close(torch.tensor(with_draws.predictions).softmax(-1), expected, rtol=1e-4, atol=1e-5)


def test_checkpoints_carry_the_posterior(tmp_path):
    trainer = trained(tmp_path, save_strategy="steps", save_steps=10)
    posterior = GaussianPosterior.load(tmp_path / "checkpoint-20")
    assert posterior.metadata["step"] == 20 and posterior.metadata["ess"] == 1e4
    for name, p in trainable(trainer.model).items():
        assert torch.equal(posterior.mean[name], p.detach())
        assert torch.equal(posterior.variance[name], trainer.ivon_optimizer.variance(p))


def test_the_mixin_goes_before_any_trainer_class(tmp_path):
    class Custom(Trainer):
        seen = 0

        def compute_loss(self, *args, **kwargs):
            Custom.seen += 1
            return super().compute_loss(*args, **kwargs)

    class CustomIVON(IVONMixin, Custom):
        pass

    trainer = CustomIVON(classifier(), arguments(tmp_path, max_steps=3), train_dataset=rows(), ivon=IVON_OPTIONS)
    trainer.train()
    assert Custom.seen == 3 and trainer.ivon_optimizer is not None


def test_batches_of_any_kind_reach_the_trainer_that_is_extended(tmp_path):
    """TRL's trainers for reinforcement learning hand over lists of rows, and count their steps themselves."""
    seen = []

    class Lists(Trainer):
        def training_step(self, model, inputs, *args, **kwargs):
            seen.append(inputs)
            loss = next(model.parameters()).square().sum()
            loss.backward()
            return loss.detach()

    class ListsWithIVON(IVONMixin, Lists):
        pass

    def make(**options):
        settings = {**IVON_OPTIONS, **options}
        return ListsWithIVON(
            classifier(), arguments(tmp_path, max_steps=1), train_dataset=rows(8), data_collator=list, ivon=settings
        )

    make().train()
    assert isinstance(seen[0], list) and isinstance(seen[0][0], dict)
    Lists._step = 0
    with pytest.raises(ValueError, match="does not count its steps itself"):
        make(mc_samples=2)


def test_a_step_that_the_gradient_scaler_skips_drops_its_draw(tmp_path, monkeypatch):
    """The Trainer clears the gradients of the model then, and never asks the optimizer to."""
    monkeypatch.setattr(AcceleratedOptimizer, "step", lambda self, closure=None: setattr(self, "_is_overflow", True))
    seen = []

    class Seeing(IVONTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            seen.append(next(model.parameters()).detach().clone())
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer = Seeing(classifier(), arguments(tmp_path, max_steps=3), train_dataset=rows(24), ivon=IVON_OPTIONS)
    trainer.train()
    assert len(seen) == 3 and not any(torch.equal(a, b) for a, b in itertools.combinations(seen, 2))


def test_a_poor_start_is_reported(tmp_path):
    with pytest.warns(UserWarning, match="larger ess or hess_init"):
        trained(tmp_path, options={**IVON_OPTIONS, "ess": 1.0}, max_steps=5)


SCRIPT = """
import sys, torch
sys.path.insert(0, {tests!r})
import test_trainer as t
from transformers import BertConfig, TrainerCallback
torch.set_num_threads(1)
class Show(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        print("step", state.global_step, flush=True)
folder, resume = sys.argv[1], sys.argv[2] == "resume"
from transformers.trainer_utils import get_last_checkpoint
model = t.classifier()   # with dropout: the checkpoint must carry that random state too
trainer = t.IVONTrainer(model, t.arguments(folder, max_steps=40, save_strategy="steps", save_steps=7),
                        train_dataset=t.rows(), ivon=t.IVON_OPTIONS, callbacks=[Show()])
last = get_last_checkpoint(folder) if resume else None
print("from", last, flush=True)
trainer.train(resume_from_checkpoint=last)
torch.save({{"weights": t.weights(trainer), "hess": [s["hess"] for s in trainer.ivon_optimizer.state.values()]}},
           folder + "/end.pt")
"""


@pytest.mark.slow
def test_killed_at_random_steps_and_resumed_is_bit_equal(tmp_path):
    """SIGKILL at random steps of one run, resumed each time; IVON_LORA_KILLS=20 does it more often."""
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}

    def start(folder, how):
        return subprocess.Popen(
            [sys.executable, str(script), str(folder), how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip

    whole = start(tmp_path / "whole", "fresh")
    _, errors = whole.communicate(timeout=300)
    assert whole.returncode == 0, errors[-2000:]
    kills = int(os.environ.get("IVON_LORA_KILLS", "5"))
    chance = random.Random(0)
    done = 0
    for _ in range(kills):
        process = start(tmp_path / "killed", "resume")
        for line in process.stdout:
            if line.startswith("step"):
                done = int(line.split()[1])
                if chance.random() < 0.15 or done >= 38:
                    break
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        process.stderr.close()
        time.sleep(0.1)
    last = start(tmp_path / "killed", "resume")
    out, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors[-2000:]
    a, b = (torch.load(tmp_path / name / "end.pt") for name in ("whole", "killed"))
    assert torch.equal(a["weights"], b["weights"])
    assert all(torch.equal(x, y) for x, y in zip(a["hess"], b["hess"]))
    assert done > 0 and kills >= 5


def test_causal_language_model_finetuning_saves_adapter_and_posterior(tmp_path, tiny_model):
    """The example of causal-LM finetuning: labels are the tokens themselves, LoRA is all that trains."""
    model = tiny_model("llama")
    generator = torch.Generator().manual_seed(0)
    texts = [{"input_ids": ids, "labels": ids.clone()} for ids in torch.randint(3, 40, (16, 12), generator=generator)]
    trainer = IVONTrainer(model, arguments(tmp_path, max_steps=4), train_dataset=texts, ivon=IVON_OPTIONS)
    trainer.train()
    trainer.save_model(str(tmp_path / "end"))
    saved = load_file(tmp_path / "end" / "adapter_model.safetensors")
    posterior = GaussianPosterior.load(tmp_path / "end")
    assert saved.keys() == posterior.mean.keys()
    assert all(torch.equal(saved[name], posterior.mean[name]) for name in saved)
    assert json.loads((tmp_path / "end" / "adapter_config.json").read_text())["peft_type"] == "LORA"


# ------------------------------------------------------------------------------------------- what a head predicts


def head(kind, n=3, **options):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=n,
        max_position_embeddings=16, **options,
    )  # fmt: skip
    return kind(config)


def drawn(model, data, tmp_path, **options):
    """What a trainer predicts with three draws of a wide Gaussian, and the logits of each draw."""
    posterior = GaussianPosterior(
        {name: p.detach().clone() for name, p in trainable(model).items()},
        {name: torch.full_like(p, 0.04) for name, p in trainable(model).items()},
    )
    trainer = IVONTrainer(model, arguments(tmp_path), eval_dataset=data, eval_samples=3, posterior=posterior, **options)
    got = torch.as_tensor(trainer.predict(data).predictions)
    each = []
    for seed in range(3):
        with posterior.applied(model.eval(), seed), torch.no_grad():
            each.append(model(torch.stack([row["input_ids"] for row in data])).logits)
    return got, torch.stack(each)


def labelled(label):
    return [{"input_ids": row["input_ids"], "labels": label} for row in rows(12)]


def test_draws_of_a_regression_are_averaged_as_numbers(tmp_path):
    got, each = drawn(head(BertForSequenceClassification, 1), labelled(torch.tensor(0.5)), tmp_path)
    torch.testing.assert_close(got, each.mean(0), rtol=1e-4, atol=1e-5)
    several = head(BertForSequenceClassification, 2, problem_type="regression")
    got, each = drawn(several, labelled(torch.tensor([0.5, 2.0])), tmp_path)
    torch.testing.assert_close(got, each.mean(0), rtol=1e-4, atol=1e-5)


def test_draws_of_many_labels_are_averaged_as_a_probability_each(tmp_path):
    model = head(BertForSequenceClassification, problem_type="multi_label_classification")
    got, each = drawn(model, labelled(torch.tensor([1.0, 0.0, 1.0])), tmp_path)
    torch.testing.assert_close(got.sigmoid(), each.sigmoid().mean(0), rtol=1e-4, atol=1e-5)


def test_probabilities_near_0_and_1_come_back_as_finite_logits():
    model = head(BertForSequenceClassification, problem_type="multi_label_classification")
    logits = torch.tensor([[20.0, -3.0, -200.0]])
    there, back = averaging(model, logits)
    large, middle, small = back(there(logits))[0]
    assert 10 < large < torch.inf and -torch.inf < small < -10 and middle == pytest.approx(-3.0, abs=1e-4)


def test_a_head_whose_predictions_have_no_average_is_refused(tmp_path):
    data = [{"input_ids": row["input_ids"], "start_positions": 1, "end_positions": 2} for row in rows(12)]
    with pytest.raises(ValueError, match="cannot average what BertForQuestionAnswering predicts"):
        drawn(head(BertForQuestionAnswering, 2), data, tmp_path)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_next_tokens_are_averaged_as_probabilities(tiny_model, architecture):
    logits = torch.tensor([[[20.0, -3.0, 0.5]]])
    there, back = averaging(tiny_model(architecture), logits)
    torch.testing.assert_close(back(there(logits)), logits.log_softmax(-1))


def test_generated_tokens_are_not_averaged(tiny_model):
    with pytest.raises(ValueError, match="cannot average what LlamaForCausalLM predicts"):
        averaging(tiny_model("llama"), torch.tensor([[3, 4, 5]]))


def test_evaluating_with_draws_needs_a_posterior(tmp_path):
    trainer = IVONTrainer(classifier(), arguments(tmp_path), eval_dataset=rows(8), eval_samples=4)
    with pytest.raises(ValueError, match="eval_samples needs a posterior"):
        trainer.evaluate()


def test_the_best_checkpoints_posterior_comes_back_with_its_mean(tmp_path):
    trainer = trained(
        tmp_path, learning_rate=3.0, max_steps=12, eval_strategy="steps", eval_steps=2, save_strategy="steps",
        save_steps=2, load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True,
        options=IVON_OPTIONS | {"hess_init": 1e-4, "beta2": 0.9},
    )  # fmt: skip
    best = GaussianPosterior.load(trainer.state.best_model_checkpoint)
    last = GaussianPosterior.from_optimizer(trainer.ivon_optimizer, trainer.model)
    assert trainer.state.best_model_checkpoint != str(tmp_path / "checkpoint-12")  # the worst is "best" here
    now = trainer.posterior()
    for name, p in trainable(trainer.model).items():
        assert torch.equal(now.mean[name], p.detach()) and torch.equal(now.mean[name], best.mean[name])
        assert torch.equal(now.variance[name], best.variance[name])
    assert any(not torch.equal(now.variance[name], last.variance[name]) for name in now.variance)
    trainer.save_model(str(tmp_path / "out"))
    assert GaussianPosterior.load(tmp_path / "out").metadata["step"] == best.metadata["step"] < 12


def test_several_draws_per_step_each_meet_their_own_gradient(tmp_path):
    trainer = trained(tmp_path, options=IVON_OPTIONS | {"mc_samples": 3}, max_steps=4)
    assert trainer.ivon_optimizer.state[next(trainer.model.parameters())]["step"] == 4
    for wrong in ({"gradient_accumulation_steps": 2}, {"max_grad_norm": 1.0}):
        with pytest.raises(ValueError, match="mc_samples=3 needs"):
            trained(tmp_path, options=IVON_OPTIONS | {"mc_samples": 3}, **wrong)


def test_sharded_parameters_are_refused_before_training(tmp_path):
    class Sharded(Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.is_fsdp_enabled = True

    class ShardedIVON(IVONMixin, Sharded):
        pass

    with pytest.raises(ValueError, match="DDP instead of DeepSpeed or FSDP"):
        ShardedIVON(classifier(), arguments(tmp_path), train_dataset=rows(), ivon=IVON_OPTIONS)


def test_one_label_that_is_yes_or_no_is_averaged_as_a_probability():
    model = head(BertForSequenceClassification, 1, problem_type="multi_label_classification")
    there, back = averaging(model, torch.zeros(1, 1))
    draws = torch.tensor([[[8.0]], [[-2.0]]])
    torch.testing.assert_close(back(there(draws).mean(0)).sigmoid(), draws.sigmoid().mean(0))


def test_what_works_beside_ivon_takes_the_average_over_its_draws():
    p = torch.zeros(1, requires_grad=True)
    beside = Beside(torch.optim.SGD([p], lr=1.0))
    for draws in (1, 4):
        p.grad = torch.full((1,), 2.0 * draws)  # the sum of as many backward passes
        before = p.item()
        beside.on_pre_optimizer_step(
            None, SimpleNamespace(global_step=0, max_steps=1), None, SimpleNamespace(mc_samples=draws)
        )
        assert p.item() == before - 2
    beside.on_pre_optimizer_step(None, SimpleNamespace(global_step=0, max_steps=1), None, None)  # nothing to average
    assert p.item() == before - 2


def test_an_optimizer_beside_ivon_is_refused(tiny_model, tmp_path):
    model = tiny_model()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    with pytest.raises(ValueError, match="leave one of them out"):
        IVONTrainer(model, arguments(tmp_path), train_dataset=rows(), ivon={"ess": 1e5}, optimizers=(optimizer, None))
