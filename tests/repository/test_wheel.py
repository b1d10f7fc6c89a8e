"""The wheel and the source distribution, away from the repository: every public name, and the demo."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Both, built as `pip` and `build` do, by the back end that pyproject names."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    for kind in ("wheel", "sdist"):
        subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)], cwd=ROOT, check=True)
    (wheel,), (source,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, source


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """What runs Python on the unpacked wheel, in an empty folder, where the repository cannot be found."""
    packages, here = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("here")
    zipfile.ZipFile(built[0]).extractall(packages)
    environment = {**os.environ, "PYTHONPATH": str(packages), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=here, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    run.packages, run.here = packages, here
    return run


@pytest.mark.slow
def test_every_public_name_is_in_the_wheel(installed):
    code = "import ivon_lora_lite as p; [getattr(p, name) for name in p.__all__]; "
    code += "print(p.__file__, len(p.load_task('everyday').test))"
    file, questions = installed("-c", code).split()
    assert Path(file).is_relative_to(installed.packages) and questions == "912"


@pytest.mark.slow
def test_the_wheel_says_that_it_has_types(built):
    assert {"ivon_lora_lite/py.typed", "ivon_lora_lite/__init__.pyi"} <= set(zipfile.ZipFile(built[0]).namelist())


def test_the_demo_runs_from_the_wheel(installed, tiny_folder):
    sizes = ("--steps", "5", "--train-size", "8", "--test-size", "6", "--samples", "2")
    installed("-m", "ivon_lora_lite", "demo", *sizes, "--model", str(tiny_folder), "--out", "demo", "--quiet")
    written = {path.name for path in (installed.here / "demo").iterdir()}
    assert {"metrics.json", "report.html", "adamw", "ivon", "predictions"} <= written


def test_the_source_distribution_has_package_data_and_tests(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"ivon_lora_lite/ivon/optimizer.py", "data/everyday/test.jsonl", "README.md", "LICENSE"} <= names
    assert "tests/conftest.py" in names
    assert not [name for name in names if name.startswith(("notebooks", "data/runs"))]
