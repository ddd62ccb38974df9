"""What the tests of runs share: the tiny task, the command line in this process, and cells without worker processes."""

import contextlib
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest

TINY = Path(__file__).with_name("tiny.py")


@contextlib.contextmanager
def workers_in_this_process(places, timeout, foreign=None):
    """What the workers do, without the seconds that each takes to start."""
    from gradebench.experiment.workers import outcome_of

    def each(function, calls):
        for call in calls:
            ended = outcome_of(function, call)
            if isinstance(ended, Exception):
                raise ended
            yield call, ended

    yield each


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Two threads would wait on each other for tiny tensors, and on a busy machine for long."""
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)


@pytest.fixture(autouse=True)
def wide_pipes(monkeypatch):
    """What commands print has the width of a pipe, whatever terminal the tests run in."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing is read from the user's cache, or left in it."""
    monkeypatch.setenv("GRADEBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def nothing_read_before(monkeypatch):
    """What code of plugins has read in earlier tests, whose process this is, counts for no cell here."""
    from gradebench.storage import followed

    for name in ("opened", "variables", "loaded", "declared", "readers"):
        monkeypatch.setattr(followed._following, name, {})
    monkeypatch.setattr(followed._following, "written", set())


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """For tests that begin with the same run: the first one makes it, the others have a copy of its folder.

    Returns what `make` did. Of a folder that is there already nothing is kept.
    """
    kept = {}

    def call(key, folder, make):
        if folder.exists():
            return make()
        if key in kept:
            shutil.copytree(kept[key][0], folder)
        else:
            answer = make()
            shutil.copytree(folder, copy := tmp_path_factory.mktemp("kept") / folder.name)
            kept[key] = copy, answer
        return kept[key][1]

    return call


@pytest.fixture
def tiny():
    """The spec of an object in the file of the tiny task."""
    return lambda name="TinyTask": f"{TINY}:{name}"


@pytest.fixture
def few_draws(monkeypatch):
    """As few evaluations and probes as still give every kind of row."""
    from gradebench.experiment import preparing, runner

    plan = partial(preparing.Plan, evaluations=1, warm_up=1)
    plan.probe_draws, plan.reference_draws = 4, 2  # what a run reads from the class
    monkeypatch.setattr(preparing, "Plan", plan)
    monkeypatch.setattr(runner, "Request", partial(runner.Request, checkpoints=2))


@pytest.fixture
def in_process(monkeypatch, few_draws):
    """Cells run in this process, one after another."""
    monkeypatch.setattr("gradebench.experiment.launchers.workers", workers_in_this_process)


@pytest.fixture
def no_report(monkeypatch):
    """Runs write no report, which takes a fourth of their time; `gradebench report` and `merge` do."""
    monkeypatch.setattr("gradebench.api.write_report", lambda *given, **named: None)


@pytest.fixture
def short(monkeypatch, in_process, no_report):
    """Runs that probe once and write no report."""
    from gradebench.experiment import runner

    monkeypatch.setattr(runner, "Request", partial(runner.Request, checkpoints=1))


@pytest.fixture
def command(monkeypatch, capsys):
    """The command line as the installed script runs it; returns exit status, stdout and stderr."""
    from gradebench import cli

    monkeypatch.setattr("gradebench.core.alive.IN_LOG", 1e9)  # no lines that only a slow machine would have

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["gradebench", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (ended.value.code or 0, *capsys.readouterr())

    return call
