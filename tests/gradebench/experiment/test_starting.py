"""A forked worker has all that one has which starts from nothing, and nothing that it wouldn't have."""

import os
import signal
import sys
import time
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import pytest
from worker_calls import around, imported, kills_server, orphans, parent

from gradebench.experiment import starting
from gradebench.experiment.workers import Place, workers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
FORKED = Place(forked=True)


@pytest.fixture(autouse=True)
def a_server_of_this_place(monkeypatch):
    """One that an earlier test has left may have begun with something else than is around these tests."""
    monkeypatch.setattr(starting._Server, "failed", False)
    if call(parent)[1] == str(os.getpid()):
        os.kill(starting._Server.pid, signal.SIGKILL)
        os.waitid(os.P_PID, starting._Server.pid, os.WEXITED | os.WNOWAIT)  # as long as it dies, it seems to be there
        assert call(parent)[1] != str(os.getpid())


def call(function, *arguments, place=FORKED):
    """What one worker answers."""
    with workers([place], None, lambda call: ("a plugin",)) as each:
        return next(ended for _, ended in each(function, [arguments]))


def test_it_finds_around_it_what_a_process_does_that_starts_from_nothing(monkeypatch, capfd, tmp_path):
    ours = [name for name in sys.modules if name.partition("_")[0] in ("test", "tests")]
    call(around, ours)  # starts the server, in another folder and environment
    capfd.readouterr()
    monkeypatch.setenv("GRADEBENCH_NEW", "1")
    monkeypatch.chdir(tmp_path)
    (first, random_1), (second, random_2) = (call(around, ours) for _ in range(2))
    said = capfd.readouterr()
    alone, drawn_alone = call(around, ours, place=Place())
    assert first == second == alone and "'marked': True" in alone
    assert said.out == 2 * "written to 1\n" and said.err == 2 * "said on stdout\n"
    first, second, alone = (eval(drawn) for drawn in (random_1, random_2, drawn_alone))
    assert first[0] != second[0] and first[1] != second[1]
    assert first[2] == second[2] == forkserver._forkserver._forkserver_pid and alone[2] == os.getpid()


@pytest.mark.parametrize("change", ["environment", "path"])
def test_where_libraries_would_be_imported_otherwise_it_starts_from_nothing(monkeypatch, tmp_path, change):
    assert call(parent)[1] != str(os.getpid())
    with monkeypatch.context() as changed:
        if change == "environment":
            changed.setenv("MKL_CBWR", "COMPATIBLE")
        else:
            changed.syspath_prepend(tmp_path)
        assert call(parent)[1] == str(os.getpid())
    assert call(parent)[1] != str(os.getpid())


def test_the_server_has_imported_libraries_alone_and_computed_nothing():
    """Else a worker could have code of a plugin, or hang on a lock that a thread held when it was forked."""
    call(parent)
    server = Path(f"/proc/{forkserver._forkserver._forkserver_pid}")
    names = [(task / "comm").read_text().strip() for task in (server / "task").iterdir()]
    assert not [name for name in names if name.startswith(("omp", "iomp", "mkl", "ray"))]
    status, modules = call(imported, "gradebench")
    assert status == "ok"
    assert not [name for name in modules.split() if "estimators" in name or "tasks" in name or "file_" in name]


def test_without_its_server_it_ends_and_another_one_goes_on():
    """The run takes it for dead, so it must write nothing more."""
    place = replace(FORKED)
    with workers([place], None) as each:
        (status, reason), took = next(ended for _, ended in each(kills_server, [()])), time.monotonic()
        assert status == "failed" and "its process ended with status 255" in reason
        assert next(ended for _, ended in each(parent, [()]))[0] == "ok"
    assert time.monotonic() - took < 60


def test_a_server_killed_just_before_it_forks_has_a_successor(monkeypatch):
    """Python then starts another one by itself; it is ours too, else no later worker would be forked."""
    ensure_running = forkserver.ensure_running

    def runs_and_is_killed():
        ensure_running()
        server = forkserver._forkserver._forkserver_pid
        os.kill(server, signal.SIGKILL)
        os.waitid(os.P_PID, server, os.WEXITED | os.WNOWAIT)

    call(parent)
    with monkeypatch.context() as patched:
        patched.setattr(forkserver, "ensure_running", runs_and_is_killed)
        first = call(parent)
    again, (_, libraries) = call(parent), call(imported, "torch")
    assert first == again == ("ok", str(starting._Server.pid)) and "torch._dynamo" in libraries.split()


def test_what_it_forked_and_orphaned_ends_with_it(tmp_path):
    """No parent leads to such a process, and it has begun no program that would have the environment."""
    path = tmp_path / "pid"
    status, reason = call(orphans, path)
    assert status == "failed" and "status 7" in reason
    pid = int(path.read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_where_no_server_can_start_it_starts_from_nothing(monkeypatch):
    def no_room():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(forkserver, "ensure_running", no_room)
    monkeypatch.setattr(starting._Server, "failed", False)
    assert call(parent) == ("ok", str(os.getpid()))
    assert starting._Server.failed
