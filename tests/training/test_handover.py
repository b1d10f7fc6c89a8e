"""A run handed over: one draw as a plain adapter, merged into a plain model, and its card."""

from __future__ import annotations

import re
from dataclasses import replace

import peft
import pytest
import torch
import transformers
from conftest import ROOT
from huggingface_hub import ModelCard

from ivon_lora_lite import LoraSettings, finetune, load_model, load_run, load_task, predict, score
from ivon_lora_lite.cli import main
from ivon_lora_lite.language import EMBEDDED, HUB_ID
from ivon_lora_lite.training import Run, ask, write_card
from ivon_lora_lite.training.asking import TAUS

SHORT = {"steps": 2, "train_size": 8, "progress": False, "eval_every": 0}


@pytest.fixture(scope="module")
def task():
    return load_task("everyday@1")


@pytest.fixture
def run(tiny_folder, task):
    return finetune(load_model(tiny_folder, dtype="fp32"), task, **SHORT, ess=2e3)


def logits_of(model, tokenizer, task):
    model.tokenizer = tokenizer
    return predict(model.eval(), task.test[:4]).logits


def test_a_draw_is_an_adapter_that_plain_peft_reads(run, task, tiny_folder, tmp_path):
    run.save_draw(tmp_path / "draw", seed=2, tau=0.5)
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {f.name for f in (tmp_path / "draw").iterdir()}
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "draw")
    expected = predict(run, task.test[:4], samples=3, tau=0.5, seed=0).logits[2:]
    torch.testing.assert_close(logits_of(model, run.model.tokenizer, task), expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(FileExistsError):
        run.save_draw(tmp_path / "draw")
    point = finetune(run.model, task, optimizer="adamw", **SHORT)
    with pytest.raises(ValueError, match="no posterior to draw from"):
        point.save_draw(tmp_path / "other")


@pytest.mark.parametrize("seed", [None, 1])
def test_a_merged_model_is_a_plain_one_with_the_same_logits(run, task, tmp_path, seed):
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.merge(tmp_path / "merged", seed=seed)
    assert all(torch.equal(p, before[name]) for name, p in run.model.named_parameters())
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert not any("lora" in name for name, _ in model.named_parameters())
    expected = predict(run, task.test[:4]) if seed is None else predict(run, task.test[:4], samples=1, seed=seed)
    torch.testing.assert_close(logits_of(model, tokenizer, task), expected.logits, atol=1e-4, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings", "ignore:Input and output embeddings")
@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_lora_on_one_of_two_tied_layers_is_merged_into_that_one_alone(tiny_model, task, tmp_path, layer):
    tied = tiny_model(lora=False, tie_word_embeddings=True)
    tied.save_pretrained(tmp_path / "base")
    tied.tokenizer.save_pretrained(tmp_path / "base")
    lora = LoraSettings(targets=("q_proj", layer))
    model = load_model(tmp_path / "base", dtype="fp32", device="cpu", lora=lora, progress=False)
    run = finetune(model, task, optimizer="adamw", **SHORT, lr=0.1)
    run.merge(tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    expected = predict(run, task.test[:4]).logits
    torch.testing.assert_close(logits_of(merged, model.tokenizer, task), expected, atol=1e-4, rtol=1e-3)


def test_a_quantised_model_is_not_merged_into(run, tmp_path):
    run.model.get_base_model().is_quantized = True  # as transformers marks it, whoever loaded it
    with pytest.raises(ValueError, match="cannot be merged into a quantised model"):
        run.merge(tmp_path / "merged")


def test_the_card_says_what_it_is_and_how_good(tiny_folder, tmp_path, capsys):
    out = tmp_path / "run"
    common = ["--model", str(tiny_folder), "--steps", "2", "--quiet", "--train-size", "8", "--test-size", "4"]
    assert main(["finetune", *common, "--samples", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    card = ModelCard.load(out / "README.md")
    assert card.data.base_model == str(tiny_folder) and card.data.library_name == "peft" and "ivon" in card.data.tags
    acc = printed[printed.index("IVON, 2 draws: ACC ") :].split()[4]
    assert f"| IVON, 2 draws | {acc} |" in card.text and "a person should answer" in card.text
    assert 'run.save_draw("draw", seed=0)' in card.text and "τ = " not in card.text
    run = load_run(out)
    again = finetune(run.model, load_task("everyday@1"), optimizer="adamw", **SHORT)
    again.save(tmp_path / "adamw")
    text = (tmp_path / "adamw" / "README.md").read_text("utf8")
    assert "posterior" not in text and "AutoPeftModelForCausalLM" in text


def test_the_card_of_a_classifier_says_how_to_load_it(tiny_folder, tmp_path, monkeypatch):
    rows = [f"I {'love' if i % 2 else 'hate'} it {i},{'good' if i % 2 else 'bad'}" for i in range(40)]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label", *rows]))
    monkeypatch.chdir(tmp_path)
    model = load_model(tiny_folder, labels=2, dtype="fp32", device="cpu", progress=False)
    run = finetune(model, load_task("reviews.csv"), **SHORT, format="class", ess=2e3)
    text = (run.save("run") / "README.md").read_text("utf8")
    assert "AutoPeftModelForSequenceClassification.from_pretrained(FOLDER, num_labels=2)" in text
    assert 'load_task("reviews.csv").test' in text
    names = {"FOLDER": "run"}
    for code in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(code, names)
    head = [p for name, p in names["model"].named_parameters() if name.endswith("modules_to_save.default.weight")]
    assert len(head) == 1 and (tmp_path / "draw" / "adapter_model.safetensors").is_file()
    torch.testing.assert_close(head[0].detach(), next(w for name, w in run.weights.items() if "score" in name))


def test_a_chosen_temperature_is_in_the_card_and_is_what_the_run_predicts_with(tiny_folder, tmp_path, capsys):
    out = tmp_path / "run"
    common = ["--model", str(tiny_folder), "--steps", "2", "--quiet", "--train-size", "8", "--test-size", "4"]
    command = ["finetune", *common, "--samples", "2", "--ess", "100", "--choose-tau", "brier", "--out", str(out)]
    assert main(command) == 0
    printed, run = capsys.readouterr().out, load_run(out)
    chosen = run.config["tau"]
    assert chosen["objective"] == "brier" and chosen["questions"] == 100
    assert chosen["why"] in printed and chosen["why"] in (out / "README.md").read_text("utf8")
    assert chosen["why"].startswith(f"τ = {chosen['value']:g} ")

    held_out = load_task("everyday").validation[:100]
    taus = {tau: score(predict(run, held_out, samples=2, tau=tau))["brier"] for tau in TAUS}
    assert min(taus, key=taus.get) == chosen["value"]

    pinned = replace(run, config={**run.config, "tau": {"value": 0.5}})  # whatever it chose: another one than 1
    question = held_out[:1]
    by_default, *asked = [ask(pinned, question, samples=2, tau=tau)[0] for tau in (None, 0.5, 1)]
    assert torch.equal(by_default.draws, asked[0].draws) and not torch.equal(by_default.draws, asked[1].draws)


def test_a_temperature_is_chosen_for_draws_only(tiny_folder, tmp_path, capsys):
    command = ["finetune", "--model", str(tiny_folder), "--out", str(tmp_path / "run"), "--choose-tau"]
    assert main([*command, "--optimizer", "adamw"]) == 2 and "about the draws of IVON" in capsys.readouterr().err
    assert main([*command, "--samples", "0"]) == 2


def test_a_run_is_served_as_the_page_says(run, task, tiny_folder, tmp_path, monkeypatch):
    service, code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "serving.md").read_text("utf8"), re.S)
    monkeypatch.chdir(tmp_path)
    run.save("outputs/run")
    names = {}
    exec(service.replace("outputs/quiz", "outputs/run"), names)
    asked = run.ask("Which one melts ice?", ["salt", "sand", "wood"])
    torch.testing.assert_close(names["answer"].draws, asked.draws)
    for seed in (0, 1):
        run.save_draw(f"outputs/draw-{seed}", seed=seed)
    names = {}
    exec(code.replace('"base"', repr(str(tiny_folder))), names)
    model, tokenizer = names["model"], run.model.tokenizer
    drawn = predict(run, task.test[:4], samples=2).logits
    torch.testing.assert_close(logits_of(model, tokenizer, task), drawn[:1], atol=1e-4, rtol=1e-3)
    model.set_adapter("mean")
    at_mean = predict(run, task.test[:4]).logits
    torch.testing.assert_close(logits_of(model, tokenizer, task), at_mean, atol=1e-4, rtol=1e-3)


def test_the_card_names_the_embedded_model_as_the_hub_does(tmp_path):
    config = {"model": {"name": EMBEDDED}, "optimizer": "ivon", "task": "everyday@2", "format": "text"}
    write_card(tmp_path, config)
    assert ModelCard.load(tmp_path / "README.md").data.base_model == HUB_ID


def test_a_run_that_was_made_by_hand_says_what_its_config_lacks(run, tmp_path):
    bare = Run(run.model, run.weights, run.posterior, {"task": "chat", "format": "text"})
    with pytest.raises(ValueError, match="does not say model, optimizer, seed"):
        bare.save(tmp_path / "bare")
    assert not (tmp_path / "bare").exists()
    bare.config |= {"model": {}, "optimizer": "ivon", "seed": 0}
    bare.save(tmp_path / "bare")
    assert load_run(tmp_path / "bare", run.model).config == bare.config
    with pytest.raises(ValueError, match="does not say how to load the model"):
        load_run(tmp_path / "bare")


def test_a_run_can_be_loaded_in_another_way_than_it_was_trained(tiny_folder, tmp_path, task):
    model = load_model(str(tiny_folder), dtype="fp32", device="cpu", progress=False)
    run = finetune(model, task, optimizer="adamw", **SHORT)
    run.config["model"]["quantize"] = "8bit"
    run.save(tmp_path / "run")
    options = {"progress": False, "device": "cpu"}
    with pytest.raises(ValueError, match="does not load.*such as load_run"):
        load_run(tmp_path / "run", **options)
    again = Run.load(tmp_path / "run", quantize=None, dtype="bf16", **options)
    assert next(again.model.parameters()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="quantize says how to load"):
        load_run(tmp_path / "run", model, quantize=None)
