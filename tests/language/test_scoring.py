"""Packed and padded scoring against the plainest way: one forward pass per question and choice, full vocabulary."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ivon_lora_lite import answer_logits, answer_loss, collate, lora_parameters, predict
from ivon_lora_lite.language.formats.letter import answer_token
from ivon_lora_lite.language.formats.text import block_mask

# gpt2 has learned positions: unlike the others' relative ones, they show if a padded row starts to count too early
ARCHITECTURES = ("llama", "qwen2", "gemma", "gpt_neox", "gpt2")


def ids(tokenizer, text):
    return tokenizer(text)["input_ids"]


def start_and_rest(tokenizer, prompt, word):
    """The prompt's tokens, and those that follow when the tokenizer sees prompt and word at once."""
    start, whole = ids(tokenizer, prompt), ids(tokenizer, f"{prompt} {word}")
    assert whole[: len(start)] == start
    return start, whole[len(start) :]


def text_prompt(question):
    return f"Question: {question.stem}\nAnswer:"


def pad(rows):
    width = max(map(len, rows))
    return torch.stack([torch.stack([*row, *[torch.tensor(-torch.inf)] * (width - len(row))]) for row in rows])


def naive_text(model, questions):
    rows = []
    for q in questions:
        row = []
        for choice in q.choices:
            start, rest = start_and_rest(model.tokenizer, text_prompt(q), choice)
            log_probs = model(torch.tensor([start + rest])).logits[0].log_softmax(-1)
            row.append(torch.stack([log_probs[len(start) - 1 + i, token] for i, token in enumerate(rest)]).mean())
        rows.append(row)
    return pad(rows)


def naive_letter(model, questions):
    rows = []
    for q in questions:
        logits = model(torch.tensor([ids(model.tokenizer, q.prompt)])).logits[0, -1]
        rows.append([logits[start_and_rest(model.tokenizer, q.prompt, label)[1][0]] for label in q.labels])
    return pad(rows)


NAIVE = {"text": naive_text, "letter": naive_letter}


def assert_near(got, want, tolerance=1e-4):
    torch.testing.assert_close(got, want, atol=tolerance, rtol=0)


@pytest.mark.parametrize("format", ["text", "letter"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_equal_the_naive_ones(tiny_model, questions, architecture, attention, format):
    model = tiny_model(architecture, trained=True, attention=attention)
    assert model.config._attn_implementation == attention
    with torch.no_grad():
        got = answer_logits(model, collate(questions, model.tokenizer, format), format)
        assert_near(got, NAIVE[format](model, questions))


@pytest.mark.parametrize("format", ["text", "letter"])
def test_logits_equal_the_naive_ones_with_a_tokenizer_that_prepends_bos(
    tiny_model, sentencepiece_tokenizer, questions, format
):
    model = tiny_model(trained=True, tokenizer=sentencepiece_tokenizer)
    batch = collate(questions, model.tokenizer, format)
    assert (batch["input_ids"] == sentencepiece_tokenizer.bos_token_id).sum() == len(questions)
    with torch.no_grad():
        assert_near(answer_logits(model, batch, format), NAIVE[format](model, questions))


@pytest.mark.parametrize("format", ["text", "letter"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_equal_the_naive_ones(tiny_model, questions, architecture, format):
    model = tiny_model(architecture, trained=True)
    batch = collate(questions[:4], model.tokenizer, format)

    def gradients(logits):
        return torch.autograd.grad(answer_loss(logits, batch["answers"]), lora_parameters(model))

    packed, naive = gradients(answer_logits(model, batch, format)), gradients(NAIVE[format](model, questions[:4]))
    for got, want in zip(packed, naive, strict=True):
        assert want.abs().max() > 1e-3  # else this would compare nothing with nothing
        assert_near(got, want, 1e-4 * max(1.0, want.abs().max().item()))


@pytest.mark.parametrize("format", ["text", "letter"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_bf16_base_gives_the_same_logits_in_fp32_up_to_rounding(tiny_model, questions, attention, format):
    # with these weights rounding changes a logit by 0.015, a wrong mask by 1
    model = tiny_model(trained=True, attention=attention, initializer_range=0.15)
    batch = collate(questions, model.tokenizer, format)
    with torch.no_grad():
        want = NAIVE[format](model, questions)
        for p in model.parameters():
            p.data = p.data if p.requires_grad else p.data.bfloat16()
        got = answer_logits(model, batch, format)
    assert got.dtype == torch.float32
    assert_near(got, want, 0.05)


def test_missing_choices_are_minus_infinity_and_others_finite(tiny_model, questions):
    model = tiny_model()
    for format in ("text", "letter"):
        batch = collate(questions, model.tokenizer, format)
        with torch.no_grad():
            logits = answer_logits(model, batch, format)
        assert logits.shape == (len(questions), 5)
        assert batch["answers"].tolist() == [q.answer for q in questions]
        for row, q in zip(logits, questions, strict=True):
            assert torch.isfinite(row[: len(q.choices)]).all()
            assert (row[len(q.choices) :] == -torch.inf).all()


def test_one_token_choices_need_no_position_of_their_own(tiny_model, questions):
    model = tiny_model(trained=True)
    q = replace(questions[0], choices=("A", "B", "C", "D"))
    batch = collate([q], model.tokenizer, "text")
    assert batch["input_ids"].tolist() == [ids(model.tokenizer, text_prompt(q))]
    with torch.no_grad():
        log_probs = model(batch["input_ids"]).logits[0, -1].log_softmax(-1)
        got = answer_logits(model, batch)
    tokens = [start_and_rest(model.tokenizer, text_prompt(q), choice)[1] for choice in q.choices]
    assert_near(got, log_probs[torch.tensor(tokens)].T)


def test_block_mask_by_hand():
    # question 0 (two tokens), its choices 1 (one token) and 2 (two tokens), question 3 (one), its choice 4 (two)
    block = torch.tensor([0, 0, 1, 2, 2, 3, 4, 4])
    sees = torch.tensor([0, 0, 0, 3, 3])
    want = [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1, 1, 1],
    ]
    mask = block_mask(block, sees)
    assert mask.shape == (1, 1, 8, 8) and mask.dtype == torch.bool
    assert mask[0, 0].int().tolist() == want


def output_rows(model, batch, format):
    """How many rows of hidden states the output layer gets."""
    rows = []
    hook = model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: rows.append(inputs[0].shape[:-1].numel())
    )
    with torch.no_grad():
        answer_logits(model, batch, format)
    hook.remove()
    return rows


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_output_layer_runs_only_where_an_answer_is_read(tiny_model, questions, architecture):
    model = tiny_model(architecture)
    assert output_rows(model, collate(questions, model.tokenizer, "letter"), "letter") == [len(questions)]

    batch = collate(questions, model.tokenizer, "text")
    packed, read = 0, 0
    for q in questions:
        pairs = [start_and_rest(model.tokenizer, text_prompt(q), choice) for choice in q.choices]
        own = sum(len(rest) - 1 for _, rest in pairs)  # an answer's last token predicts nothing
        packed += len(pairs[0][0]) + own
        read += 1 + own  # the question's last token predicts the first one of every choice
    assert batch["input_ids"].shape == (1, packed)  # nothing is padded, and the question is there once
    assert output_rows(model, batch, "text") == [read]
    assert read < packed / 2


@pytest.fixture(params=["tiny_tokenizer", "sentencepiece_tokenizer"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("word", ["A", "B", "E", "True", "False"])
@pytest.mark.parametrize("prompt", ["Answer:", "Which is wet? Choices: A. Water. B. Sand. Answer:", "lemons are sour."])
def test_answer_token_is_what_really_follows(tokenizer, prompt, word):
    token = answer_token(tokenizer, prompt, word)
    start = ids(tokenizer, prompt)
    assert start + [token] == ids(tokenizer, f"{prompt} {word}")  # these words are one token
    assert tokenizer.decode(start + [token]) == f"{tokenizer.decode(start)} {word}"


def test_answer_token_in_byte_level_bpe_is_not_the_bare_letter(tiny_tokenizer):
    bare = ids(tiny_tokenizer, "A")
    assert len(bare) == 1 and answer_token(tiny_tokenizer, "Answer:", "A") != bare[0]


def test_answer_token_of_a_word_with_several_tokens_is_its_first(tokenizer):
    start, rest = start_and_rest(tokenizer, "Answer:", "umbrellas")
    assert len(rest) > 1
    assert answer_token(tokenizer, "Answer:", "umbrellas") == rest[0]


def test_long_and_short_prompts_have_the_same_answer_tokens(tokenizer, questions):
    short = replace(questions[0], prompt="Answer:")
    long = replace(questions[0], prompt="Rain falls from clouds, and honey is sweet. " * 60 + questions[0].prompt)
    batch = collate([short, long, questions[0]], tokenizer, "letter")
    tokens = batch["answer_tokens"]
    assert len(ids(tokenizer, long.prompt)) > 500
    assert tokens[0].tolist() == [answer_token(tokenizer, long.prompt, label) for label in "ABCD"]
    assert tokens[1].tolist() == tokens[2].tolist() == tokens[0].tolist()


def test_a_choice_is_tokenised_alone_if_the_tokenizer_merges_it_with_the_question(questions):
    # without a pre-tokenizer BPE has tokens such as "Answer: hen", which the packed question cannot end with
    from tokenizers import Tokenizer, models, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    text = ["\nAnswer: hen", "\nAnswer: cow", "\nAnswer:"] * 9 + [q.prompt for q in questions]
    bpe.train_from_iterator(text, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    q = replace(questions[0], choices=("hen", "cow"))
    start, whole = ids(tokenizer, text_prompt(q)), ids(tokenizer, f"{text_prompt(q)} hen")
    assert whole[: len(start)] != start
    batch = collate([q], tokenizer, "text")
    targets = [batch["target"][batch["owner"] == choice].tolist() for choice in (0, 1)]
    assert ["".join(tokenizer.convert_ids_to_tokens(t)) for t in targets] == [" hen", " cow"]


def test_unknown_format_is_refused(tiny_tokenizer, questions):
    with pytest.raises(ValueError, match="'verse'.*letter, text"):
        collate(questions, tiny_tokenizer, "verse")


@pytest.mark.parametrize("format", ["text", "letter"])
def test_a_question_may_be_as_long_as_the_limit_and_no_longer(tiny_tokenizer, questions, format):
    long = questions[4]
    if format == "letter":
        length = len(ids(tiny_tokenizer, long.prompt))
    else:
        length = max(len(ids(tiny_tokenizer, f"{text_prompt(long)} {choice}")) for choice in long.choices)
    collate(questions, tiny_tokenizer, format, max_length=length)
    with pytest.raises(ValueError, match=f"{long.id!r} has {length} tokens, more than the limit of {length - 1}"):
        collate(questions, tiny_tokenizer, format, max_length=length - 1)


def test_the_tokenizers_own_limit_holds_too(tiny_tokenizer, questions, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, "model_max_length", 20)
    with pytest.raises(ValueError, match="limit of 20"):
        collate(questions, tiny_tokenizer, "text")


def test_answers_with_one_first_token_are_refused_in_the_letter_format_only(tiny_tokenizer, questions):
    q = replace(questions[0], labels=("Xa", "Xb"), choices=("Xa", "Xb"))
    with pytest.raises(ValueError, match="Xa, Xb start with the same token.*text"):
        collate([q], tiny_tokenizer, "letter")
    collate([q], tiny_tokenizer, "text")


def test_every_choice_needs_a_letter_in_the_letter_format(tiny_tokenizer, questions):
    q = replace(questions[0], labels=("A", "B", "C"))
    with pytest.raises(ValueError, match="'Which animal lays eggs.' has 4 choices and 3 letters"):
        collate([questions[1], q], tiny_tokenizer, "letter")
    collate([q], tiny_tokenizer, "text")


@pytest.mark.parametrize("format", ["text", "letter"])
@pytest.mark.parametrize(
    "kind", [{}, {"attention": "eager"}, {"architecture": "gemma2", "attention": "eager", "num_key_value_heads": 1}]
)
def test_a_model_in_a_wrapper_is_asked_like_the_model_itself(tiny_model, questions, kind, format):
    model = tiny_model(trained=True, **kind)
    wrapped = torch.nn.DataParallel(model)
    assert_near(predict(wrapped, questions, format=format).logits, predict(model, questions, format=format).logits)


def test_a_choice_without_tokens_is_refused(tiny_tokenizer, questions, monkeypatch):
    class Strips:
        """A tokenizer that drops trailing spaces."""

        model_max_length = 512

        def __call__(self, text, add_special_tokens=True):
            return tiny_tokenizer(text.rstrip())

    with pytest.raises(ValueError, match="choice ''"):
        collate([replace(questions[0], choices=("hen", ""))], Strips(), "text")


@pytest.mark.slow
def test_packed_text_equals_naive_on_smollm(smollm, questions):
    batch = collate(questions[:3], smollm.tokenizer, "text")
    with torch.no_grad():
        assert_near(answer_logits(smollm, batch), naive_text(smollm, questions[:3]))


@pytest.mark.slow
def test_letters_equal_naive_on_smollm(smollm, questions):
    batch = collate(questions[:3], smollm.tokenizer, "letter")
    with torch.no_grad():
        assert_near(answer_logits(smollm, batch, "letter"), naive_letter(smollm, questions[:3]))
