"""Isolates cells of different plugins: shared state that plugin code changed is detected, restored and reported."""

import contextlib
import os
import resource
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from gradebench.core.errors import InputError
from gradebench.core.global_state import PROCESS, Setting, put_back
from gradebench.core.shown import counted
from gradebench.core.task import Task
from gradebench.experiment import workers
from gradebench.experiment.fingerprint import changed, fingerprint
from gradebench.experiment.loaded import worker
from gradebench.plugins.patches import Snapshot, imported
from gradebench.storage import followed

_SHOWN = 5  # changes that a message lists
_FILES = 32  # open files that a cell may leave


class Watch:
    """Watches a cell that may run plugin code."""

    def __init__(self, foreign: Sequence[str], name: str):
        """`foreign`: where the code of its task and its estimator comes from; `name`: the estimator's label."""
        self.plugins = [one for one in foreign if one]
        self.name = name
        if self.plugins:
            followed.follow(self.plugins)
            self.settings = put_back(name, PROCESS)
            self.settings.__enter__()
            self.snapshot = Snapshot()
            self.threads, self.files = set(threading.enumerate()), _open_files()

    def ended(self) -> str:
        """Why the cell's results can't be used, or "". What it changed is loaded again, and a worker process is replaced."""
        names = [name for plugin in self.plugins for name in imported.get(plugin, ())]
        names += worker.changes()
        if self.plugins:
            self.settings.__exit__(None, None, None)
            names += self.snapshot.undo(self.plugins[-1])
            if self._left_running():
                workers.spend()
        if not names:
            return ""
        worker.forget()
        workers.spend()
        return f"{_said(self.plugins, self.name)} changed what other cells use too: {_few(names)}; its numbers are discarded"

    def _left_running(self) -> bool:
        """Whether the cell left threads, a timer or many open files."""
        threads = [one for one in threading.enumerate() if one not in self.threads and one.is_alive()]
        timer = hasattr(signal, "getitimer") and any(signal.getitimer(signal.ITIMER_REAL))
        return bool(threads) or timer or _open_files() > self.files + _FILES


@contextlib.contextmanager
def unchanged(what: str, foreign: str, tasks: Sequence[Task] = (), settings: Sequence[Setting] = ()) -> Iterator[None]:
    """A context for plugin code in the main process, which restores settings.

    Raises        InputError if the code changes the tasks or other process-wide state, or leaves many files open.
    """
    if not foreign:
        yield
        return
    before = [fingerprint(task, ()) for task in tasks]
    snapshot, files = Snapshot(), _open_files()
    with put_back(what, settings):
        yield
    names = [name for one, task in zip(before, tasks, strict=True) for name in changed(one, fingerprint(task, ()))]
    names += snapshot.undo(foreign)
    if names:
        raise InputError(f"{what} can't be used: it changed what others use too, {_few(names)}")
    left, most = _open_files() - files, resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most > 0 and left > most / 4:
        raise InputError(
            f"{what} can't be used: it left {counted(left, 'file')} open, of {most} for the whole process; close them"
        )


def _said(plugins: Sequence[str], name: str) -> str:
    return f"code of {' or '.join(Path(one).name for one in plugins)}" if plugins else name


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _open_files() -> int:
    """The number of open files of this process; 0 if the system doesn't say."""
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/fd"))
    return 0
