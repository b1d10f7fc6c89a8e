"""Folders that are written whole or not at all, whose they are while it lasts, and results that are not lost."""

import itertools
import os
import subprocess
import sys

import pytest
from filelock import FileLock
from safetensors import SafetensorError

from ivon_lora_lite.files import LOCK, finished, keep_options, reserved, whole_folder, write_json, write_or_keep

ROOT = os.geteuid() == 0 if hasattr(os, "geteuid") else False


def write(folder, *names, text="new"):
    with whole_folder(folder, last=names[-1]) as stage:
        for name in names:
            (stage / name).parent.mkdir(exist_ok=True)
            (stage / name).write_text(text)


def texts(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_working_folder_and_a_link_are_written_to_and_stay_what_they_are(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "a", "b")
    assert (tmp_path / "link").is_symlink() and texts(tmp_path / "real") == {"a": "new", "b": "new"}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write(".", "sub/a", "b")
    assert texts(tmp_path / "here") == {"b": "new", "sub/a": "new"}


def test_a_failure_at_any_moment_leaves_the_former_files(tmp_path, monkeypatch):
    folder, plain = tmp_path / "run", os.replace
    write(folder, "a", "b", "facts", text="former")
    for moment in range(6):  # three moves aside and three into place
        moves = itertools.count()

        def fails(source, target, moves=moves, moment=moment):
            if next(moves) == moment:
                raise KeyboardInterrupt
            plain(source, target)

        monkeypatch.setattr(os, "replace", lambda *paths, fails=fails: fails(*paths))
        with pytest.raises(KeyboardInterrupt):
            write(folder, "a", "c", "facts")
        monkeypatch.setattr(os, "replace", plain)
        assert texts(folder) == {"a": "former", "b": "former", "facts": "former"}, moment
    write(folder, "a", "c", "facts")
    assert texts(folder) == {"a": "new", "c": "new", "facts": "new"}


def test_a_failure_leaves_no_folder_that_was_not_there(tmp_path):
    with pytest.raises(ValueError), whole_folder(tmp_path / "deep" / "er", last="a") as stage:
        (stage / "a").write_text("half")
        raise ValueError
    assert not (tmp_path / "deep").exists()


def test_a_reserved_folder_is_one_processs_until_it_ends(tmp_path):
    with reserved(tmp_path / "run"):
        other = "import sys; from ivon_lora_lite.files import reserved; reserved(sys.argv[1]).__enter__()"
        done = subprocess.run([sys.executable, "-c", other, tmp_path / "run"], capture_output=True, text=True)
        assert "FileExistsError" in done.stderr and "by another process" in done.stderr
        write(tmp_path / "run", "a")  # the lock stays while its own process writes
        assert (tmp_path / "run" / LOCK).exists()
    assert texts(tmp_path / "run") == {"a": "new"}
    with reserved(tmp_path / "empty"):
        pass
    assert not (tmp_path / "empty").exists()


def test_the_lock_of_a_process_that_was_killed_is_no_obstacle(tmp_path):
    other = "import os, sys; from ivon_lora_lite.files import reserved\nwith reserved(sys.argv[1]): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", other, tmp_path]).returncode == 9
    assert (tmp_path / LOCK).exists()
    for _ in range(2):
        with reserved(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_process_reserves_a_folder_once(tmp_path):
    with reserved(tmp_path):
        with pytest.raises(FileExistsError, match="another"), reserved(tmp_path):
            raise AssertionError("not reached")
        with reserved(tmp_path / "within"):
            pass


def test_of_many_that_want_a_folder_at_once_one_gets_it_at_a_time(tmp_path):
    tries = """
import sys, time
from pathlib import Path
from ivon_lora_lite.files import reserved
for _ in range(200):
    try:
        with reserved(sys.argv[1]) as folder:
            (folder.parent / "inside").open("x").close()
            (folder.parent / "inside").unlink()
    except FileExistsError as error:
        assert "another" in str(error), error
"""
    many = [subprocess.Popen([sys.executable, "-c", tries, tmp_path / "run"]) for _ in range(4)]
    assert [process.wait() for process in many] == [0] * 4


def test_a_folder_that_another_process_takes_away_meanwhile_is_made_again(tmp_path, monkeypatch):
    acquire, folder, taken = FileLock.acquire, tmp_path / "above" / "run", []

    def at_the_second_try(lock):
        if not taken:
            taken.append(folder.rmdir())
            raise FileNotFoundError(2, "No such file or directory")
        return acquire(lock)

    monkeypatch.setattr(FileLock, "acquire", at_the_second_try)
    with reserved(folder):
        assert (folder / LOCK).exists()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_said_at_once(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError), reserved(folder):
            raise AssertionError("not reached")
    assert texts(tmp_path) == {"file": "mine"}


@pytest.mark.skipif(ROOT, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="choose another"), reserved(tmp_path / "run"):
        raise AssertionError("not reached")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_result_that_cannot_be_written_is_kept_elsewhere_and_the_place_is_said(error, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def full(folder):
        with whole_folder(folder, last="result") as stage:
            if folder == tmp_path / "run":
                raise error
            (stage / "result").write_text("an hour of training")

    with pytest.raises(OSError, match="No space left") as refused:
        write_or_keep(full, tmp_path / "run")
    place = next(tmp_path.glob("run-*"))
    assert str(place) in str(refused.value) and texts(place) == {"result": "an hour of training"}


def test_a_record_is_finished_only_with_the_options_that_are_asked_for(tmp_path):
    file, options = tmp_path / "record.json", {"passes": 20, "tasks": ("a", "b")}
    assert not finished(file, options)
    write_json(file, {"options": options})
    assert finished(file, options) and finished(file, options | {"new": 1})  # of which an old record knows nothing
    with pytest.raises(ValueError, match="made with passes=20, and now passes=5 is asked for"):
        finished(file, options | {"passes": 5})
    write_json(file, {"config": {"passes": 3}})
    assert finished(file, options)
    with pytest.raises(ValueError, match="passes=3"):
        finished(file, options, "config")


def test_a_folder_of_results_keeps_to_its_options(tmp_path):
    keep_options(tmp_path / "out", {"samples": 10, "taus": (0.0, 1.0)})
    keep_options(tmp_path / "out", {"samples": 10, "taus": [0.0, 1.0]})
    with pytest.raises(ValueError, match="samples=10, and now samples=3 is asked for"):
        keep_options(tmp_path / "out", {"samples": 3})
