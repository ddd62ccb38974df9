"""Whole files, and a folder that one process has at a time, whatever becomes of the others."""

import signal
import subprocess
import sys
import uuid

import pytest

from gradebench.core.errors import InputError
from gradebench.storage import disk

HOLD = "import sys, time, pathlib; from gradebench.storage.disk import held\nwith held(pathlib.Path(sys.argv[1])): print('mine', flush=True); time.sleep(600)"


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
    with disk.whole(path) as draft:
        draft.write_text("first")
    with pytest.raises(RuntimeError), disk.whole(path) as draft:
        draft.write_text("half")
        raise RuntimeError
    assert path.read_text() == "first" and names(tmp_path) == ["table.csv"]


def test_a_folder_that_another_process_has_is_refused_with_its_number(holder, tmp_path):
    for attempt in (disk.require_free, lambda folder: disk.held(folder).__enter__()):
        with pytest.raises(InputError, match=rf"is in use by process {holder.pid} on .*--out"):
            attempt(tmp_path)
    assert names(tmp_path) == [".lock"]


def test_the_lock_of_a_killed_process_is_no_lock(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert names(tmp_path) == [".lock"]
    with disk.held(tmp_path), pytest.raises(InputError, match="in use"):
        disk.require_free(tmp_path)
    assert names(tmp_path) == []


def test_who_takes_a_folder_removes_the_drafts_of_a_killed_one_and_nothing_else(tmp_path):
    cell = tmp_path / "cells" / "a"
    cell.mkdir(parents=True)
    for folder in (tmp_path, cell):
        (folder / f".metrics.parquet.{uuid.uuid4().hex}").write_text("half")
        (folder / ".hidden").write_text("the user's")
        (folder / "metrics.parquet").write_text("whole")
    with disk.held(tmp_path):
        pass
    assert names(cell) == [".hidden", "metrics.parquet"]
    assert names(tmp_path) == [".hidden", "cells", "metrics.parquet"]


def test_looking_whether_a_folder_is_free_makes_nothing(tmp_path):
    disk.require_free(tmp_path / "nowhere")
    disk.require_free(tmp_path)
    assert names(tmp_path) == []
