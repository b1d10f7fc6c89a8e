"""Sequence classification, as DeBERTa on GLUE: the head is trained and saved with LoRA, with and without gates."""

import json
from dataclasses import replace

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from test_tasks_glue_mmlu import glue, isolated  # noqa: F401 (a fixture)

from ivon_lora_lite import (
    LoraSettings,
    Run,
    answer_logits,
    collate,
    finetune,
    load_model,
    load_run,
    load_task,
    lora_parameters,
    memory_of,
    predict,
    reset_lora,
    trainable,
)
from ivon_lora_lite.cli import main
from ivon_lora_lite.gates import GateSettings, add_gates, bit_operations, remove_gates
from ivon_lora_lite.posterior import read_weights

# the pooler is not in a DeBERTa's checkpoint, so it is as new as the classifier
HEAD = {f"base_model.model.{module}.{kind}" for module in ("classifier", "pooler.dense") for kind in ("weight", "bias")}


@pytest.fixture(scope="module")
def deberta(tiny_tokenizer, tmp_path_factory):
    """A random DeBERTa-v3 of two layers and its tokenizer, as a folder."""
    config = transformers.AutoConfig.for_model(
        "deberta-v2", vocab_size=len(tiny_tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=128, pad_token_id=0, type_vocab_size=0, pooler_hidden_size=32,
        relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16, norm_rel_ebd="layer_norm",
        share_att_key=True, position_biased_input=False, initializer_range=0.4,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("deberta")
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def task(tmp_path):
    return load_task("glue/rte", hub=glue(tmp_path / "hub", "rte"))


def classifier(folder, labels=2, **options):
    model = load_model(folder, labels=labels, device="cpu", dtype="fp32", **options)
    reset_lora(model, 0)
    for p in lora_parameters(model):
        p.data += 0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return model


def test_logits_are_the_heads_and_padding_does_not_change_them(deberta, task):
    model = classifier(deberta)
    questions = [task.test[0], replace(task.test[1], stem=f"{task.test[1].stem} And some more words."), task.test[2]]
    together = answer_logits(model, collate(questions, model.tokenizer, "class"), "class")
    assert together.shape == (3, 2)
    for question, expected in zip(questions, together):
        tokens = model.tokenizer(question.stem, return_tensors="pt")
        by_hand = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits[0]
        torch.testing.assert_close(by_hand, expected, atol=1e-5, rtol=1e-5)


def test_lora_and_the_head_are_trained_and_start_from_the_seed(deberta):
    model = load_model(deberta, labels=3, device="cpu")
    assert set(trainable(model)) > HEAD and len(trainable(model)) == 4 + 2 * 2 * 2  # query and value of two layers
    assert model.description["labels"] == 3 and {p.dtype for p in lora_parameters(model)} == {torch.float32}
    starts = []
    for seed in (1, 1, 2):
        reset_lora(model, seed)
        starts.append({name: p.detach().clone() for name, p in trainable(model).items()})
    same = [all(torch.equal(starts[0][n], other[n]) for n in HEAD) for other in starts[1:]]
    assert same == [True, False]
    weight = starts[0]["base_model.model.classifier.weight"]
    assert 0.01 < float(weight.std()) < 0.03 and not starts[0]["base_model.model.classifier.bias"].any()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["ivon", "adamw"])
def test_a_run_is_trained_saved_and_reloaded(deberta, task, tmp_path, optimizer):
    lr = {"ivon": 20.0, "adamw": 2e-2}[optimizer]  # IVON moves at most lr · clip_radius per step
    learn = [replace(q, stem=("no " if q.answer else "yes ") * 5) for q in task.train]
    model = load_model(deberta, labels=2, device="cpu", dtype="fp32")
    run = finetune(
        model, replace(task, train=learn), optimizer=optimizer, steps=60, batch_size=6, lr=lr, format="class",
        progress=False,
    )  # fmt: skip
    losses = [row["loss"] for row in run.history if "loss" in row]
    assert min(losses) < 0.5 * losses[0]
    folder = run.save(tmp_path / "run")
    again = load_run(folder)  # makes the classifier itself
    assert again.config["format"] == "class" and again.config["model"]["labels"] == 2
    at_mean = predict(run, task.test).logits
    torch.testing.assert_close(predict(again, task.test).logits, at_mean, atol=1e-5, rtol=1e-5)
    if optimizer == "ivon":
        assert set(run.posterior.variance) > HEAD
        draws = predict(run, task.test, samples=3)
        assert draws.logits.shape == (3, 6, 2) and draws.logits.std(0).min() > 0
        torch.testing.assert_close(predict(again, task.test, samples=3).logits, draws.logits, atol=1e-5, rtol=1e-5)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(deberta, num_labels=2)
    plain = peft.PeftModel.from_pretrained(base, folder).eval()
    tokens = model.tokenizer(task.test[0].stem, return_tensors="pt")
    logits = plain(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).logits[0]
    torch.testing.assert_close(logits, at_mean[0, 0], atol=1e-4, rtol=1e-4)


def test_gates_are_on_lora_alone_and_the_head_is_saved_with_the_learned_ranks(deberta, task, tmp_path):
    model = classifier(deberta, lora=LoraSettings(dropout=0.0))
    gates = add_gates(model)
    assert len(gates.layers) == 4 and set(trainable(model)) > HEAD
    with torch.no_grad():
        for layer, rank in zip(gates.layers, (0, 2, 3, 8)):
            layer.rank.phi.copy_(torch.where(torch.arange(8) < rank, 5.0, -5.0))
            layer.a.phi.fill_(-5.0)  # two bits
    batch = collate(task.test, model.tokenizer, "class")
    expected = answer_logits(model, batch, "class").detach()
    assert bit_operations(model).total == (2 + 3 + 8) * (32 * 2 + 32 * 32) * 16
    remove_gates(model).save_adapter(model, read_weights(model), tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert set(saved) > HEAD
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    base = transformers.AutoModelForSequenceClassification.from_pretrained(deberta, num_labels=2)
    plain = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    logits = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_a_gated_run_keeps_its_head(deberta, task, tmp_path):
    model = load_model(deberta, labels=2, device="cpu", dtype="fp32")
    run = finetune(model, task, steps=4, batch_size=2, format="class", progress=False, gates=GateSettings(prior=1.0))
    again = load_run(run.save(tmp_path / "run"))
    torch.testing.assert_close(predict(again, task.test).logits, predict(run, task.test).logits, atol=1e-5, rtol=1e-5)


def test_the_command_line_makes_a_classifier_of_the_tasks_labels(deberta, tmp_path, capsys):
    hub, out = glue(tmp_path / "hub", "mnli"), tmp_path / "run"
    command = ["finetune", "--task", "glue/mnli", "--hub", str(hub), "--model", deberta, "--format", "class"]
    command += ["--steps", "2", "--samples", "2", "--quiet", "--gates", "--out", str(out)]
    assert main(command) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "IVON, 2 draws: ACC" in said and "Gates: mean rank" in said
    assert load_run(out).weights["base_model.model.classifier.weight"].shape == (3, 32)


def test_what_does_not_fit_is_refused(deberta, task, tiny_model, questions):
    model = classifier(deberta)
    for format in ("text", "letter"):
        with pytest.raises(ValueError, match="is a sequence classifier: it needs format='class'"):
            predict(model, task.test, format=format)
    with pytest.raises(ValueError, match="is a language model: it needs format='text' or 'letter'"):
        predict(tiny_model(), task.test, format="class")
    with pytest.raises(ValueError, match="has 3 labels and the questions have 2 choices"):
        predict(classifier(deberta, labels=3), task.test, format="class")
    with pytest.raises(ValueError, match="differ: a classifier needs the same for all questions"):
        collate(questions, model.tokenizer, "class")
    with pytest.raises(ValueError, match="has 2000 tokens|more than the limit"):
        collate([replace(task.test[0], stem="word " * 2000)], model.tokenizer, "class")
    with pytest.raises(ValueError, match="labels is 1"):
        load_model(deberta, labels=1)


def test_a_classifier_of_ones_own_needs_no_description(deberta, task, tiny_tokenizer):
    base = transformers.AutoModelForSequenceClassification.from_pretrained(deberta, num_labels=2)
    own = peft.get_peft_model(base, peft.LoraConfig(target_modules=["query_proj", "value_proj"], task_type="SEQ_CLS"))
    own.tokenizer = tiny_tokenizer
    assert predict(own, task.test, format="class").logits.shape == (1, len(task.test), 2)
    with pytest.raises(ValueError, match="is a sequence classifier: it needs format='class'"):
        predict(own, task.test, format="text")


def test_a_run_is_asked_for_its_own_classes_only(deberta, task):
    model = classifier(deberta)
    classes = list(task.test[0].choices)
    run = Run(model, read_weights(model), None, {"format": "class", "classes": classes})
    assert predict(run, task.test).logits.shape == (1, len(task.test), 2)
    for others in (classes[::-1], ["bad", "good"]):
        with pytest.raises(ValueError, match=f"classes are {', '.join(classes)}.*has {', '.join(others)}"):
            predict(run, [replace(q, choices=tuple(others)) for q in task.test])


def test_training_continues_in_fp32_on_a_16_bit_base(deberta, tmp_path):
    options = {"labels": 2, "dtype": "bf16", "device": "cpu"}
    load_model(deberta, **options).save_pretrained(tmp_path)
    model = load_model(deberta, **options, adapter=tmp_path)
    assert set(trainable(model)) > HEAD and {p.dtype for p in lora_parameters(model)} == {torch.float32}
    assert next(model.parameters()).dtype == torch.bfloat16


def test_memory_of_an_encoder_is_counted(deberta):
    found = memory_of(transformers.AutoConfig.from_pretrained(deberta))
    assert found.lora == 4 * 8 * 4 * (32 + 32)  # bytes · rank · matrices · (in + out)


def test_a_classifier_of_other_classes_gets_a_new_head(tiny_tokenizer, tmp_path):
    config = transformers.BertConfig(
        vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=3
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    options = {"dtype": "fp32", "device": "cpu", "progress": False}
    assert load_model(tmp_path, labels=3, **options).description["new"] == []
    two = load_model(tmp_path, labels=2, **options)
    assert two.description["new"] == ["classifier"] and two.config.num_labels == 2
