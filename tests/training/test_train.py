"""finetune(): what is the same for both optimizers, what a seed fixes, how it resumes."""

import warnings
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import flat
from transformers import ProgressCallback, TrainerCallback, trainer as transformers_trainer
from transformers.utils.notebook import NotebookProgressCallback

from ivon_lora_lite import IVON, GaussianPosterior, advice, finetune, hyperparameters, predict, score, trainable
from ivon_lora_lite.training import Bar, finetuning as train_module
from ivon_lora_lite.training.checkpoints import fingerprint
from ivon_lora_lite.training.trainer import check_device

OPTIONS = {"steps": 6, "batch_size": 2, "progress": False}


def test_another_template_or_other_letters_are_other_questions(task):
    first = task.train[0]
    others = [first, replace(first, prompt=f"Think. {first.prompt}"), replace(first, labels=first.labels[::-1])]
    assert len({fingerprint([question]) for question in others}) == 3


@pytest.mark.slow
def test_both_optimizers_see_the_same_questions_in_the_same_order_from_the_same_start(tiny_model, task, monkeypatch):
    model, seen = tiny_model("llama"), {}
    collate = train_module.collate

    def spy(batch, *args):
        seen.setdefault(spy.optimizer, []).append([q.stem for q in batch])
        return collate(batch, *args)

    monkeypatch.setattr(train_module, "collate", spy)
    starts = []
    reset = train_module.reset_lora
    monkeypatch.setattr(
        train_module, "reset_lora", lambda m, s: (reset(m, s), starts.append([p.clone() for p in m.parameters()]))
    )
    for optimizer in ("adamw", "ivon"):
        spy.optimizer = optimizer
        finetune(model, task, optimizer=optimizer, **OPTIONS)
    assert seen["adamw"][:6] == seen["ivon"][:6] and len({tuple(b) for b in seen["ivon"]}) > 1
    assert all(torch.equal(a, b) for a, b in zip(*starts))


@pytest.mark.slow
def test_a_seed_fixes_the_run_and_runs_do_not_depend_on_each_other(tiny_model, task):
    model = tiny_model("llama")
    first = finetune(model, task, seed=1, **OPTIONS)
    other = finetune(model, task, seed=2, **OPTIONS)
    again = finetune(model, task, seed=1, **OPTIONS)
    assert torch.equal(flat(first.weights), flat(again.weights)) and not torch.equal(
        flat(first.weights), flat(other.weights)
    )
    # a run predicts with its own weights although the model has been used for others since
    assert torch.equal(predict(first, task.test).logits, predict(again, task.test).logits)
    assert not torch.equal(predict(first, task.test).logits, predict(other, task.test).logits)


@pytest.mark.slow
def test_training_lowers_the_loss_and_ivon_returns_a_posterior(tiny_model, task):
    model = tiny_model("llama")
    before = score(predict(model, task.train), intervals=False)["nll"]
    for optimizer, settings in (("adamw", {"lr": 1e-2}), ("ivon", {"lr": 10.0, "ess": 1e6})):
        run = finetune(model, task, optimizer=optimizer, steps=40, batch_size=5, progress=False, **settings)
        assert score(predict(run, task.train), intervals=False)["nll"] < 0.8 * before
        assert isinstance(run.posterior, GaussianPosterior) == (optimizer == "ivon")
        assert run.config["settings"]["lr"] == settings["lr"]
    assert run.posterior.metadata["step"] == 40 and run.posterior.metadata["ess"] == 1e6


@pytest.mark.slow
def test_evaluating_during_training_does_not_change_it(tiny_model, task):
    model = tiny_model("llama")
    plain = finetune(model, task, **OPTIONS)
    watched = finetune(model, task, eval_every=2, **OPTIONS)
    assert torch.equal(flat(plain.weights), flat(watched.weights))
    assert [r["step"] for r in watched.history if "eval_nll" in r] == [2, 4, 6]
    assert any("ivon_sigma_mean" in r for r in watched.history)


def test_accumulation_and_the_letter_format_work(tiny_model, task):
    # four-choice questions only: the letter format needs as many letters as choices
    run = finetune(tiny_model("llama"), task, format="letter", accumulation=2, **OPTIONS)
    assert run.config["format"] == "letter" and run.config["accumulation"] == 2
    assert torch.isfinite(flat(run.weights)).all()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["ivon", "adamw"])
def test_a_run_resumes_from_its_checkpoint(tiny_model, task, tmp_path, monkeypatch, optimizer):
    model = tiny_model("llama")
    whole = finetune(model, task, optimizer=optimizer, output_dir=tmp_path / "a", save_every=2, **OPTIONS)

    class Stop(Exception):
        pass

    step, count = train_module.AnswerTrainer.training_step, []

    def failing(self, *args, **kwargs):
        count.append(1)
        if len(count) == 5:
            raise Stop
        return step(self, *args, **kwargs)

    monkeypatch.setattr(train_module.AnswerTrainer, "training_step", failing)
    with pytest.raises(Stop):
        finetune(model, task, optimizer=optimizer, output_dir=tmp_path / "b", save_every=2, **OPTIONS)
    monkeypatch.setattr(train_module.AnswerTrainer, "training_step", step)
    resumed = finetune(
        model, task, optimizer=optimizer, output_dir=tmp_path / "b", save_every=2, resume=True, **OPTIONS
    )
    assert torch.equal(flat(whole.weights), flat(resumed.weights))


@pytest.mark.slow
def test_checkpoints_serve_the_run_that_wrote_them_alone(tiny_model, task, tmp_path):
    model, options = tiny_model("llama"), {**OPTIONS, "output_dir": tmp_path, "save_every": 2}
    whole = finetune(model, task, **options)
    first = task.train[0]
    others = replace(task, train=[replace(first, answer=(first.answer + 1) % len(first.choices)), *task.train[1:]])
    with pytest.raises(ValueError, match="holds checkpoints: use resume=True"):
        finetune(model, task, **{**options, "seed": 1})
    with pytest.raises(ValueError, match="are of another run .questions"):
        finetune(model, others, resume=True, **options)
    assert torch.equal(flat(finetune(model, task, resume=True, **options).weights), flat(whole.weights))


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"optimizer": "sgd"}, "no optimizer 'sgd'"),
        ({"format": "essay"}, "no answer format 'essay'"),
        ({"steps": 0}, "steps is 0"),
        ({"preset": "large"}, "no preset 'large'"),
        ({"preset": "paper"}, "no settings for 'tiny'"),
        ({"save_every": 2}, "give output_dir"),
        ({"train_size": 0}, "no training questions"),
        ({"optimizer": "adamw", "learning_rate": 0.5}, "adamw has no setting 'learning_rate'. It has lr, weight_decay"),
        ({"optimizer": "adamw", "beta1": 0.1}, "adamw has no setting 'beta1'"),
        ({"optimizer": "ivon", "learning_rate": 0.5}, "ivon has no setting 'learning_rate'. It has .* ess"),
    ],
)
def test_wrong_options_are_named(tiny_model, task, wrong, words):
    with pytest.raises(ValueError, match=words):
        finetune(tiny_model("llama"), task, **{**OPTIONS, **wrong})


@pytest.mark.parametrize("value", [np.float32(0.25), torch.tensor(0.25)], ids=["NumPy", "torch"])
@pytest.mark.parametrize("optimizer", ["ivon", "adamw"])
def test_settings_are_kept_as_plain_numbers(tiny_model, task, tmp_path, optimizer, value):
    counts = {"steps": np.int64(1), "batch_size": np.int64(2), "accumulation": np.int64(1), "seed": np.int64(3)}
    run = finetune(tiny_model("llama"), task, optimizer=optimizer, lr=value, **{**OPTIONS, **counts})
    assert type(run.config["settings"]["lr"]) is float and run.config["settings"]["lr"] == 0.25
    assert (run.save(tmp_path / "run") / "run.json").is_file()


@pytest.mark.parametrize("preset", ["small", "paper"])
def test_a_preset_knows_its_optimizers(preset):
    with pytest.raises(ValueError, match="There is no optimizer 'sgd'. Known: "):
        hyperparameters("sgd", preset, "boolq")


def test_presets_of_the_paper_give_its_noise():
    """σ = 1/√(λ h₀): 0.0183, 0.0058 and 0.0316 (Table 2 and the text of the paper)."""
    for task, sigma in (("boolq", 0.0183), ("winogrande_m", 0.0058), ("arc_easy", 0.0316)):
        settings = hyperparameters("ivon", "paper", task)
        assert 1 / (settings["ess"] * settings["hess_init"]) ** 0.5 == pytest.approx(sigma, abs=5e-5)
    assert hyperparameters("adamw", "paper", "boolq") == {"lr": 5e-5, "weight_decay": 0.0}


def test_the_small_preset_follows_the_length_of_the_run(monkeypatch):
    first, last = {"lr": 0.2, "ess": 8e5, "beta2": 1 - 1e-5}, {"lr": 0.2, "ess": 2e5, "beta2": 1 - 1e-3}
    monkeypatch.setattr("ivon_lora_lite.training.presets._SMALL", {"ivon": {200: first, 800: last}})

    def at(steps):
        settings = hyperparameters("ivon", "small", "any", steps)
        return {name: settings[name] for name in first}

    assert at(None) == at(200) == at(1) == first and at(800) == at(100_000) == last
    assert at(400) == {"lr": 0.2, "ess": pytest.approx(4e5), "beta2": pytest.approx(1 - 1e-4, abs=1e-9)}
    shared = {"beta1": 0.9, "clip_radius": 1e-3, "weight_decay": 0.0, "rescale_lr": False, "hess_init": 1e-3}
    assert hyperparameters("ivon", "small", "any", 400) == {**shared, **at(400)}


def test_a_run_takes_the_settings_of_its_length(tiny_model, task, monkeypatch):
    table = {"adamw": {2: {"lr": 1e-3}, 8: {"lr": 1e-5}}}
    monkeypatch.setattr("ivon_lora_lite.training.presets._SMALL", table)
    rates = {s: finetune(tiny_model(), task, optimizer="adamw", steps=s, progress=False) for s in (1, 4, 9)}
    assert {s: run.config["settings"]["lr"] for s, run in rates.items()} == {1: 1e-3, 4: 1e-4, 9: 1e-5}


def test_diagnostics_by_hand():
    w = torch.nn.Parameter(torch.tensor([3.0, -4.0]))
    optimizer = IVON([w], lr=0.1, ess=4.0, hess_init=1.0, weight_decay=0.0, clip_radius=0.5, beta1=0.0, beta2=0.5,
                     rescale_lr=False, hess_approx="gradsq", seed=0)  # fmt: skip
    start = optimizer.diagnostics()
    assert start["sigma_mean"] == pytest.approx(0.5) and start["variance_drift"] == pytest.approx(1.0)
    assert start["noise_to_weight"] == pytest.approx(0.5 / 12.5**0.5)
    with optimizer.sampled_params(train=True):
        w.grad = torch.tensor([0.1, 10.0])
    optimizer.step()
    # ĥ = λĝ² = 0.04 and 400;  h ← ½ h + ½ ĥ + ½·¼ (h − ĥ)²/h
    h = torch.tensor([0.52 + 0.125 * 0.96**2, 200.5 + 0.125 * 399.0**2])
    now = optimizer.diagnostics()
    assert now["hess_moved"] == 1.0
    assert now["sigma_mean"] == pytest.approx(float((1 / (4 * h)).sqrt().mean()))
    assert now["variance_drift"] == pytest.approx(float((1 / h).mean()))
    m, v = w.detach().double(), 1 / (4 * h.double())
    prior = (m.square() + v).mean()
    assert now["kl"] == pytest.approx(float(0.5 * ((m**2 + v) / prior - 1 - (v / prior).log()).sum()), rel=1e-5)
    assert now["clipped"] == float(((torch.tensor([0.1, 10.0]) / h) >= 0.5).float().mean())


def test_advice_follows_the_heuristics():
    fine = {"variance_drift": 1.1, "noise_to_weight": 1.0, "skipped_steps": 0.0}
    assert advice(fine) == []
    assert "larger hess_init" in advice({**fine, "variance_drift": 0.1})[0]
    assert "smaller hess_init" in advice({**fine, "variance_drift": 5.0})[0]
    assert "larger ess" in advice({**fine, "noise_to_weight": 10.0})[0]
    assert "3 steps were skipped" in advice({**fine, "skipped_steps": 3.0})[0]


# ------------------------------------------------------------------------------------ start, schedule and callbacks


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["ivon", "adamw"])
def test_a_run_begins_from_the_weights_it_is_given(tiny_model, task, optimizer):
    model = tiny_model("llama")
    first = finetune(model, task, optimizer="adamw", **OPTIONS)
    kept = {name: w.clone() for name, w in first.weights.items()}
    still = finetune(model, task, optimizer=optimizer, start=first.weights, lr=0.0, **OPTIONS)
    fresh = finetune(model, task, optimizer=optimizer, lr=0.0, **OPTIONS)
    assert torch.equal(flat(still.weights), flat(first.weights)) and not torch.equal(
        flat(fresh.weights), flat(first.weights)
    )
    moved = finetune(model, task, optimizer=optimizer, start=first.weights, **OPTIONS)
    assert not torch.equal(flat(moved.weights), flat(first.weights))
    assert all(torch.equal(w, kept[name]) for name, w in first.weights.items())  # a copy was trained
    assert (still.config["continued"], fresh.config["continued"]) == (True, False)


def test_a_start_that_does_not_fit_is_refused(tiny_model, task):
    model = tiny_model("llama")
    start = {name: p.detach().clone() for name, p in trainable(model).items()}
    name = next(iter(start))
    with pytest.raises(ValueError, match="another rank or base model"):
        finetune(model, task, start={**start, name: torch.zeros(3, 3)}, **OPTIONS)
    del start[name]
    with pytest.raises(ValueError, match="which the weights lacks"):
        finetune(model, task, start=start, **OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["ivon", "adamw"])
def test_the_learning_rate_decays_or_stays(tiny_model, task, optimizer):
    model, rates = tiny_model("llama"), {}
    for schedule in ("linear", "constant"):
        run = finetune(model, task, optimizer=optimizer, schedule=schedule, lr=1e-3, **OPTIONS)
        rates[schedule] = [r["learning_rate"] for r in run.history if "learning_rate" in r]
        assert run.config["schedule"] == schedule
    assert rates["constant"] == [1e-3] * 6
    assert rates["linear"] == pytest.approx([1e-3 * (6 - i) / 6 for i in range(6)])
    assert finetune(model, task, optimizer=optimizer, **OPTIONS).config["schedule"] == "linear"
    with pytest.raises(ValueError, match="no schedule 'cosine'. Known: linear, constant"):
        finetune(model, task, schedule="cosine", **OPTIONS)


@pytest.mark.slow
def test_callbacks_are_called_beside_the_evaluation(tiny_model, task):
    class Steps(TrainerCallback):
        seen = []

        def on_step_end(self, args, state, control, model=None, **kwargs):
            self.seen.append((state.global_step, set(trainable(model))))

    model = tiny_model("llama")
    run = finetune(model, task, callbacks=[Steps()], eval_every=3, **OPTIONS)
    assert Steps.seen == [(step, set(run.weights)) for step in range(1, 7)]
    assert [r["step"] for r in run.history if "eval_nll" in r] == [3, 6]
    assert torch.equal(flat(run.weights), flat(finetune(model, task, **OPTIONS).weights))


@pytest.mark.parametrize("kind", [ProgressCallback, NotebookProgressCallback], ids=lambda kind: kind.__name__)
def test_progress_is_one_bar_also_in_a_notebook(tiny_model, task, monkeypatch, kind):
    """transformers' own callback in a notebook shows a table that grows by a row with every log."""
    monkeypatch.setattr(transformers_trainer, "DEFAULT_PROGRESS_CALLBACK", kind)
    shown = []

    def remember(self, *args, **kwargs):
        made(self, *args, **kwargs)
        shown.append(self.callback_handler.callbacks)

    made = train_module.AnswerTrainer.__init__
    monkeypatch.setattr(train_module.AnswerTrainer, "__init__", remember)
    finetune(tiny_model("llama"), task, **{**OPTIONS, "progress": True, "steps": 2})
    (callbacks,) = shown
    bars = [c for c in callbacks if isinstance(c, (ProgressCallback, NotebookProgressCallback))]
    assert [type(bar) for bar in bars] == [Bar] and bars[0].training_bar is None  # closed at the end


def test_checkpoints_say_nothing_of_a_hub_that_cannot_be_reached(tiny_model, task, tmp_path):
    model = tiny_model("llama")
    model.peft_config["default"].base_model_name_or_path = "somebody/a-model"  # PEFT looks there for a configuration
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        finetune(model, task, output_dir=tmp_path, save_every=2, **OPTIONS)
    assert not [str(w.message) for w in said if "config" in str(w.message)]
    assert (tmp_path / "checkpoint-6" / "adapter_model.safetensors").is_file()


def test_one_process_trains_on_one_device(tiny_model, monkeypatch):
    from transformers import TrainingArguments

    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: self.__dict__.get("_n_gpu", 4) or 4))
    config = {"optimizer": "adamw", "settings": {"lr": 1e-3, "weight_decay": 0.0}, "steps": 2, "batch_size": 4}
    config |= {"accumulation": 1, "schedule": "linear", "seed": 0, "model": {}}
    assert train_module._arguments(tiny_model(), config, "nowhere", 0, False)._n_gpu == 1


@pytest.mark.parametrize("device, described, dtype, scaled", [
    ("cuda", "float16", torch.float32, True),  # in 8 bits: embeddings and norms are fp32
    ("cuda", None, torch.float16, True),  # loaded by somebody else
    ("cuda", "bfloat16", torch.bfloat16, False),
    ("cpu", "float16", torch.float16, False),
])  # fmt: skip
def test_the_loss_is_scaled_where_the_base_is_fp16(device, described, dtype, scaled, monkeypatch):
    made = {}

    def arguments(**options):
        made.update(options)
        return SimpleNamespace(n_gpu=1, device=torch.device(device))

    monkeypatch.setattr(train_module, "TrainingArguments", arguments)
    model = SimpleNamespace(device=torch.device(device), parameters=lambda: iter([torch.zeros(1, dtype=dtype)]))
    config = {"optimizer": "ivon", "settings": {"lr": 0.1}, "steps": 2, "batch_size": 4, "accumulation": 1, "seed": 0}
    config |= {"schedule": "linear", "model": {} if described is None else {"dtype": described}}
    train_module._arguments(model, config, "nowhere", 0, False)
    assert made["fp16"] is scaled


@pytest.mark.parametrize("of_model, of_trainer, spread, refused", [
    ("cuda:1", "cuda:0", {}, True),
    ("cuda:1", "cuda", {}, True),
    ("cuda:1", "cuda:0", {"": 1}, True),
    ("cuda:0", "cuda", {}, False),
    ("cuda:1", "cuda:1", {}, False),
    ("cuda:1", "cuda:0", {"a": 0, "b": 1}, False),
    ("cpu", "cuda:1", {}, False),
])  # fmt: skip
def test_a_model_on_another_gpu_than_the_trainers_is_refused(of_model, of_trainer, spread, refused):
    model = SimpleNamespace(device=torch.device(of_model), hf_device_map=spread)
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES=1") if refused else nullcontext():
        check_device(model, torch.device(of_trainer))


def test_checkpoints_with_other_evaluations_are_of_another_run(tiny_model, task, tmp_path):
    options = {"steps": 4, "train_size": 8, "progress": False, "output_dir": tmp_path, "save_every": 2}
    finetune(tiny_model(), task, eval_every=0, **options)
    with pytest.raises(ValueError, match="another run .eval_every 0, now 2"):
        finetune(tiny_model(), task, eval_every=2, eval_size=4, resume=True, **options)
    finetune(tiny_model(), task, eval_every=0, resume=True, **options)


def test_a_run_that_is_replaced_leaves_other_files_in_its_folder(tiny_model, task, tmp_path):
    run = finetune(tiny_model(), task, steps=1, train_size=8, progress=False, eval_every=0)
    run.save(tmp_path / "run")
    run.save_draw(tmp_path / "run" / "draw-0")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    run.posterior = None
    run.config["optimizer"] = "adamw"
    run.save(tmp_path / "run", overwrite=True)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "run" / "draw-0" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "run" / "posterior.safetensors").exists()
