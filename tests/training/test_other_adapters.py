"""Adapters of other people: what PEFT's own file says is what is trained, saved and loaded, or it is refused."""

import peft
import pytest
import torch
import transformers

from ivon_lora_lite import finetune, linearized, load_model, load_run, lora_parameters, predict, reset_lora, trainable

OPTIONS = {"steps": 4, "batch_size": 4, "progress": False, "optimizer": "adamw", "lr": 1e-2}
SETTINGS = {
    "rsLoRA": {"use_rslora": True},
    "α by layer": {"alpha_pattern": {"layers.0.self_attn.q_proj": 3}},
    "rank by layer": {"rank_pattern": {"layers.1.self_attn.v_proj": 2}},
    "some layers only": {"layers_to_transform": [1]},
    "a layer left out": {
        "target_modules": ["q_proj", "v_proj"],
        "exclude_modules": ["model.layers.0.self_attn.q_proj"],
    },
    "targets by a pattern": {"target_modules": r".*\.(q|v)_proj"},
    "all linear layers": {"target_modules": "all-linear"},
    "a module saved along": {"modules_to_save": ["norm"]},
    "the output layer": {"target_modules": ["q_proj", "lm_head"]},
    "biases of LoRA": {"lora_bias": True},
    "DoRA": {"use_dora": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
    "a Gaussian start": {"init_lora_weights": "gaussian"},
}


@pytest.fixture
def base(tiny_folder):
    return str(tiny_folder)


def own(base, name="default", **options):
    """A PEFT model that this package has not made."""
    options = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | options
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = peft.get_peft_model(model, peft.LoraConfig(**options), adapter_name=name)
    model.tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    return model.eval()


def near(a, b):
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_an_adapters_settings_survive_loading_training_saving_and_loading(base, task, tmp_path, settings):
    mine = own(base, **settings)
    with torch.no_grad():
        for p in lora_parameters(mine):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    mine.save_pretrained(tmp_path / "adapter", path_initial_model_for_weight_conversion=None)
    loaded = load_model(base, adapter=tmp_path / "adapter", device="cpu", dtype="fp32", progress=False)
    before = predict(mine, task.test).logits
    near(predict(loaded, task.test).logits, before)
    run = finetune(loaded, task, **OPTIONS)
    assert not torch.allclose(predict(run, task.test).logits, before, atol=1e-3)  # something was learned
    again = load_run(run.save(tmp_path / "run"), progress=False)
    near(predict(again, task.test).logits, predict(run, task.test).logits)
    near(predict(again.model, task.test).logits, predict(run, task.test).logits)  # the model is the finetuned one
    if not settings.get("lora_bias"):  # PEFT cannot merge it into a layer without a bias
        merged = again.model.merge_and_unload()
        merged.tokenizer = mine.tokenizer
        near(predict(merged, task.test).logits, predict(run, task.test).logits)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_same_seed_gives_the_same_run_and_the_start_is_the_pretrained_model(base, task, settings):
    model = own(base, **settings)
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain.tokenizer = model.tokenizer
    first, second = (finetune(model, task, **OPTIONS) for _ in range(2))
    assert all(torch.equal(w, second.weights[name]) for name, w in first.weights.items())
    still = finetune(model, task, **{**OPTIONS, "steps": 1, "lr": 1e-12})
    near(predict(still, task.test).logits, predict(plain, task.test).logits)


def test_finetuning_continues_from_an_adapter_that_was_loaded(base, task, tmp_path):
    run = finetune(own(base), task, **{**OPTIONS, "steps": 12})
    run.save(tmp_path / "run")
    model = load_model(base, adapter=tmp_path / "run", device="cpu", dtype="fp32", progress=False)
    for _ in range(2):  # every run of it
        still = finetune(model, task, **{**OPTIONS, "steps": 1, "lr": 1e-12})
        near(predict(still, task.test).logits, predict(run, task.test).logits)


@pytest.mark.parametrize("name", ["other", "0", "lora_A", "q_proj"])
def test_an_adapter_of_another_name_is_saved_where_plain_peft_finds_it(base, task, tmp_path, name):
    try:
        model = own(base, name)
    except ValueError:
        pytest.skip("PEFT itself refuses the name")
    run = finetune(model, task, **OPTIONS)
    assert len(run.weights) == len(lora_parameters(model))
    run.save(tmp_path / "run")
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain = peft.PeftModel.from_pretrained(plain, tmp_path / "run").eval()
    plain.tokenizer = model.tokenizer
    near(predict(plain, task.test).logits, predict(run, task.test).logits)


def test_what_is_trained_is_the_active_one_of_two_adapters(base, task, tmp_path):
    model = own(base)
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM"))
    model.set_adapter("second")
    run = finetune(model, task, **OPTIONS)
    assert {w.shape[0] for name, w in run.weights.items() if "lora_A" in name} == {2}
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    run.save(tmp_path / "run")
    plain = peft.PeftModel.from_pretrained(plain, tmp_path / "run").eval()
    plain.tokenizer = model.tokenizer
    near(predict(plain, task.test).logits, predict(run, task.test).logits)
    with pytest.raises(ValueError, match="does not fit this model"):
        load_run(tmp_path / "run", own(base))


def test_several_active_adapters_and_weights_that_would_be_lost_are_refused(base, task):
    model = own(base)
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM"))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="are all active"):
        finetune(model, task, **OPTIONS)
    model = own(base)
    model.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(ValueError, match="embed_tokens.weight is trainable .* would not save it"):
        finetune(model, task, **OPTIONS)
    plain = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with pytest.raises(ValueError, match="no adapter"):
        finetune(plain, task, **OPTIONS)


def test_an_adapter_of_another_kind_is_refused(base, task):
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.get_peft_model(model, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    model.tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    with pytest.raises(ValueError, match="of the kind PREFIX_TUNING: only LoRA"):
        finetune(model, task, **OPTIONS)


def test_a_model_whose_adapter_acts_otherwise_is_refused_for_a_run(base, task, tmp_path):
    finetune(own(base), task, **OPTIONS).save(tmp_path / "run")
    with pytest.raises(ValueError, match="lora_alpha=12"):
        load_run(tmp_path / "run", own(base, lora_alpha=24))


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_run_whose_start_changed_the_base_model_needs_a_model_with_that_start(base, task, tmp_path, start):
    run = finetune(own(base, init_lora_weights=start), task, **OPTIONS)
    run.save(tmp_path / "run")
    with pytest.raises(ValueError, match=f"init_lora_weights='{start}', the model's True"):
        load_run(tmp_path / "run", own(base))
    again = load_run(tmp_path / "run", own(base, init_lora_weights=start))
    near(predict(again, task.test).logits, predict(run, task.test).logits)


@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel], ids=["compile", "DataParallel"])
def test_names_are_those_of_the_model_inside_a_wrapper(base, task, wrap):
    model = own(base)
    assert list(trainable(wrap(model))) == list(trainable(model))
    assert all(name.startswith("base_model.model.model.layers.") for name in trainable(wrap(model)))
    if wrap is torch.nn.DataParallel:
        run = finetune(wrap(model), task, **OPTIONS)
        assert run.weights.keys() == trainable(model).keys()


def test_an_adapter_around_a_compiled_base_is_found(base):
    model, inside = own(base), own(base)
    inside.base_model.model = torch.compile(inside.base_model.model)
    assert inside._orig_mod is not None  # PEFT hands on what the compiled base has
    assert list(trainable(inside)) == list(trainable(model))


@pytest.mark.parametrize(
    "settings", [{"target_modules": [], "target_parameters": ["self_attn.q_proj.weight"]}, {"use_dora": True}],
    ids=["on a bare parameter", "DoRA"],
)  # fmt: skip
def test_draws_of_layers_that_are_not_plain_are_draws(base, task, settings):
    model = own(base, **settings)
    run = finetune(model, task, **{**OPTIONS, "optimizer": "ivon", "lr": 1.0, "ess": 1e3})
    draws = predict(run, task.test, samples=2).logits
    for seed in (0, 1):
        with run.posterior.applied(model, seed):
            near(predict(model, task.test).logits[0], draws[seed])
    assert not torch.allclose(draws[0], draws[1], atol=1e-4)
    with pytest.raises(ValueError, match="plain LoRA"):
        linearized(run, task.test)


def test_dora_on_an_embedding_starts_as_the_base_model(base):
    model = own(base, target_modules=["q_proj", "embed_tokens"], use_dora=True)
    x, plain = (
        torch.tensor([[5, 6, 7, 8]]),
        transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
    )
    reset_lora(model, 21)
    with torch.no_grad():
        near(model(x).logits, plain(x).logits)


def test_weights_that_are_tied_are_not_saved_under_two_names(base, task):
    tied = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, tie_word_embeddings=True)
    tied.tie_weights()
    options = {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "task_type": "CAUSAL_LM"}
    model = peft.get_peft_model(tied, peft.LoraConfig(**options, ensure_weight_tying=True))
    model.tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    with pytest.raises(ValueError, match="is tied to another trainable weight"):
        finetune(model, task, **OPTIONS)


def test_a_run_is_not_read_through_another_adapter(base, task, tmp_path):
    model = own(base)
    run = finetune(model, task, **OPTIONS)
    before = predict(run, task.test).logits
    model.add_adapter("other", peft.LoraConfig(r=4, lora_alpha=256, target_modules=["q_proj", "v_proj"]))
    model.set_adapter("other")
    for wrong in (
        lambda: predict(run, task.test),
        lambda: run.save(tmp_path / "run"),
        lambda: run.merge(tmp_path / "m"),
    ):
        with pytest.raises(ValueError, match="of the adapter 'default', and 'other' is active"):
            wrong()
    model.set_adapter("default")
    assert torch.equal(predict(run, task.test).logits, before)


def test_a_run_on_another_base_model_is_warned_of(base, task, tmp_path):
    run = finetune(load_model(base, device="cpu", dtype="fp32", progress=False), task, **OPTIONS)
    run.save(tmp_path / "run")
    load_run(tmp_path / "run", run.model)
    for p in run.model.parameters():  # as plain PEFT loads an adapter for inference
        p.requires_grad_(False)
    again = load_run(tmp_path / "run", run.model)
    assert torch.equal(predict(again, task.test).logits, predict(run, task.test).logits)
    transformers.AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path / "renamed")
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "renamed")
    other = load_model(str(tmp_path / "renamed"), device="cpu", dtype="fp32", progress=False)
    with pytest.warns(UserWarning, match="on another base model its weights mean nothing"):
        load_run(tmp_path / "run", other)
