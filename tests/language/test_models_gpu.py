"""What a GPU needs, tested without one: preflight, quantised loading, checkpoints, several processes.

Nothing here runs on a GPU. Where code asks for one, a pretended one answers.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub import errors
from torch import nn

from ivon_lora_lite import (
    LoraSettings,
    answer_logits,
    answer_loss,
    check_model,
    collate,
    finetune,
    load_model,
    load_run,
    load_task,
    lora_parameters,
    memory_of,
)
from ivon_lora_lite.cli import build_parser, main
from ivon_lora_lite.language import GIB, LLAMA_2_7B, TINY, hardware, models as models_module, needs, random_llama
from ivon_lora_lite.language.models import uncast
from ivon_lora_lite.language.needs import WORKING
from ivon_lora_lite.training import last_checkpoint, remember

ROOT = Path(__file__).parents[2]
LLAMA = "meta-llama/Llama-2-7b-hf"
THE_COMMAND = (
    *("finetune", "--model", LLAMA, "--quantize", "8bit", "--task", "winogrande_s"),
    *("--preset", "paper", "--optimizer", "ivon"),
)


@pytest.fixture
def pretend(monkeypatch):
    """A machine with these GPUs; only what preflight asks."""

    def machine(gib: float = 80.0, name: str = "NVIDIA A100", bf16: bool = True, count: int = 1, bitsandbytes=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (int(gib * GIB), int(gib * GIB)))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: 0)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device=None: 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
        # old GPUs emulate it
        supported = lambda including_emulation=True: bf16 or including_emulation  # noqa: E731
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        monkeypatch.setattr(needs, "bitsandbytes_found", lambda: bitsandbytes)

    return machine


@pytest.fixture(scope="module")
def llama_7b(tmp_path_factory):
    """A folder with nothing but Llama-2-7B's configuration."""
    folder = tmp_path_factory.mktemp("llama-2-7b")
    transformers.LlamaConfig(**LLAMA_2_7B).save_pretrained(folder)
    return str(folder)


# ------------------------------------------------------------------------------------------------------- one sentence


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_the_papers_command_says_in_one_sentence_what_is_missing(tmp_path):
    """A process of its own, as a user starts it; it is known before a data set is asked for, and nothing is written."""
    environment = {k: v for k, v in os.environ.items() if k != "IVON_LORA_HUB"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
    (tmp_path / "here").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "ivon_lora_lite", *THE_COMMAND],
        cwd=tmp_path / "here", env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"ivon_lora_lite: {LLAMA} cannot be finetuned here: ") and line.endswith(".")
    assert ". " not in line.removeprefix("ivon_lora_lite: ")  # one sentence
    assert "needs a CUDA GPU" in line and "HF_HUB_OFFLINE" in line
    assert "pip install 'bitsandbytes" in line or hardware.bitsandbytes_found()
    assert list((tmp_path / "here").iterdir()) == []


def refused(name: str, **options) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        check_model(name, **options)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_a_machine_that_has_all_is_not_refused(pretend, llama_7b):
    pretend()
    for quantize in (None, "8bit", "4bit", "bf16"):
        assert check_model(llama_7b, quantize=quantize) is None


def test_a_missing_package_is_named_alone_if_the_rest_is_there(pretend, llama_7b):
    pretend(bitsandbytes=False)
    text = refused(llama_7b, quantize="8bit")
    assert "bitsandbytes is missing" in text and "GPU" not in text and "Hub" not in text
    assert check_model(llama_7b) is None  # it is needed for nothing else


def test_too_little_memory_is_known_from_the_configuration(pretend, llama_7b):
    pretend(gib=7.5, name="Tesla P4")
    text = refused(llama_7b, quantize="8bit")
    assert "at least 8.1 GiB" in text and "the Tesla P4 has 7.5 free" in text and "quantize='4bit' would fit" in text
    assert "quantize='4bit' would fit" in refused(llama_7b)
    assert check_model(llama_7b, quantize="4bit") is None
    pretend(gib=3)
    assert "a smaller model or a larger GPU" in refused(llama_7b, quantize="4bit")
    pretend(gib=9)
    assert "quantize='8bit' would fit" in refused(llama_7b, quantize="bf16")


def test_memory_that_torch_holds_but_does_not_use_counts_as_free(pretend, llama_7b, monkeypatch):
    pretend(gib=7.5)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device=None: GIB)
    assert check_model(llama_7b, quantize="8bit") is None


def test_a_t4_computes_in_fp16_and_says_so_if_bf16_is_asked_for(pretend, llama_7b):
    pretend(gib=15, name="Tesla T4", bf16=False)
    assert hardware.native_dtype("cuda:0") == torch.float16
    assert check_model(llama_7b, quantize="8bit") is None
    for options in ({"dtype": "bf16"}, {"quantize": "bf16"}, {"dtype": "bf16", "quantize": "4bit"}):
        assert "the Tesla T4 does not compute bf16" in refused(llama_7b, **options)


def raising(monkeypatch, error: Exception) -> None:
    """transformers wraps the hub's errors like this."""

    def from_pretrained(*args, **kwargs):
        raise OSError("first line\nsecond line") from error

    for kind in (transformers.AutoConfig, transformers.AutoTokenizer):
        monkeypatch.setattr(kind, "from_pretrained", from_pretrained)


def response(kind: type, status: int) -> Exception:
    import httpx

    return kind("no", response=httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co")))


def test_a_gated_model_asks_for_licence_and_token_before_the_download(pretend, monkeypatch):
    pretend()
    raising(monkeypatch, response(errors.GatedRepoError, 401))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    text = refused(LLAMA, quantize="8bit")
    for words in ("is gated", "no token", f"https://huggingface.co/{LLAMA}", "hf auth login", "HF_TOKEN"):
        assert words in text
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    text = refused(LLAMA, quantize="8bit")
    assert "your token's account" in text and "no token" not in text and "hf_x" not in text
    # without a GPU too, from load_model
    pretend(count=0)
    with pytest.raises(FileNotFoundError, match="is gated and your token's account") as error:
        load_model(LLAMA, device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (lambda: response(errors.RepositoryNotFoundError, 404), "neither a folder nor a model that you can see"),
        (lambda: errors.LocalEntryNotFoundError("no"), "the Hugging Face Hub cannot be reached"),
        (lambda: KeyError("odd"), "cannot be loaded (first line)"),
    ],
)
def test_other_reasons_are_told_apart(pretend, monkeypatch, error, words):
    pretend()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    raising(monkeypatch, error())
    assert words in refused("some/model")


def test_the_hub_is_not_asked_where_neither_gpu_nor_quantisation_is_wanted(monkeypatch):
    raising(monkeypatch, AssertionError("asked"))
    assert check_model("some/model", device="cpu") is None


def test_options_that_contradict_each_other_are_refused(tiny_folder):
    with pytest.raises(ValueError, match="quantize='bf16' and dtype='fp32' contradict each other"):
        load_model(str(tiny_folder), quantize="bf16", dtype="fp32")
    model = load_model(str(tiny_folder), quantize="bf16", device="cpu")
    assert (model.description["quantize"], model.description["dtype"]) == (None, "bfloat16")


def test_every_process_gets_the_gpu_of_its_own_number(pretend, monkeypatch):
    pretend(count=2)
    found = []
    for rank in ("0", "1", "2"):  # a third process shares the first GPU
        monkeypatch.setenv("LOCAL_RANK", rank)
        found.append((hardware.resolve("8bit", "auto", None)[2], hardware.resolve("8bit", "auto", "cuda")[2]))
    # with its number: accelerate compares the device with the trainer's
    assert found == [("cuda:0", "cuda:0"), ("cuda:1", "cuda:1"), ("cuda:0", "cuda:0")]
    monkeypatch.delenv("LOCAL_RANK")
    pretend(count=0)
    assert hardware.default_device() == "cpu"


# ------------------------------------------------------------------------------------------------------- bitsandbytes


def test_what_bitsandbytes_says_in_every_forward_pass_is_not_shown_and_all_else_is():
    about_casts = "MatMul8bitLt: inputs will be cast from torch.float32 to float16 during quantization"
    for message, shown in ((about_casts, False), ("Outliers!", True)):
        assert uncast(logging.LogRecord("bitsandbytes", logging.WARNING, "", 0, message, (), None)) is shown


def test_bitsandbytes_is_found_by_its_metadata_and_not_imported(monkeypatch, tmp_path):
    if "bitsandbytes" in sys.modules:
        pytest.skip("something else imported it")
    for version, enough in (("0.45.0", False), ("0.46.1", True), ("0.49.2", True)):
        folder = tmp_path / version
        (folder / "bitsandbytes").mkdir(parents=True)
        (folder / "bitsandbytes" / "__init__.py").write_text("raise ImportError('no CUDA here')")
        about = folder / f"bitsandbytes-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: bitsandbytes\nVersion: {version}\n")
        with monkeypatch.context() as patch:
            patch.syspath_prepend(folder)
            assert hardware.bitsandbytes_found() is enough
    assert "bitsandbytes" not in sys.modules


def test_a_cpu_run_does_not_import_bitsandbytes(tiny_folder, task):
    if hardware.bitsandbytes_found():
        pytest.skip("it is installed, and PEFT imports it by itself")
    finetune(load_model(str(tiny_folder), device="cpu"), task, steps=1, progress=False)
    assert "bitsandbytes" not in sys.modules


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_quantised_model_is_prepared_as_peft_documents(bits, tiny_folder, task, monkeypatch):
    """The call that would quantise is intercepted: the base stays bf16, all the rest is the real path."""
    from importlib import metadata

    calls = []
    original, version = transformers.AutoModelForCausalLM.from_pretrained, metadata.version

    def from_pretrained(path, *, quantization_config, device_map, **options):
        calls.append((quantization_config, device_map, options))
        return original(path, **options)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr(metadata, "version", lambda name: "0.49.2" if name == "bitsandbytes" else version(name))
    monkeypatch.setattr(models_module, "check_model", lambda *args, **kwargs: None)
    model = load_model(str(tiny_folder), quantize=bits, dtype="bf16", device="cpu")
    ((config, device_map, options),) = calls
    assert (config.load_in_8bit, config.load_in_4bit) == (bits == "8bit", bits == "4bit")
    assert device_map == {"": "cpu"} and options["dtype"] == torch.bfloat16
    if bits == "4bit":
        assert config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_compute_dtype == torch.bfloat16
    # PEFT: everything that is not quantised is fp32, and LoRA alone is trained
    for name, p in model.named_parameters():
        assert p.dtype == torch.float32, name
        assert p.requires_grad == (".lora_" in name), name
    assert model.description["quantize"] == bits and model.description["dtype"] == "bfloat16"
    run = finetune(model, task, steps=2, format="letter", progress=False)
    assert all(w.isfinite().all() for w in run.weights.values())
    assert "bitsandbytes" not in sys.modules or hardware.bitsandbytes_found()


def test_a_model_for_a_gpu_is_loaded_straight_to_it_and_can_be_trained(tiny_folder, task, monkeypatch):
    """The GPU's place is taken by the CPU; all the rest is the real path."""
    maps, original = [], transformers.AutoModelForCausalLM.from_pretrained

    def from_pretrained(path, device_map=None, **options):
        maps.append(device_map)
        return original(path, device_map=device_map and {"": "cpu"}, **options)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr(models_module, "check_model", lambda *args, **kwargs: None)
    monkeypatch.setattr(models_module, "_prepared", lambda base, *args: base.requires_grad_(False))
    model = load_model(str(tiny_folder), dtype="fp32", device="cuda:1")
    load_model(str(tiny_folder), dtype="fp32", device="cpu")
    assert maps == [{"": "cuda:1"}, None]
    model.get_base_model().hf_device_map = {"": "cpu"}  # which transformers sets of a GPU alone
    run = finetune(model, task, steps=2, format="letter", progress=False)
    assert all(w.isfinite().all() for w in run.weights.values())


# -------------------------------------------------------------------------------------------------------------- memory


def test_llama_2_7b_has_the_published_number_of_weights_and_lora_too():
    memory = memory_of(transformers.LlamaConfig(**LLAMA_2_7B), quantize="8bit")
    assert memory.parameters == 6_738_415_616
    assert memory.lora == 4 * 32 * 2 * 8 * (4096 + 4096)
    assert memory.state == 5 * memory.lora
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    rows = 32 * (4 * 4096 + 2 * 11008 + 4096)
    rest = memory.parameters - linear
    assert memory.base == linear + 4 * rows + 4 * rest
    assert (
        memory_of(transformers.LlamaConfig(**LLAMA_2_7B), quantize="4bit").base == linear * (1 / 2 + 4 / 64) + 4 * rest
    )


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma", "gpt2", "gpt_neox"])
def test_counted_bytes_are_those_of_a_real_model(tiny_model, architecture):
    """Without quantisation they can be compared; shared weights count once."""
    model = tiny_model(architecture)
    memory = memory_of(tiny_model(architecture, lora=False).config, dtype=torch.float32)
    sizes = {name: p.numel() * p.element_size() for name, p in model.named_parameters()}
    assert memory.lora == sum(size for name, size in sizes.items() if ".lora_" in name)
    assert memory.base == sum(size for name, size in sizes.items() if ".lora_" not in name)
    assert memory.total > memory.base + memory.lora and WORKING > 0


def test_other_ranks_targets_and_optimizers_are_counted():
    config = transformers.LlamaConfig(**TINY)
    usual = memory_of(config)
    assert memory_of(config, lora=LoraSettings(r=16)).lora == 2 * usual.lora
    assert memory_of(config, lora=LoraSettings(targets=("q_proj",))).lora == usual.lora // 2
    assert memory_of(config, optimizer="adamw").state < usual.state


# --------------------------------------------------------------------------------------------- gradient checkpointing


def saved_bytes(model, batch) -> int:
    """What the forward pass keeps for the backward pass."""
    total = [0]

    def pack(tensor):
        if not isinstance(tensor, nn.Parameter):
            total[0] += tensor.numel() * tensor.element_size()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        answer_loss(answer_logits(model, batch, "letter"), batch["answers"]).backward()
    model.eval()
    model.zero_grad()
    return total[0]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["ivon", "adamw"])
def test_gradient_checkpointing_saves_memory_and_changes_no_weight(tiny_folder, task, optimizer):
    """Dropout and the draw are the same when a layer is computed again."""
    models = [
        load_model(str(tiny_folder), device="cpu", dtype="fp32", gradient_checkpointing=on) for on in (False, True)
    ]
    batch = collate(task.train, models[0].tokenizer, "letter")
    assert saved_bytes(models[1], batch) < 0.8 * saved_bytes(models[0], batch)
    runs = [finetune(m, task, optimizer=optimizer, steps=4, format="letter", progress=False) for m in models]
    assert all(torch.equal(w, runs[1].weights[name]) for name, w in runs[0].weights.items())
    assert [run.config["model"]["gradient_checkpointing"] for run in runs] == [False, True]


# --------------------------------------------------------------------------------------------------------- checkpoints

OPTIONS = {"steps": 6, "batch_size": 2, "progress": False, "save_every": 2, "eval_every": 2}


@pytest.mark.slow
def test_resuming_where_nothing_was_written_starts_afresh_and_a_finished_run_gives_the_same(tiny_model, task, tmp_path):
    model = tiny_model("llama")
    options = {**OPTIONS, "output_dir": tmp_path / "deep" / "run", "resume": True}
    first = finetune(model, task, **options)
    again = finetune(model, task, **options)
    for name, w in first.weights.items():
        assert torch.equal(w, again.weights[name])
        assert torch.equal(first.posterior.variance[name], again.posterior.variance[name])
    steps = [[r["step"] for r in run.history if "eval_nll" in r] for run in (first, again)]
    assert steps == [[2, 4, 6]] * 2


def test_the_last_checkpoint_is_the_newest_whole_one_before_the_end(tmp_path):
    config = {"steps": 12, "seed": 1}
    assert last_checkpoint(tmp_path / "nowhere", config) is None
    for step, state in {2: "{}", 4: '{"global_step": 4}', 10: '{"global_step": 10}', 11: '{"glob', 12: None}.items():
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-final").mkdir()
    assert last_checkpoint(tmp_path, config).name == "checkpoint-10"  # not 4, as text would sort; 11 is half-written
    assert last_checkpoint(tmp_path, {**config, "steps": 10}).name == "checkpoint-4"
    assert last_checkpoint(tmp_path, {**config, "steps": 4}) is None
    remember(tmp_path, config)
    assert last_checkpoint(tmp_path, config).name == "checkpoint-10"
    with pytest.raises(ValueError, match=r"of another run \(seed 1, now 2\)"):
        last_checkpoint(tmp_path, {**config, "seed": 2})
    # another GPU may have another 16-bit type, and checkpointing changes no weight; the base model must be the same
    model = {"name": "llama", "dtype": "float16", "gradient_checkpointing": True}
    remember(tmp_path, {**config, "model": model})
    other = {**model, "dtype": "bfloat16", "gradient_checkpointing": False}
    assert last_checkpoint(tmp_path, {**config, "model": other}).name == "checkpoint-10"
    with pytest.raises(ValueError, match="of another run"):
        last_checkpoint(tmp_path, {**config, "model": {**model, "name": "qwen"}})


@pytest.mark.slow
@pytest.mark.parametrize("half", ["trainer_state.json", "evaluations.json"])
def test_a_half_written_checkpoint_is_passed_over_and_evaluations_are_kept(tiny_model, task, tmp_path, half):
    model = tiny_model("llama")
    whole = finetune(model, task, **OPTIONS, output_dir=tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "checkpoint-6")  # the run ends there; a resumed one starts from before
    file = tmp_path / "b" / "checkpoint-4" / half
    if half == "evaluations.json":  # callbacks write last
        file.unlink()
    else:
        file.write_text(file.read_text()[:50])  # the machine went away here
    resumed = finetune(model, task, **OPTIONS, output_dir=tmp_path / "b", resume=True)
    assert all(torch.equal(w, resumed.weights[name]) for name, w in whole.weights.items())
    kept = [[(r["step"], r["eval_nll"]) for r in run.history if "eval_nll" in r] for run in (whole, resumed)]
    assert kept[0] == kept[1] and len(kept[0]) == 3


def test_checkpoints_of_other_settings_are_refused(tiny_model, task, tmp_path):
    model = tiny_model("llama")
    options = {**OPTIONS, "output_dir": tmp_path, "resume": True}
    finetune(model, task, **options)
    for change, word in (({"seed": 5}, "seed"), ({"lr": 0.01}, "settings"), ({"optimizer": "adamw"}, "optimizer")):
        with pytest.raises(ValueError, match=f"of another run \\({word}"):
            finetune(model, task, **{**options, **change})
    state = json.loads((tmp_path / "settings.json").read_text())
    assert state["seed"] == 21  # the refused runs wrote nothing


# -------------------------------------------------------------------------------------------------------- command line


def test_the_papers_preset_brings_its_length_format_and_evaluations(tiny_folder, monkeypatch, tmp_path):
    seen = {}

    def pretended(model, task, **options):
        seen.update(options)
        raise ValueError("enough")

    monkeypatch.setattr("ivon_lora_lite.training.finetune", pretended)
    everyday = load_task("everyday")
    monkeypatch.setattr("ivon_lora_lite.language.load_task", lambda name, hub=None: everyday)
    monkeypatch.chdir(tmp_path)
    base = ("finetune", "--model", str(tiny_folder), "--quiet")
    assert main([*base, "--task", "winogrande_s", "--preset", "paper", "--optimizer", "ivon"]) == 2
    assert (seen["steps"], seen["batch_size"], seen["format"], seen["eval_every"]) == (10_000, 4, "letter", 1_000)
    assert seen["save_every"] == 1_000 and seen["resume"] is True
    assert seen["output_dir"] == Path("outputs/winogrande_s-ivon-checkpoints")
    seen.clear()
    assert main([*base, "--steps", "50", "--checkpoint-every", "10", "--checkpoints", "here"]) == 2
    assert (seen["steps"], seen["format"], seen["eval_every"]) == (50, "text", 0)
    assert (seen["save_every"], seen["output_dir"]) == (10, Path("here"))
    seen.clear()
    assert main(list(base)) == 2
    assert seen["steps"] == 200 and "output_dir" not in seen
    # demo shares the options, not these defaults
    demo = build_parser().parse_args(["demo"])
    assert (demo.steps, demo.format) == (500, "text")


@pytest.mark.slow
def test_two_processes_train_together_and_one_of_them_writes(tiny_folder, tmp_path):
    """What `accelerate launch` starts on several GPUs, here with gloo on the CPU: it sets the same variables."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    environment |= {"OMP_NUM_THREADS": "1"}
    launch = (
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_addr",
        "127.0.0.1",
        "--master_port",
        str(port),
    )
    command = (
        "finetune",
        "--model",
        str(tiny_folder),
        "--quiet",
        "--steps",
        "4",
        "--batch-size",
        "2",
        "--samples",
        "0",
    )
    command += ("--train-size", "8", "--test-size", "6", "--checkpoint-every", "2", "--out", "run")
    done = subprocess.run(
        [sys.executable, "-m", *launch, "-m", "ivon_lora_lite", *command],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("IVON@mean: ACC") == 1, done.stdout
    run = load_run(tmp_path / "run", load_model(str(tiny_folder), device="cpu"))
    assert run.posterior.metadata["step"] == 4
    assert all(w.isfinite().all() for w in run.weights.values())
    assert any(w.any() for name, w in run.weights.items() if "lora_B" in name)
    # two processes of two questions: four per step, so eight questions are seen twice
    assert [r["epoch"] for r in run.history if "epoch" in r][-1] == 2.0
    # each process kept its own random state
    assert {p.name for p in (tmp_path / "run-checkpoints" / "checkpoint-2").glob("rng_state*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }


# ----------------------------------------------------------------------------------------------------------- stand-ins


def test_a_random_llama_is_loaded_like_any_other_folder(task, tmp_path):
    folder = random_llama(tmp_path / "llama", task.train, {**TINY, "vocab_size": 256}, seed=3)
    again = random_llama(tmp_path / "again", task.train, {**TINY, "vocab_size": 256}, seed=3)
    model, same = (load_model(str(f), device="cpu", dtype="fp32") for f in (folder, again))
    assert len(lora_parameters(model)) == 2 * 2 * TINY["num_hidden_layers"]
    batch = collate(task.train, model.tokenizer, "letter")
    assert batch["input_ids"][0, -1] != 0 and (batch["input_ids"] == 1).any()  # padded on the left, <s> in front
    with torch.no_grad():
        assert torch.equal(answer_logits(model, batch, "letter"), answer_logits(same, batch, "letter"))
    # every answer's label has a token of its own
    tokens = batch["answer_tokens"]
    unknown = model.tokenizer.convert_tokens_to_ids("<unk>")
    assert (tokens != unknown).all()
