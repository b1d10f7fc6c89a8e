"""Recorded results are found from a folder of notebooks, beside a clone, and from anywhere if the package is in one."""

import pytest

from ivon_lora_lite.studies import recorded


def test_it_is_found_in_this_clone_and_in_one_beside_the_notebook(tmp_path, monkeypatch):
    assert (recorded() / "README.md").is_file()
    assert recorded("passes").name == "passes"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no data/runs/mine here: clone the repository"):
        recorded("mine")
    (tmp_path / "repository" / "data" / "runs" / "mine").mkdir(parents=True)
    assert recorded("mine") == tmp_path / "repository" / "data" / "runs" / "mine"
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "data" / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks")
    assert recorded("mine") == tmp_path / "data" / "runs" / "mine"
