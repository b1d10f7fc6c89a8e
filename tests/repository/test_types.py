"""What a type checker says about code that uses the library: every name is known, and the README has no error."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import ivon_lora_lite

PACKAGE = ROOT / "ivon_lora_lite"
PREAMBLE = """
from typing import Any
from torch import Tensor, nn
from transformers import TrainingArguments
args: TrainingArguments
batches: list[dict[str, Tensor]]
train: Any
def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return batch["answers"]
"""
USE = """
from ivon_lora_lite import GaussianPosterior, Run, load_run, tau_sweep, choose_tau, linearized, plots
from ivon_lora_lite.training import with_tau
again: Run = with_tau(load_run("outputs/everyday-ivon"), task.validation)
tau, why = choose_tau(tau_sweep(run, task.test, taus=[0, 0.5, 1], samples=3))
tau + linearized(run, task.test).mean.shape[0]
scores = score(predict(again, task.test))
scores["nll"] + scores.intervals["nll"][0]
suggestion = suggest_hyperparameters(model, task)
finetune(model, task, ess="sqrt", prior="per_matrix", hess_approx="gradsq")
posterior_of_run = finetune(model, task, **suggestion.settings()).posterior
if posterior_of_run is not None:
    posterior_of_run.summary()["sigma_mean"] + len(posterior_of_run.prune(0.5).scale(0.5).variance)
optimizer.step(lambda: 0.5)
gaussian: GaussianPosterior = GaussianPosterior.load("outputs/everyday-ivon")
model.save_pretrained("adapter")
"""


def complaints(path):
    """mypy's errors in one file; those within the library itself and of packages without types do not count."""
    command = [sys.executable, "-m", "mypy", "--follow-imports", "silent", "--ignore-missing-imports", path.name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=path.parent)
    return [line for line in done.stdout.splitlines() if ": error:" in line], done.stdout + done.stderr


@pytest.mark.slow
def test_a_type_checker_knows_every_public_name_and_finds_no_error_in_the_readme(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf8"), re.S)
    names = ", ".join(ivon_lora_lite.__all__)
    text = f"from ivon_lora_lite import {names}\n{PREAMBLE}\n" + "\n".join(blocks) + USE
    assert len(blocks) >= 6
    (tmp_path / "readme.py").write_text(text + "predict(run, 3)\nrun.sav\n", "utf8")
    errors, said = complaints(tmp_path / "readme.py")
    assert len(errors) == 2, said  # the two that were put in, so that it is known to look
    assert 'Argument 2 to "predict"' in errors[0] and 'has no attribute "sav"' in errors[1]


ROOMS = [path for path in PACKAGE.glob("*/__init__.py") if path.parent.name != "cli"]


@pytest.mark.parametrize("init", [PACKAGE / "__init__.pyi", *ROOMS], ids=lambda init: init.parent.name)
def test_a_room_hands_on_what_it_imports_of_its_own(init):
    own = [node for node in ast.parse(init.read_text("utf8")).body if getattr(node, "level", 0) == 1]
    assert own and all(alias.name == alias.asname for node in own for alias in node.names)
    if init.suffix == ".pyi":
        assert {alias.name for node in own for alias in node.names} == set(ivon_lora_lite.__all__)
