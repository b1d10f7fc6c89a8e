"""One text per draw, their consensus, and the uncertainty of tokens, against transformers and by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ivon_lora_lite import finetune, generate, load_task, token_uncertainty
from ivon_lora_lite.generation import consensus, word_f1
from ivon_lora_lite.plots import tokens_html

SHORT = {"steps": 2, "train_size": 8, "progress": False, "eval_every": 0}
PROMPTS = ["Ice melts when", "The colour of the sky is"]


@pytest.fixture
def run(tiny_model):
    return finetune(tiny_model(trained=True), load_task("everyday@1"), **SHORT, ess=500.0)


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
    with pytest.raises(ValueError, match="expected a list with at least one prompt"):
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
    finally:
        tokenizer.chat_template = None


def test_sampling_is_seeded(run):
    options = {"samples": 2, "max_new_tokens": 8, "do_sample": True, "temperature": 2.0}
    one, same, other = (generate(run, PROMPTS[:1], seed=s, **options)[0].texts for s in (1, 1, 2))
    assert one == same and one != other


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


def test_the_heat_map_shades_what_is_unsure():
    page = tokens_html(["a <b>", " c"], torch.tensor([0.0, 0.5]), "nats")
    assert "rgba(194, 37, 92, 0.00)'>a &lt;b&gt;</span>" in page and "rgba(194, 37, 92, 0.75)'> c</span>" in page
    assert "title='0.500'" in page and "the darkest shade 0.500" in page
    with pytest.raises(ValueError):
        tokens_html(["a"], torch.tensor([0.0, 0.5]))
