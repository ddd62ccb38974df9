"""How a worker process starts: forked from a server that has imported the libraries already, else from nothing.

The imports take seconds of a core; the server makes them once for all workers of this process. It imports libraries,
never code of a plugin, of a run or of the user's script, and computes nothing. Its only threads are those that
libraries start on import and that they themselves take care of when a process forks (OpenBLAS, jemalloc).

A worker gets this process's environment, folder, module path, stdout and stderr, as one that starts from nothing. What
libraries read from the environment on import is the server's, though; so where the environment or the module path has
changed since the server began, workers start from nothing.
"""

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from typing import Any

from gradebench.plugins import descendants

_LIBRARIES = ["torch", "torch._dynamo", "pandas", "scipy.linalg", "scipy.special"]  # torch.optim needs the second
_HANDED_OVER = ("GRADEBENCH_", "PYTEST_")  # variables that no library reads on import, so they may change
_UNMARKED = "0" * 32

Around = tuple[dict[str, str], list[str]]


class _Server:
    """The one that this module has started: its process, and what it began with."""

    pid: int | None = None
    around: Around | None = None
    failed = sys.platform != "linux"  # elsewhere it isn't safe to fork what has imported libraries


def start(target: Callable[..., None], arguments: tuple[Any, ...], mark: str, forked: bool) -> Any:
    """A process that runs `target(*arguments)`, with `mark` in its environment; `forked`, where that is possible."""
    if forked and not _Server.failed:
        try:
            if process := _fork(target, arguments, mark):
                return process
        except (OSError, EOFError):  # no room for its socket, or killed
            _Server.failed = True
    process = get_context("spawn").Process(target=target, args=arguments)
    with _environment({descendants.MARK: mark}):
        process.start()
    return process


def _fork(target: Callable[..., None], arguments: tuple[Any, ...], mark: str) -> Any:
    """The process; None where the server is another program's, or began with something else than is around us now."""
    server: Any = forkserver._forkserver
    if server._forkserver_pid not in (None, _Server.pid):
        return None
    path = [folder or os.getcwd() for folder in sys.path]
    around = {name: value for name, value in os.environ.items() if not name.startswith(_HANDED_OVER)}, path
    environment = os.environ | {descendants.MARK: mark}
    with _server_of(around), contextlib.ExitStack() as stack:
        if _Server.around != around:
            return None
        streams = {}
        for number in (1, 2):
            with contextlib.suppress(OSError):  # it is closed
                streams[number] = stack.enter_context(Connection(os.dup(number)))
        process: Any = get_context("forkserver").Process(
            target=_begin, args=(dict(environment), streams, mark, target, arguments)
        )
        process.start()
    return process


@contextlib.contextmanager
def _server_of(around: Around) -> Iterator[None]:
    """A server runs; one that starts in here, also because the first has just been killed, begins with `around`."""
    server: Any = forkserver._forkserver
    preload = server._preload_modules
    # The modules as this process finds them, not as the folder that it stands in has them.
    names = {"PYTHONPATH": os.pathsep.join(around[1]), "PYTHONSAFEPATH": "1", descendants.MARK: _UNMARKED}

    def ours() -> None:
        if server._forkserver_pid != _Server.pid:
            _Server.pid, _Server.around = server._forkserver_pid, around

    with _environment(names):
        forkserver.set_forkserver_preload(_LIBRARIES)
        try:
            forkserver.ensure_running()
            ours()
            yield
        finally:
            ours()
            forkserver.set_forkserver_preload(preload)


def _begin(
    environment: Mapping[str, str],
    streams: Mapping[int, Connection],
    mark: str,
    target: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    """In the process: as if it had started from nothing."""
    import numpy as np

    for number, stream in streams.items():
        os.dup2(stream.fileno(), number)
        stream.close()
    _show(mark)
    os.environ.clear()
    os.environ.update(environment)
    np.random.seed()  # noqa: NPY002  else all workers would draw what the server would
    target(*arguments)


def _show(mark: str) -> None:
    """Write the mark over the server's, where the system shows the environment that a process began with. Children that
    are forked have it there too, also once their parent has ended."""
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    place = libc.getenv(descendants.MARK.encode())
    if place:
        ctypes.memmove(place, mark.encode(), len(_UNMARKED))


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
