"""One text per draw, their consensus, and the uncertainty of tokens, against transformers and by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import transformers
from tokenizers import processors

from ivon_lora_lite import GaussianPosterior, Run, finetune, generate, load_task, token_uncertainty
from ivon_lora_lite.generation import consensus, word_f1
from ivon_lora_lite.generation.texts import prompt_tokens
from ivon_lora_lite.plots import tokens_html

SHORT = {"steps": 2, "train_size": 8, "progress": False, "eval_every": 0}
PROMPTS = ["Ice melts when", "The colour of the sky is"]


@pytest.fixture
def run(tiny_model):
    return finetune(tiny_model(trained=True), load_task("everyday@1"), **SHORT, ess=500.0)


def without_training(model, variance=1e-3):
    posterior = GaussianPosterior.isotropic(model, variance)
    return Run(model, posterior.mean, posterior, {"format": "text"})


def test_each_draw_writes_what_transformers_writes_with_its_weights(run):
    found = generate(run, PROMPTS, samples=3, seed=5, max_new_tokens=6)
    model, tokenizer = run.model, run.model.tokenizer
    for prompt, generated in zip(PROMPTS, found):
        assert generated.prompt == prompt and len(generated.texts) == 3
        for s, text in enumerate(generated.texts):
            with run.posterior.applied(model, 5 + s):
                ids = tokenizer(prompt, return_tensors="pt").input_ids
                out = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
            assert text == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert any(len(set(generated.texts)) > 1 for generated in found)  # this much noise changes the text
    again = generate(run, PROMPTS[1:], samples=3, seed=5, max_new_tokens=6)
    assert again[0].texts == found[1].texts  # padding and neighbours change nothing


def test_a_run_without_posterior_writes_one_text(tiny_model):
    run = finetune(tiny_model(trained=True), load_task("everyday@1"), optimizer="adamw", **SHORT)
    (generated,) = generate(run, PROMPTS[:1], max_new_tokens=4)
    assert generated.texts == () and generated.consensus == generated.at_mean
    with pytest.raises(ValueError, match="no posterior to draw from"):
        token_uncertainty(run, PROMPTS[0], "it is warm")
    with pytest.raises(ValueError, match="expected a list of prompts"):
        generate(run, [])


def test_chats_go_through_the_template(run):
    with pytest.raises(ValueError, match="has no chat template"):
        generate(run, PROMPTS, chat=True, samples=1)
    tokenizer = run.model.tokenizer
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    try:
        options = {"samples": 2, "max_new_tokens": 4}
        asked, spelled = generate(run, ["Hi", [{"role": "user", "content": "Hi"}]], **options)
        (plain,) = generate(run, ["user: Hi\nassistant:"], chat=False, **options)
        assert asked.texts == spelled.texts == plain.texts
        with pytest.raises(ValueError, match="A chat without messages"):
            generate(run, [[]], **options)
    finally:
        tokenizer.chat_template = None


def test_sampling_is_seeded(run):
    options = {"samples": 2, "max_new_tokens": 8, "do_sample": True, "temperature": 2.0}
    one, same, other = (generate(run, PROMPTS[:1], seed=s, **options)[0].texts for s in (1, 1, 2))
    assert one == same and one != other


def test_several_texts_a_draw_and_a_prompt_in_no_list_are_refused(tiny_model):
    run = without_training(tiny_model())
    with pytest.raises(ValueError, match="A draw writes one text: leave num_return_sequences out"):
        generate(run, PROMPTS, samples=1, max_new_tokens=2, do_sample=True, num_return_sequences=2)
    with pytest.raises(ValueError, match="prompts is 'Ice melts when'; expected a list"):
        generate(run, PROMPTS[0], samples=1, max_new_tokens=2)


def test_a_prompt_without_tokens_and_counts_that_are_too_small_are_refused(tiny_model):
    run = without_training(tiny_model())
    with pytest.raises(ValueError, match="The prompt '' has no tokens"):
        generate(run, [PROMPTS[0], ""], chat=False)
    with pytest.raises(ValueError, match="The prompt '' has no tokens"):
        token_uncertainty(run, "", " it is warm", chat=False)
    with pytest.raises(ValueError, match="samples is -3; expected a whole number of at least 0"):
        generate(run, PROMPTS, samples=-3)
    with pytest.raises(ValueError, match="batch_size is 0; expected a whole number of at least 1"):
        generate(run, PROMPTS, batch_size=0)


def test_a_generation_config_says_how_many_tokens_are_written(tiny_model, monkeypatch):
    run, made = without_training(tiny_model()), []
    write = run.model.generate

    def spy(**options):
        out = write(**options)
        made.append(out.shape[1] - options["input_ids"].shape[1])
        return out

    monkeypatch.setattr(run.model, "generate", spy)
    generate(run, PROMPTS, samples=1, generation_config=transformers.GenerationConfig(max_new_tokens=3))
    assert made == [3, 3]  # at the mean and of the draw


@pytest.mark.parametrize("template", ["<s> $A </s>", "$A </s>"])
def test_a_prompt_does_not_end_with_the_templates_end_of_text(tiny_tokenizer, template):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    front = [1] * template.startswith("<s>")
    assert prompt_tokens(tokenizer, PROMPTS[0]) == front + tiny_tokenizer(PROMPTS[0])["input_ids"]


# ------------------------------------------------------------------------------------------------ consensus


def test_words_in_common_by_hand():
    assert word_f1("the red car", "a red car") == pytest.approx(2 / 3)
    assert word_f1("A b", "b a") == 1.0 and word_f1("a", "b") == 0.0
    assert word_f1("", "") == 1.0 and word_f1("", "a") == 0.0


def test_the_consensus_is_what_the_others_agree_with_most():
    assert consensus(["a b", "a b c", "x y"]) == (0, pytest.approx((0.8 + 0.0) / 2))
    assert consensus(["same", "same"]) == (0, 1.0) and consensus(["one"]) == (0, 1.0)
    exact = consensus(["x", "y", "y"], utility=lambda a, b: float(a == b))
    assert exact == (1, 0.5)
    with pytest.raises(ValueError, match="no texts"):
        consensus([])


# ------------------------------------------------------------------------------------------------ tokens


def test_token_uncertainty_by_hand(run):
    text = " warm and wet"
    found = token_uncertainty(run, PROMPTS[0], text, samples=4, seed=2)
    model, tokenizer = run.model, run.model.tokenizer
    start, own = (tokenizer(t, add_special_tokens=k == 0)["input_ids"] for k, t in enumerate((PROMPTS[0], text)))
    assert len(found.tokens) == len(own) and "".join(found.tokens).strip() == text.strip()
    probs = []
    for s in range(4):
        with run.posterior.applied(model, 2 + s), torch.no_grad():
            logits = model(input_ids=torch.tensor([start + own])).logits[0].double()
        probs.append(logits.softmax(-1)[len(start) - 1 : -1])
    probs = torch.stack(probs)
    average = probs.mean(0)
    for t, token in enumerate(own):
        assert float(found.probability[t]) == pytest.approx(float(average[t, token]), rel=1e-5)
        h = -sum(p * math.log(p) for p in average[t].tolist() if p > 0)
        inner = sum(-sum(p * math.log(p) for p in probs[s, t].tolist() if p > 0) for s in range(4)) / 4
        assert float(found.entropy[t]) == pytest.approx(h, rel=1e-5)
        assert float(found.mutual_information[t]) == pytest.approx(h - inner, rel=1e-4, abs=1e-8)
    assert found.mutual_information.max() > 0
    with pytest.raises(ValueError, match="has no tokens"):
        token_uncertainty(run, PROMPTS[0], "")


def test_the_tokens_of_a_generated_text_are_those_that_were_generated(tiny_model):
    model = tiny_model(trained=True)
    tokenizer, word = model.tokenizer, " goes"
    (token,) = tokenizer(word)["input_ids"]
    head = model.get_output_embeddings()
    head.weight.data *= 0.1
    head.bias = torch.nn.Parameter(10.0 * (torch.arange(len(head.weight)) == token), requires_grad=False)
    run = without_training(model, 1e-12)
    (generated,) = generate(run, PROMPTS[:1], samples=1, max_new_tokens=1)
    assert generated.at_mean == generated.texts[0] == word
    found = token_uncertainty(run, PROMPTS[0], generated.consensus, samples=1)
    assert found.tokens == (word,) and float(found.probability[0]) > 0.9


def test_the_heat_map_shades_what_is_unsure():
    page = tokens_html(["a <b>", " c"], torch.tensor([0.0, 0.5]), "nats")
    assert "rgba(194, 37, 92, 0.00)'>a &lt;b&gt;</span>" in page and "rgba(194, 37, 92, 0.75)'> c</span>" in page
    assert "title='0.500'" in page and "the darkest shade 0.500" in page
    with pytest.raises(ValueError):
        tokens_html(["a"], torch.tensor([0.0, 0.5]))


def test_another_active_adapter_is_refused(run):
    run.model.add_adapter("other", run.model.peft_config["default"])
    run.model.set_adapter("other")
    for ask in (lambda: generate(run, PROMPTS), lambda: token_uncertainty(run, PROMPTS[0], "it is warm")):
        with pytest.raises(ValueError, match="set_adapter first"):
            ask()


def test_a_chat_alone_and_a_classifier_are_refused(run):
    with pytest.raises(ValueError, match="a chat is a list in it"):
        generate(run, [{"role": "user", "content": "Hello"}])
    run.config["format"] = "class"
    with pytest.raises(ValueError, match="writes no texts"):
        generate(run, PROMPTS)
