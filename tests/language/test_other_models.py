"""Models of many kinds: packed where that is exact, and exact with a row for every choice elsewhere.

Each is compared with the plainest computation there is: one choice, one row, no padding, no batch.
"""

import copy
from dataclasses import replace

import pytest
import torch
import transformers
from test_scoring import naive_letter, naive_text
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ivon_lora_lite import (
    GaussianPosterior,
    LoraSettings,
    Run,
    collate,
    finetune,
    generate,
    linearized,
    load_model,
    predict,
)
from ivon_lora_lite.language.formats import FORMATS
from ivon_lora_lite.language.formats.base import appended
from ivon_lora_lite.language.formats.kinds import EXACT, known_exact, window
from ivon_lora_lite.methods import blob

SIZES = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.4,
}  # fmt: skip
HEADS = {"head_dim": 8}
SHORT = {"vocab_size": 512, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# name → (architecture, configuration, LoRA's targets, whether a packed row is exact)
KINDS = {
    **{name: (name, SIZES, None, True) for name in sorted(EXACT - {"gpt2", "qwen3", "gemma"})},
    "gemma": ("gemma", SIZES | HEADS, None, True),
    "qwen3": ("qwen3", SIZES | HEADS, None, True),
    "gpt2": ("gpt2", {"vocab_size": 512, "n_embd": 32, "n_layer": 2, "n_head": 4}, None, True),
    "mixtral": ("mixtral", SIZES | {"num_local_experts": 4}, None, True),
    "gemma2": ("gemma2", SIZES | HEADS, None, True),
    "opt": ("opt", SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32}, None, True),
    "xglm": (
        "xglm", {"vocab_size": 512, "d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4}, None, True,
    ),
    "a sliding window": ("mistral", SIZES | {"sliding_window": 6}, None, False),
    "a window in every other layer": ("gemma2", SIZES | HEADS | {"sliding_window": 6}, None, False),
    "a local window": (
        "gpt_neo", SHORT | {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
        "window_size": 6}, None, False,
    ),
    "a convolution": ("lfm2", SIZES | {"layer_types": ["conv", "full_attention"]}, None, False),
    "distances (Bloom)": ("bloom", SHORT | {"n_layer": 2, "n_head": 4}, ("query_key_value",), False),
    "distances (Falcon)": (
        "falcon", SHORT | {"num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True}, ("query_key_value",),
        False,
    ),
    "distances (MPT)": ("mpt", {"vocab_size": 512, "d_model": 32, "n_layers": 2, "n_heads": 4}, ("Wqkv",), False),
    "a state space": ("mamba", SHORT | {"num_hidden_layers": 2}, ("in_proj",), False),
    "a recurrence": ("rwkv", SHORT | {"num_hidden_layers": 2, "attention_hidden_size": 32}, ("key", "value"), False),
}  # fmt: skip


@pytest.fixture(params=KINDS, ids=str)
def kind(request, tiny_tokenizer, tmp_path):
    architecture, options, targets, packs = KINDS[request.param]
    config = transformers.AutoConfig.for_model(architecture, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for p in model.parameters():
            if p.dim() > 1:
                p.data.normal_(0, 0.3)
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    lora = LoraSettings(r=2, dropout=0.0, targets=targets)
    return load_model(str(tmp_path), device="cpu", dtype="fp32", lora=lora, progress=False), packs


def test_it_is_scored_as_one_choice_at_a_time_is(kind, questions):
    model, packs = kind
    few = [questions[i] for i in (0, 2, 4, 8)]
    batch = collate(few, model.tokenizer, "text")
    assert FORMATS["text"].packs(model, batch) == packs
    torch.testing.assert_close(
        predict(model, few).logits[0, :, :4], naive_text(model, few)[:, :4], atol=1e-4, rtol=1e-4
    )
    letters = predict(model, few, format="letter").logits[0]
    torch.testing.assert_close(letters[:, :4], naive_letter(model, few)[:, :4], atol=1e-4, rtol=1e-4)
    alone = predict(model, few[2:3]).logits[0, 0]
    torch.testing.assert_close(predict(model, few).logits[0, 2], alone, atol=1e-4, rtol=1e-4)  # whoever is beside it


def test_it_is_trained_drawn_from_and_linearised(kind, questions):
    model, _ = kind
    run = finetune(model, questions[:6], steps=2, batch_size=3, lr=1.0, progress=False)
    together = predict(run, questions[:3], samples=3)
    one_by_one = predict(run, questions[:3], samples=3, draws_per_pass=1)
    torch.testing.assert_close(together.logits, one_by_one.logits, atol=1e-4, rtol=1e-4)
    assert not torch.equal(together.logits[0], together.logits[1])
    # the linearised Gaussian says what very small draws say
    small = GaussianPosterior(
        run.posterior.mean, {n: torch.full_like(v, 1e-8) for n, v in run.posterior.variance.items()}
    )
    try:
        line = linearized(model, questions[:2], posterior=small)
    except ValueError as error:
        assert "Jacobian is not known" in str(error) or "plain LoRA" in str(error)  # a layer used twice, say
        return
    draws = predict(model, questions[:2], posterior=small, samples=60).logits[:, 1, :2]
    expected = line.covariance[1, :2, :2].diagonal().sqrt()
    assert ((draws.std(0) / expected) - 1).abs().max() < 0.5


@pytest.mark.parametrize("format", ["text", "letter"])
def test_noise_of_a_questions_own_is_trained_on_it(kind, questions, format):
    model, _ = kind
    run = blob(model, questions[:4], steps=1, batch_size=2, format=format, progress=False)
    assert run.posterior.variance and all(v.isfinite().all() for v in run.weights.values())


def test_it_writes_beside_others_what_it_writes_alone(kind):
    model, _ = kind
    posterior = GaussianPosterior.isotropic(model, 1e-3)
    run = Run(model, posterior.mean, posterior, {"format": "text"})
    prompts = ["Ice melts when it is warm and the sun is in the sky and", "The"]
    both = generate(run, prompts, samples=1, max_new_tokens=8)[1]
    alone = generate(run, prompts[1:], samples=1, max_new_tokens=8)[0]
    assert (both.at_mean, both.texts) == (alone.at_mean, alone.texts)


def test_windows_and_kinds_are_read_from_the_configuration(tiny_model):
    assert known_exact(tiny_model()) is True and window(tiny_model()) is None
    model = tiny_model("qwen2", use_sliding_window=False, sliding_window=4)
    assert window(model) is None  # it has one and does not use it


@pytest.mark.parametrize("attention", ["flex_attention", "flash_attention_2"])
def test_attention_that_takes_no_such_mask_gets_a_row_for_every_choice(tiny_model, questions, attention):
    model = tiny_model()
    batch = collate(questions, model.tokenizer, "text")
    assert FORMATS["text"].packs(model, batch)
    model.config._attn_implementation = attention
    assert not FORMATS["text"].packs(model, batch)


def test_a_window_counts_places_in_the_row_unless_it_is_known_to_count_positions(tiny_model, tiny_tokenizer, questions):
    few = [questions[i] for i in (2, 4)]
    batch = collate(few, tiny_tokenizer, "text")
    sees = int(batch["position_ids"].max()) + 1
    assert sees < batch["input_ids"].shape[1]
    options = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
    model = tiny_model("gpt_neo", trained=True, attention="eager", window_size=sees, **options)
    assert not FORMATS["text"].packs(model, batch)
    torch.testing.assert_close(predict(model, few).logits[0], naive_text(model, few), atol=1e-4, rtol=1e-4)
    assert FORMATS["text"].packs(tiny_model("mistral", num_key_value_heads=2, sliding_window=sees), batch)


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3_text"])
def test_an_unknown_kind_may_be_linearised_before_anything_else(tiny_model, questions, architecture):
    options = {"trained": True, "attention": "eager", "num_key_value_heads": 2, "head_dim": 8}
    first, later = tiny_model(architecture, **options), tiny_model(architecture, **options)
    posterior = GaussianPosterior.isotropic(first, 1e-4)
    got = linearized(first, questions[:3], posterior=posterior)
    assert FORMATS["text"].packs(first, collate(questions[:3], first.tokenizer, "text"))
    predict(later, questions[:3])
    torch.testing.assert_close(got.covariance, linearized(later, questions[:3], posterior=posterior).covariance)


@pytest.mark.parametrize(("template", "count"), [("<s> $A", 0), ("<s> $A </s>", 1)])
def test_what_a_template_puts_behind_a_text_is_counted_though_all_words_are_unknown(template, count):
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "hen": 4}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    assert appended(transformers.PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")) == count


@pytest.mark.parametrize("template", ["<s> $A </s>", "$A </s>", "$A"])
def test_an_end_of_text_token_behind_every_text_is_not_scored(tiny_model, tiny_tokenizer, questions, template):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    batch = collate(questions[:3], tokenizer, "text")
    assert not (batch["input_ids"] == 2).any() and not (batch["target"] == 2).any()
    assert bool((batch["input_ids"] == 1).any()) == template.startswith("<s>")
    assert not (collate(questions[:3], tokenizer, "letter")["input_ids"] == 2).any()


@pytest.mark.parametrize("pads", ["alike", "different", "none in the tokenizer"])
def test_a_classifier_on_a_decoder_does_not_depend_on_the_batch(tiny_model, tiny_tokenizer, tmp_path, questions, pads):
    tiny = tiny_model("llama", lora=False)
    if pads == "different":
        tiny.config.pad_token_id = 7
    tiny.save_pretrained(tmp_path)
    tokenizer = copy.deepcopy(tiny_tokenizer)
    if pads == "none in the tokenizer":
        tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), labels=2, device="cpu", dtype="fp32", progress=False)
    asked = [replace(q, choices=("no", "yes"), answer=0) for q in questions]
    together = predict(model, asked, format="class").logits[0]
    alone = torch.cat([predict(model, [q], format="class").logits[0] for q in asked])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
