"""Whole files, and a folder that one process has at a time, whatever becomes of the others."""

import signal
import subprocess
import sys
import uuid

import pytest

from gradebench.core.errors import InputError
from gradebench.storage import files

HOLD = "import sys, time, pathlib; from gradebench.storage.files import exclusive_lock\nwith exclusive_lock(pathlib.Path(sys.argv[1])): print('mine', flush=True); time.sleep(600)"


@pytest.fixture
def holder(tmp_path):
    """Another process that has the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "mine\n"
    yield process
    process.kill()
    process.wait()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "table.csv"
    with files.atomic_path(path) as draft:
        draft.write_text("first")
    with pytest.raises(RuntimeError), files.atomic_path(path) as draft:
        draft.write_text("half")
        raise RuntimeError
    assert path.read_text() == "first" and names(tmp_path) == ["table.csv"]


def test_a_folder_that_another_process_has_is_refused_with_its_number(holder, tmp_path):
    for attempt in (files.require_unlocked, lambda folder: files.exclusive_lock(folder).__enter__()):
        with pytest.raises(InputError, match=rf"is in use by process {holder.pid} on .*--out"):
            attempt(tmp_path)
    assert names(tmp_path) == [".lock"]


def test_the_lock_of_a_killed_process_is_no_lock(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert names(tmp_path) == [".lock"]
    with files.exclusive_lock(tmp_path), pytest.raises(InputError, match="in use"):
        files.require_unlocked(tmp_path)
    assert names(tmp_path) == []


def test_who_takes_a_folder_removes_the_drafts_of_a_killed_one_and_nothing_else(tmp_path):
    cell = tmp_path / "cells" / "a"
    cell.mkdir(parents=True)
    for folder in (tmp_path, cell):
        (folder / f".metrics.parquet.{uuid.uuid4().hex}").write_text("half")
        (folder / ".hidden").write_text("the user's")
        (folder / "metrics.parquet").write_text("whole")
    with files.exclusive_lock(tmp_path):
        pass
    assert names(cell) == [".hidden", "metrics.parquet"]
    assert names(tmp_path) == [".hidden", "cells", "metrics.parquet"]


def test_looking_whether_a_folder_is_free_makes_nothing(tmp_path):
    files.require_unlocked(tmp_path / "nowhere")
    files.require_unlocked(tmp_path)
    assert names(tmp_path) == []
