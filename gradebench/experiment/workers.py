"""Cells side by side in processes of their own: one may hang, crash or be killed without harm to the others.

Every process has a pipe of its own. In the pools of the standard library, and in pebble's, the processes share a queue
and its lock, which one that is killed may hold for ever; and pebble tells a timeout by the wall clock, which may jump.
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

Work = Callable[..., tuple[str, str]]  # returns a status, and the reason where that isn't `ok`
Each = Callable[[Work, Iterable[Any]], Iterator[tuple[Any, tuple[str, str]]]]
Foreign = tuple[str, ...]  # the plugins whose code a call runs, by their places; "" for our own
# What a process says: that it can take calls, that it has begun one, and that it must not be given another.
READY, BEGUN, SPENT = "ready", "begun", "spent"
STARTS = 3  # that fail one after the other before the run ends
UNGUARDED = 79  # exit status of a process whose start would run the user's script anew
_GUARD = (
    'a script that calls gradebench has to do so below `if __name__ == "__main__":`, because each worker process reads '
    "the script"
)


@dataclass(frozen=True)
class Place:
    """Where one call at a time runs: so many threads, and the one GPU that its process sees, as
    CUDA_VISIBLE_DEVICES names it; None: what there is. `forked`: its process may be, as it needs no GPU."""

    threads: int = 1
    gpu: str | None = None
    forked: bool = False


def places(jobs: int, device: str, gpus: Sequence[str]) -> list[Place]:
    """`jobs` places on a CPU, or on each of the `gpus`, which are dealt out in turn.

    On a CPU each has one thread, so that results don't depend on how many cells run side by side.
    """
    if not device.startswith("cuda"):
        return [Place(forked=True)] * jobs
    seen: Sequence[str | None] = gpus if device == "cuda" and gpus else [None]  # cuda:1 is that one, for all
    threads = max(1, usable_cores() // (jobs * len(seen)))
    return [Place(threads, gpu) for _ in range(jobs) for gpu in seen]


def visible_gpus() -> list[str]:
    """The GPUs of this process, by names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]


@contextlib.contextmanager
def workers(
    places: Sequence[Place], timeout: float | None, foreign: Callable[[Any], Foreign] = lambda call: ()
) -> Iterator[Each]:
    """Warm processes: `each(function, calls)` yields the arguments of a call with its status and reason as it ends.

    A process that has run the code of a plugin runs no other call than those of the same `foreign(call)`, so calls come
    grouped by it.

    Raises        InputError where processes don't start.
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
    """Ends a worker process that, while it starts, has come to calls of the user's script."""
    if getattr(current_process(), "_inheriting", False):
        os._exit(UNGUARDED)


class _Waiting:
    """Calls that nobody has taken, grouped by the plugins whose code they run, in order in each group."""

    def __init__(self, calls: Iterable[Any], foreign: Callable[[Any], Foreign]):
        self.groups: dict[Foreign, deque[Any]] = {}
        for call in calls:
            self.groups.setdefault(foreign(call), deque()).append(call)

    def next(self, worker: "_Worker", busy: Sequence["_Worker"]) -> tuple[Any, Foreign] | None:
        """The call that a worker had best take: of its own group, else of the one with most calls a worker."""
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
    """How many processes in a row have ended before they could take a call."""

    def __init__(self) -> None:
        self.failed = 0

    def count(self, code: int) -> None:
        """Raises InputError where it is no use to start another one."""
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
    """One place at which a call runs: a process that is started when it is needed, and anew when it was lost, or would
    run a plugin's code after another one's."""

    def __init__(self, place: Place, starts: _Starts):
        self.place, self.starts = place, starts
        self.process: Any = None
        self.call: Any = None
        self.began: float | None = None
        self.foreign: Foreign = ()

    def take(self, function: Work, call: Any, foreign: Foreign = ()) -> None:
        """That a process died meanwhile is told by the outcome."""
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
        theirs.close()  # so that its end is the end of the pipe

    @property
    def signals(self) -> list[Any]:
        """What becomes ready when there is news."""
        return [self.pipe, self.process.sentinel]

    def outcome(self, timeout: float | None) -> tuple[str, str] | None:
        """Status and reason of the call once it has ended, also by the end of its process; None while it goes on.

        Raises InputError where no call can go on, for want of room or because processes don't start.
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
                    self.began = time.monotonic()  # its start, which takes seconds, is no part of the call
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
        """Whatever processes a plugin's call leaves behind end with it."""
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
        """What it writes appears whole or not at all, so nothing has to be waited for."""
        if self.process is not None:
            left = descendants.of(self.process.pid, self.mark) if any(self.foreign) else []
            self.process.kill()
            self.process.join()
            descendants.end(left)
            self.process.close()
            self.pipe.close()
            self.process, self.foreign = None, ()


def _may_serve(had: Foreign, wanted: Foreign) -> bool:
    """Whether a process that has run code of these plugins may run that: what it had is the same, or our own."""
    wanted = wanted or ("",) * len(had)
    return not any(had) or all(mine in ("", theirs) for mine, theirs in zip(had, wanted, strict=True))


def _wait(busy: Sequence[_Worker], timeout: float | None) -> None:
    """Until there is news of a worker, or one has used up its time; a second at most, because a process that a plugin
    left behind holds what would tell that its worker has died."""
    begun = [worker.began for worker in busy if worker.began is not None]
    left = 1.0 if timeout is None or not begun else max(0.0, min(begun) + timeout - time.monotonic()) + 0.01
    connection.wait([one for worker in busy for one in worker.signals], min(1.0, left))


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal: those started in here never see it, this one does afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # its start would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- in the process ---------------------------------------------------------------------------------------------


def _serve(pipe: Any, place: Place) -> None:
    """Run what comes through the pipe, until it ends; Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    make_ready()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if place.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place.gpu
    import torch  # not before the environment is set

    torch.set_num_threads(place.threads)
    sys.stdout = sys.stderr  # what a plugin prints is no part of the tables
    process = os.getpid()
    with contextlib.suppress(EOFError, OSError):  # the parent has gone
        pipe.send(READY)
        while True:
            function, call = pipe.recv()
            pipe.send(BEGUN)
            ended = outcome_of(function, call)
            if os.getpid() != process:
                os._exit(0)  # a child that a plugin forked, and that went on as if it were the worker
            if _spent.is_set():
                pipe.send(SPENT)
            pipe.send(ended)


_spent = threading.Event()


def spend() -> None:
    """This process, if it is a worker, is to be replaced once its call has ended."""
    _spent.set()


def _end_with_parent() -> None:
    """A parent that was killed can't kill its workers, which must not go on writing into a folder it gave up. Nor can
    it where the server is killed that this process was forked from: it takes its workers for dead then."""
    parent, above = parent_process(), os.getppid()
    assert parent is not None
    mark = os.environ.get(descendants.MARK, "")
    while not connection.wait([parent.sentinel], 1.0) and os.getppid() == above:
        pass
    descendants.end(descendants.of(os.getpid(), mark))
    os._exit(1)


def outcome_of(function: Work, call: Any) -> tuple[str, str] | InputError:
    """What the call returned; whatever it raised becomes a status, but for a full disk and Ctrl-C, which end the run."""
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
    """How many processes the kernel has killed for want of memory since it started; 0 where that isn't told."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("oom_kill ")))
    return 0


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
