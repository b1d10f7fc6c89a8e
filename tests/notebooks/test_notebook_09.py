"""Notebook 09: it is committed in smoke mode, its command is the tested one, and its solutions are right."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import transformers

from ivon_lora_lite.cli import build_parser
from ivon_lora_lite.language import GIB
from ivon_lora_lite import memory_of
from ivon_lora_lite.language import LLAMA_2_7B

ROOT = Path(__file__).parents[2]
NOTEBOOK = json.loads((ROOT / "notebooks" / "09_llama2_7b.ipynb").read_text("utf8"))
SOLUTIONS = (ROOT / "notebooks" / "solutions" / "09_llama2_7b.md").read_text("utf8")
CELLS = [(c["cell_type"], "".join(c["source"]), c.get("outputs", [])) for c in NOTEBOOK["cells"]]
CODE = [source for kind, source, _ in CELLS if kind == "code"]
PROSE = "\n\n".join(source for kind, source, _ in CELLS if kind == "markdown")


def shown() -> str:
    return "\n".join("".join(o.get("text", "")) for _, _, outputs in CELLS for o in outputs)


def test_what_is_committed_was_run_in_smoke_mode_and_says_so():
    assert "SMOKE MODE: two layers, random weights, three steps." in shown()
    assert "not recorded yet" in shown() or list((ROOT / "data" / "runs").glob("gpu-*/*.json"))
    assert "will be finetuned here" not in shown()


def test_a_break_and_a_resumed_run_were_seen():
    assert "the connection broke; there is ['checkpoint-1']" in shown()
    equal = re.search(r"(\d+) of (\d+) tensors \(means and variances\) are the same to the bit", shown())
    assert equal[1] == equal[2] == "16"  # A and B of q and v in two layers, each with mean and variance


def test_bitsandbytes_is_installed_only_where_a_gpu_is():
    assert '"notebooks,gpu" if shutil.which("nvidia-smi") else "notebooks"' in CODE[0]
    nodes = [node for source in CODE for node in ast.walk(ast.parse(source))]
    imported = {a.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for a in node.names}
    assert "bitsandbytes" not in imported


def test_the_command_is_the_one_that_the_command_line_takes():
    (command,) = re.findall(r"^python -m ivon_lora_lite (finetune .+)$", PROSE, re.M)
    args = build_parser().parse_args(shlex.split(command))
    assert (args.model, args.quantize, args.task) == ("meta-llama/Llama-2-7b-hf", "8bit", "winogrande_s")
    assert (args.preset, args.optimizer, args.steps, args.format) == ("paper", "ivon", None, None)  # the preset's
    assert f'MODEL, TASK, QUANTIZE = "{args.model}", "{args.task}", "{args.quantize}"' in "\n".join(CODE)


def test_solution_1_is_right():
    code = re.search(r"```python\n(.*?)```", SOLUTIONS, re.S)[1]
    code = re.sub(r"^ {3}", "", code, flags=re.M).split("\n\n\nfor")[0]
    names = {"LlamaConfig": transformers.LlamaConfig, "LLAMA_2_7B": LLAMA_2_7B, "memory_of": memory_of, "GIB": GIB}
    exec(code, names)
    fits = names["fits"]
    assert fits("4bit", 15) is True and fits("8bit", 15) is False and fits(None, 40) is True  # what the notebook checks
