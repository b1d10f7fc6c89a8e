"""Run folders: a round trip changes nothing, plain PEFT reads them, and what goes wrong leaves nothing half-written."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path

import pytest
import torch

from ivon_lora_lite import (
    GaussianPosterior,
    LoraSettings,
    files,
    finetune,
    load_model,
    load_run,
    predict,
    save_run,
    trainable,
)
from ivon_lora_lite.files import atomic_path, provenance, read_json, write_json, write_text
from ivon_lora_lite.training import check_free, run as experiment

OPTIMIZERS = ("ivon", "adamw")


@pytest.fixture(scope="module")
def base(tiny_folder):
    """A folder with a tiny model and its tokenizer."""
    return str(tiny_folder)


@pytest.fixture(scope="module")
def model(base):
    return load_model(base, dtype="fp32")


@pytest.fixture(scope="module")
def runs(model):
    """A run per optimizer, of one shared model, which AdamW used last."""
    from conftest import QUESTIONS

    options = {"steps": 3, "batch_size": 4, "progress": False}
    return {name: finetune(model, QUESTIONS, optimizer=name, **options) for name in OPTIMIZERS}


@pytest.fixture
def folders(runs, tmp_path):
    return {name: save_run(run, tmp_path / name) for name, run in runs.items()}


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder: path → contents (None: a folder)."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def as_json(content):
    """With lists for tuples."""
    return json.loads(json.dumps(content))


# --- round trip ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_round_trip_predicts_the_same_and_keeps_every_fact(optimizer, runs, folders, questions):
    run, loaded = runs[optimizer], load_run(folders[optimizer])
    assert loaded.model is not run.model
    assert torch.equal(predict(loaded, questions).logits, predict(run, questions).logits)
    assert same(loaded.weights, run.weights)
    assert loaded.config == as_json(run.config) and loaded.history == run.history and loaded.seconds == run.seconds
    if optimizer == "adamw":
        assert loaded.posterior is None
        return
    draws = [predict(source, questions, samples=2, tau=0.5, seed=3).logits for source in (loaded, run)]
    assert torch.equal(*draws)
    assert same(loaded.posterior.mean, run.posterior.mean) and same(loaded.posterior.variance, run.posterior.variance)
    assert dict(loaded.posterior.metadata) == dict(run.posterior.metadata)


def test_runs_can_share_a_model_that_stays_as_it_is(runs, folders, model, questions):
    before = {name: p.detach().clone() for name, p in trainable(model).items()}
    for optimizer in OPTIMIZERS:
        loaded = load_run(folders[optimizer], model)
        assert loaded.model is model
        assert torch.equal(predict(loaded, questions).logits, predict(runs[optimizer], questions).logits)
    assert same(before, trainable(model))


def test_the_adapter_is_the_runs_mean_and_not_what_the_model_holds_now(runs, folders, model):
    from safetensors.torch import load_file

    saved = load_file(folders["ivon"] / "adapter_model.safetensors")
    assert same(saved, runs["ivon"].posterior.mean)
    assert not same(saved, trainable(model))  # AdamW's, which came after


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_plain_peft_and_transformers_read_the_folder_and_predict_at_the_mean(optimizer, runs, folders, base, questions):
    import peft
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain = peft.PeftModel.from_pretrained(plain, folders[optimizer]).eval()
    plain.tokenizer = runs[optimizer].model.tokenizer
    found, wanted = predict(plain, questions).logits, predict(runs[optimizer], questions).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    settings = json.loads((folders[optimizer] / "adapter_config.json").read_text("utf8"))
    assert settings["base_model_name_or_path"] == base  # so that AutoPeftModel finds it
    auto = peft.AutoPeftModelForCausalLM.from_pretrained(folders[optimizer], dtype=torch.float32)
    auto.tokenizer = plain.tokenizer
    torch.testing.assert_close(predict(auto.eval(), questions).logits, wanted, rtol=1e-5, atol=1e-5)


def test_the_folder_holds_what_it_should_and_says_how_the_run_was_made(runs, folders):
    adapter = {"adapter_config.json", "adapter_model.safetensors", "run.json", "README.md"}
    assert {p.name for p in folders["adamw"].iterdir()} == adapter
    assert {p.name for p in folders["ivon"].iterdir()} == adapter | {"posterior.safetensors"}
    facts = read_json(folders["ivon"] / "run.json")
    assert facts["config"] == as_json(runs["ivon"].config)
    assert facts["provenance"]["versions"]["torch"] == torch.__version__


def test_run_save_is_the_same_as_save_run(runs, folders, model, tmp_path):
    again = runs["ivon"].save(tmp_path / "again")
    assert tree(again).keys() == tree(folders["ivon"]).keys()
    first, second = load_run(folders["ivon"], model), load_run(again, model)
    assert same(first.weights, second.weights) and first.config == second.config
    assert same(first.posterior.variance, second.posterior.variance)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])  # one of them is not what "auto" would take here
def test_a_run_is_loaded_in_its_own_dtype_rank_and_targets(dtype, base, questions, tmp_path):
    own = load_model(base, dtype=dtype, lora=LoraSettings(r=2, alpha=4, targets=("k_proj", "o_proj")))
    run = finetune(own, questions, steps=1, progress=False)
    loaded = load_run(save_run(run, tmp_path / "run"))
    assert loaded.model.description["dtype"] == {"fp32": "float32", "bf16": "bfloat16"}[dtype]
    assert loaded.model.peft_config["default"].target_modules == {"k_proj", "o_proj"}
    assert torch.equal(predict(loaded, questions).logits, predict(run, questions).logits)


# --- where a run may go ----------------------------------------------------------------------------------------------


def test_a_run_goes_into_new_folders_and_empty_ones(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "not" / "yet" / "there"):
        assert check_free(folder) == folder
        assert save_run(runs["adamw"], folder) == folder
        assert load_run(folder, runs["adamw"].model).config["optimizer"] == "adamw"


def test_another_run_is_replaced_only_if_asked_to(runs, folders, tmp_path):
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match="ivon on questions, seed 21"):
        save_run(runs["adamw"], folders["ivon"])
    assert tree(tmp_path) == before
    save_run(runs["adamw"], folders["ivon"], overwrite=True)
    # nothing of the former run is left, above all not a posterior beside another run's adapter
    assert {p.name for p in folders["ivon"].iterdir()} == {p.name for p in folders["adamw"].iterdir()}
    assert load_run(folders["ivon"], runs["adamw"].model).config["optimizer"] == "adamw"
    assert {p.name for p in tmp_path.iterdir()} == {"ivon", "adamw"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_files_are_never_replaced(overwrite, runs, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine too")
    before = tree(tmp_path)
    for name in ("folder", "file"):
        with pytest.raises(FileExistsError, match=name):
            save_run(runs["adamw"], tmp_path / name, overwrite=overwrite)
    assert tree(tmp_path) == before


MOMENTS = ["peft.PeftModel.save_pretrained", "GaussianPosterior.save", "write_json", "os.replace"]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["disk full", "ctrl-C"])
def test_what_fails_midway_leaves_the_former_run_or_nothing(moment, error, runs, tmp_path, monkeypatch):
    import peft

    former = save_run(runs["ivon"], tmp_path / "former")
    owner = {"peft": peft.PeftModel, "GaussianPosterior": GaussianPosterior, "os": os}.get(moment.split(".")[0])
    owner, name = owner or experiment, moment.split(".")[-1]
    original = getattr(owner, name)

    def half(*args, **kwargs):
        if moment != "os.replace":  # the worst moment: when the file is there already
            original(*args, **kwargs)
        elif not (str(args[0]).endswith("tmp/run.json") and str(args[1]).endswith("/run.json")):  # the last file
            return original(*args, **kwargs)
        raise error

    before, weights = tree(tmp_path), {name: p.clone() for name, p in trainable(runs["ivon"].model).items()}
    monkeypatch.setattr(owner, name, half)
    with pytest.raises(type(error)):
        save_run(runs["ivon"], tmp_path / "new")
    with pytest.raises(type(error)):
        save_run(runs["ivon"], former, overwrite=True)
    monkeypatch.undo()
    assert tree(tmp_path) == before
    assert same(weights, trainable(runs["ivon"].model))  # the model is given back as it was


# --- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_another_rank_is_refused_and_the_tensor_named(optimizer, folders, base):
    other = load_model(base, dtype="fp32", lora=LoraSettings(r=4))
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj\.lora_A\.weight") as refusal:
        load_run(folders[optimizer], other)
    assert "(8, 32)" in str(refusal.value) and "(4, 32)" in str(refusal.value)
    assert str(folders[optimizer]) in str(refusal.value)


def test_another_model_is_refused_and_the_tensor_named(folders, tiny_model):
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.q_proj\.lora_A\.weight .* wants None"):
        load_run(folders["ivon"], tiny_model(num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"layers\.2\..* has shape None"):
        load_run(folders["ivon"], tiny_model(num_hidden_layers=3))


def test_a_posterior_of_another_run_is_refused(folders, base, questions, tmp_path):
    other = finetune(load_model(base, dtype="fp32", lora=LoraSettings(r=4)), questions, steps=1, progress=False)
    other.posterior.save(folders["ivon"])  # over this run's own
    with pytest.raises(ValueError, match=r"q_proj\.lora_A\.weight has shape \(4, 32\)"):
        load_run(folders["ivon"])


@pytest.mark.parametrize("name", ["run.json", "adapter_model.safetensors", "posterior.safetensors"])
def test_a_missing_file_is_named(name, folders):
    (folders["ivon"] / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        load_run(folders["ivon"])


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_run(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["run.json", "adapter_model.safetensors", "posterior.safetensors"])
@pytest.mark.parametrize("keep", [0, 7, 0.5])
def test_a_file_that_was_cut_off_is_named(name, keep, folders, model):
    file = folders["ivon"] / name
    content = file.read_bytes()
    file.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(ValueError, match=f"{name}.* damaged"):
        load_run(folders["ivon"], model)


@pytest.mark.parametrize("content", ["{}", "[]", "null", '"run"', '{"config": [], "history": [], "seconds": 1}'])
def test_a_record_that_is_no_runs_is_refused_for_reading_and_for_writing(content, folders, runs):
    (folders["ivon"] / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        load_run(folders["ivon"])
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        save_run(runs["ivon"], folders["ivon"])


@pytest.mark.parametrize("key", ["task", "optimizer", "seed", "format", "model"])
def test_a_record_without_a_setting_is_refused(key, folders):
    file = folders["ivon"] / "run.json"
    facts = read_json(file)
    del facts["config"][key]
    write_json(file, facts)
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        load_run(folders["ivon"])


def test_a_run_of_a_model_of_ones_own_asks_for_it(tiny_model, questions, tmp_path):
    own = tiny_model()  # not from load_model, so it cannot say where it came from
    run = finetune(own, questions, steps=1, progress=False)
    folder = save_run(run, tmp_path / "run")
    with pytest.raises(ValueError, match="model="):
        load_run(folder)
    assert torch.equal(predict(load_run(folder, own), questions).logits, predict(run, questions).logits)


# --- files -----------------------------------------------------------------------------------------------------------


def test_atomic_path_puts_the_file_in_place_when_the_block_ends(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent  # another disk could not be moved from in one step
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("written", [True, False])
def test_atomic_path_keeps_the_former_file_when_the_block_fails(error, written, tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("former")
    with pytest.raises(error), atomic_path(path) as temporary:
        if written:
            temporary.write_text("half")
        raise error
    assert tree(tmp_path) == {"file.txt": b"former"}


def test_json_survives_a_round_trip_and_is_readable(tmp_path):
    content = {"λ": 1e6, "list": [1, None, True], "nested": {"τ": "0 … 1"}}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content
    assert "λ" in (tmp_path / "x.json").read_text("utf8")


def test_what_cannot_be_written_as_json_leaves_the_former_file(tmp_path):
    write_json(tmp_path / "x.json", [1])
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"tensor": torch.zeros(1)})
    assert read_json(tmp_path / "x.json") == [1]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00", b"{'a': 1}"])
def test_damaged_json_is_a_value_error_that_names_the_file(content, tmp_path):
    (tmp_path / "broken.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.json is damaged") as refusal:
        read_json(tmp_path / "broken.json")
    assert len(str(refusal.value).splitlines()) == 1


def test_missing_json_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "nothing.json")


def test_provenance_has_date_versions_and_device():
    days = {time.strftime("%Y-%m-%d", time.gmtime())}
    facts = provenance()
    days.add(time.strftime("%Y-%m-%d", time.gmtime()))  # it may have been midnight
    assert facts["date"] in days
    versions = facts["versions"]
    assert versions["python"] == platform.python_version()
    for package in ("torch", "transformers", "peft"):
        assert versions[package] == metadata.version(package)
    gpu = torch.cuda.is_available()
    assert facts["device"] == (torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads")
    json.dumps(facts)


def git(folder: Path, *words: str) -> str:
    name = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    done = subprocess.run(["git", *name, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A git repository that the package seems to run from."""
    try:
        git(tmp_path, "--version")
    except OSError:
        pytest.skip("git is not installed")
    folder = tmp_path / "checkout"
    write_text(folder / "ivon_lora_lite" / "files.py", "first\n")
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "first", "--no-gpg-sign")
    monkeypatch.setattr(files, "__file__", str(folder / "ivon_lora_lite" / "files.py"))
    return folder


def test_provenance_has_the_commit_and_says_if_the_tree_differs_from_it(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    assert provenance()["commit"] == head[:12]
    git(checkout, "tag", "v1")  # a tag's name would not be the commit
    assert provenance()["commit"] == head[:12]
    write_text(checkout / "ivon_lora_lite" / "files.py", "second\n")
    assert provenance()["commit"] == f"{head[:12]}-dirty"


def test_an_installed_package_does_not_claim_the_commit_of_the_project_around_it(checkout, monkeypatch):
    installed = checkout / ".venv" / "site-packages" / "ivon_lora_lite" / "files.py"
    write_text(installed, "")
    monkeypatch.setattr(files, "__file__", str(installed))
    assert provenance()["commit"] is None
