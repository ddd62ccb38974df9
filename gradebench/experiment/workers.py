"""Worker processes that run cells in parallel: one may hang, crash or be killed without harm to the others.

Every process has its own pipe. In the pools of the standard library and of pebble, the processes share a queue and its
lock, which a killed process may hold for ever; and pebble measures timeouts by the wall clock, which may jump.
"""

import contextlib
import os
import signal
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe, connection, current_process, parent_process, resource_tracker
from pathlib import Path
from typing import Any

from gradebench.core.errors import InputError
from gradebench.core.interrupts import is_users
from gradebench.core.streams import make_ready
from gradebench.experiment import starting
from gradebench.plugins import descendants
from gradebench.storage.files import out_of_room

Work = Callable[..., tuple[str, str]]  # returns a status, and the reason if it isn't `ok`
Each = Callable[[Work, Iterable[Any]], Iterator[tuple[Any, tuple[str, str]]]]
Foreign = tuple[str, ...]  # origins of the plugin code that a call runs; "" for built-in code
# Messages of a process: it is ready for calls, it has begun one, it must not get another one.
READY, BEGUN, SPENT = "ready", "begun", "spent"
STARTS = 3  # failed starts in a row that end the run
UNGUARDED = 79  # exit status of a process whose start would run the user's script again
_GUARD = (
    'a script that calls gradebench has to do so below `if __name__ == "__main__":`, because each worker process reads '
    "the script"
)


@dataclass(frozen=True)
class Place:
    """Where one call at a time runs: the number of threads, and the GPU for CUDA_VISIBLE_DEVICES; None: unchanged.
    `forked`: whether its process may be forked, because it needs no GPU."""

    threads: int = 1
    gpu: str | None = None
    forked: bool = False


def places(jobs: int, device: str, gpus: Sequence[str]) -> list[Place]:
    """`jobs` places on the CPU, or on each of the `gpus` in turn.

    On a CPU each has one thread, so that results don't depend on the number of parallel cells.
    """
    if not device.startswith("cuda"):
        return [Place(forked=True)] * jobs
    seen: Sequence[str | None] = (
        gpus if device == "cuda" and gpus else [None]
    )  # cuda:1 is the same GPU in all processes
    threads = max(1, usable_cores() // (jobs * len(seen)))
    return [Place(threads, gpu) for _ in range(jobs) for gpu in seen]


def visible_gpus() -> list[str]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]


@contextlib.contextmanager
def workers(
    places: Sequence[Place], timeout: float | None, foreign: Callable[[Any], Foreign] = lambda call: ()
) -> Iterator[Each]:
    """Worker processes: `each(function, calls)` yields each call with its status and reason when it ends.

    A process that has run plugin code only gets further calls with the same `foreign(call)`, so calls are grouped by it.

    Raises        InputError if processes don't start.
    """
    require_started()
    starts = _Starts()
    pool = [_Worker(place, starts) for place in places]

    def each(function: Work, calls: Iterable[Any]) -> Iterator[tuple[Any, tuple[str, str]]]:
        waiting = _Waiting(calls, foreign)
        busy: list[_Worker] = []
        while True:
            for worker in pool:
                if worker not in busy and (turn := waiting.next(worker, busy)) is not None:
                    worker.take(function, *turn)
                    busy.append(worker)
            if not busy:
                return
            _wait(busy, timeout)
            for worker in list(busy):
                ended = worker.outcome(timeout)
                if ended is not None:
                    busy.remove(worker)
                    yield worker.call, ended

    try:
        yield each
    finally:
        for worker in pool:
            worker.kill()


def require_started() -> None:
    """Ends a worker process whose start runs the user's script, because that has no `__main__` guard."""
    if getattr(current_process(), "_inheriting", False):
        os._exit(UNGUARDED)


class _Waiting:
    """Waiting calls, grouped by the plugins whose code they run, in order within each group."""

    def __init__(self, calls: Iterable[Any], foreign: Callable[[Any], Foreign]):
        self.groups: dict[Foreign, deque[Any]] = {}
        for call in calls:
            self.groups.setdefault(foreign(call), deque()).append(call)

    def next(self, worker: "_Worker", busy: Sequence["_Worker"]) -> tuple[Any, Foreign] | None:
        """The next call for a worker: from its own group, else from the group with the most calls per worker."""
        if not self.groups:
            return None
        served = [other.foreign for other in busy]
        group = worker.foreign
        if group not in self.groups:
            group = max(self.groups, key=lambda one: len(self.groups[one]) / (1 + served.count(one)))
        call = self.groups[group].popleft()
        if not self.groups[group]:
            del self.groups[group]
        return call, group


class _Starts:
    """Counts the processes in a row that ended before they were ready."""

    def __init__(self) -> None:
        self.failed = 0

    def count(self, code: int) -> None:
        """Raises InputError after too many failed starts."""
        self.failed += 1
        if code == UNGUARDED:
            raise InputError(f"worker processes can't start: {_GUARD}")
        if self.failed >= STARTS:
            how = f"killed by signal {-code}" if code < 0 else f"ended with status {code}"
            raise InputError(
                f"worker processes don't start ({self.failed} in a row, the last one {how}); what it said stands above. "
                f"Should it be a script's: {_GUARD}"
            )


class _Worker:
    """A place with its process, which is started when needed, and again if it was lost or would run another plugin's code."""

    def __init__(self, place: Place, starts: _Starts):
        self.place, self.starts = place, starts
        self.process: Any = None
        self.call: Any = None
        self.began: float | None = None
        self.foreign: Foreign = ()

    def take(self, function: Work, call: Any, foreign: Foreign = ()) -> None:
        """Send a call. If the process has died, the outcome will say so."""
        if self.process is not None and (not self.process.is_alive() or not _may_serve(self.foreign, foreign)):
            self.kill()
        self.function, self.call, self.foreign, self.began = function, call, foreign, None
        self._send()

    def _send(self) -> None:
        if self.process is None:
            self._start()
        self.kills = _kills_for_memory()
        with contextlib.suppress(OSError):
            self.pipe.send((self.function, self.call))

    def _start(self) -> None:
        self.pipe, theirs = Pipe()
        self.ready = self.spent = False
        self.mark = uuid.uuid4().hex
        with _interrupts_held():
            self.process = starting.start(_serve, (theirs, self.place), self.mark, self.place.forked)
        theirs.close()  # so that the pipe closes when the process ends

    @property
    def signals(self) -> list[Any]:
        """The handles to wait on for news."""
        return [self.pipe, self.process.sentinel]

    def outcome(self, timeout: float | None) -> tuple[str, str] | None:
        """Status and reason of the call if it has ended, also if its process died; None while it runs.

        Raises InputError if no call can run, because a disk is full or processes don't start.
        """
        try:
            while self.pipe.poll():
                message = self.pipe.recv()
                if isinstance(message, Exception):
                    raise message
                if message == READY:
                    self.ready, self.starts.failed = True, 0
                elif message == SPENT:
                    self.spent = True
                elif message == BEGUN:
                    self.began = time.monotonic()  # the time limit of the call doesn't include the start of the process
                else:
                    return self._ended(message)
        except (EOFError, OSError):
            return self._died()
        if not self.process.is_alive() and not self.pipe.poll():
            return self._died()
        if timeout is not None and self.began is not None and time.monotonic() - self.began > timeout:
            self.kill()
            return "timeout", f"took longer than --timeout {timeout:g} s"
        return None

    def _ended(self, ended: tuple[str, str]) -> tuple[str, str]:
        """End the process, with any processes that plugin code started in it."""
        if self.spent or (any(self.foreign) and descendants.of(self.process.pid, self.mark)):
            self.kill()
        return ended

    def _died(self) -> tuple[str, str] | None:
        self.process.join()
        code = self.process.exitcode
        self.kill()
        if not self.ready:
            self.starts.count(code)
            self._send()
            return None
        if code == -signal.SIGKILL and _kills_for_memory() > self.kills:
            return "oom", "its process was killed by the system for want of memory"
        return "failed", f"its process {f'was killed by signal {-code}' if code < 0 else f'ended with status {code}'}"

    def kill(self) -> None:
        """Kill the process at once, which is safe because files are written atomically."""
        if self.process is not None:
            left = descendants.of(self.process.pid, self.mark) if any(self.foreign) else []
            self.process.kill()
            self.process.join()
            descendants.end(left)
            self.process.close()
            self.pipe.close()
            self.process, self.foreign = None, ()


def _may_serve(had: Foreign, wanted: Foreign) -> bool:
    """Whether a process that has run code of these plugins may also run code of those: both are the same, or built-in."""
    wanted = wanted or ("",) * len(had)
    return not any(had) or all(mine in ("", theirs) for mine, theirs in zip(had, wanted, strict=True))


def _wait(busy: Sequence[_Worker], timeout: float | None) -> None:
    """Wait for news of a worker or the next time limit, at most a second: a process that plugin code left behind may keep
    the pipe of a dead worker open."""
    begun = [worker.began for worker in busy if worker.began is not None]
    left = 1.0 if timeout is None or not begun else max(0.0, min(begun) + timeout - time.monotonic()) + 0.01
    connection.wait([one for worker in busy for one in worker.signals], min(1.0, left))


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """A context that delays Ctrl-C; processes started in it ignore Ctrl-C, which a terminal sends to all processes."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # because its start would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- in the process ---------------------------------------------------------------------------------------------


def _serve(pipe: Any, place: Place) -> None:
    """Run the calls from the pipe until it closes. Ctrl-C is left to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    make_ready()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if place.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place.gpu
    import torch  # only after the environment is set

    torch.set_num_threads(place.threads)
    sys.stdout = sys.stderr  # stdout is for tables, not for what plugins print
    process = os.getpid()
    with contextlib.suppress(EOFError, OSError):  # the parent has gone
        pipe.send(READY)
        while True:
            function, call = pipe.recv()
            pipe.send(BEGUN)
            ended = outcome_of(function, call)
            if os.getpid() != process:
                os._exit(0)  # this is a fork that plugin code made, which must not go on as a worker
            if _spent.is_set():
                pipe.send(SPENT)
            pipe.send(ended)


_spent = threading.Event()


def spend() -> None:
    """Have this process, if it is a worker, replaced after its call."""
    _spent.set()


def _end_with_parent() -> None:
    """End this worker when its parent ends: a killed parent can't do it, and the worker must not go on writing.

    The same if the server ends that this process was forked from, because the parent then takes the worker for dead."""
    parent, above = parent_process(), os.getppid()
    assert parent is not None
    mark = os.environ.get(descendants.MARK, "")
    while not connection.wait([parent.sentinel], 1.0) and os.getppid() == above:
        pass
    descendants.end(descendants.of(os.getpid(), mark))
    os._exit(1)


def outcome_of(function: Work, call: Any) -> tuple[str, str] | InputError:
    """What the call returned. An exception becomes a status, except a full disk and Ctrl-C, which end the run."""
    try:
        return function(*call)
    except BaseException as error:
        if is_users(error):
            raise
        reason = said(error)
        if isinstance(error, OSError) and out_of_room(error):
            return InputError(f"{reason}; make room and run the same command again: what is finished is kept")
        return "oom" if isinstance(error, MemoryError) else "failed", reason


def said(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _kills_for_memory() -> int:
    """The number of processes that the kernel has killed for lack of memory so far; 0 if it isn't known."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("oom_kill ")))
    return 0


def usable_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
