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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process, resource_tracker
from pathlib import Path
from typing import Any

from gradebench.disk import out_of_room
from gradebench.errors import InputError
from gradebench.streams import make_ready

Work = Callable[..., tuple[str, str]]  # returns a status, and the reason where that isn't `ok`
Each = Callable[[Work, Iterable[Any]], Iterator[tuple[Any, tuple[str, str]]]]
BEGUN = "begun"


@dataclass(frozen=True)
class Place:
    """Where one call at a time runs: so many threads, and the one GPU that its process sees, as
    CUDA_VISIBLE_DEVICES names it; None: what there is."""

    threads: int = 1
    gpu: str | None = None


def places(jobs: int, device: str, gpus: Sequence[str]) -> list[Place]:
    """`jobs` places on a CPU, or on each of the `gpus`, which are dealt out in turn.

    On a CPU each has one thread, so that results don't depend on how many cells run side by side.
    """
    if not device.startswith("cuda"):
        return [Place()] * jobs
    seen: Sequence[str | None] = gpus if device == "cuda" and gpus else [None]  # cuda:1 is that one, for all
    threads = max(1, usable_cores() // (jobs * len(seen)))
    return [Place(threads, gpu) for _ in range(jobs) for gpu in seen]


def visible_gpus() -> list[str]:
    """The GPUs of this process, by names that CUDA_VISIBLE_DEVICES takes."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]


@contextlib.contextmanager
def workers(places: Sequence[Place], timeout: float | None) -> Iterator[Each]:
    """Warm processes: `each(function, calls)` yields the arguments of a call with its status and reason as it ends."""
    pool = [_Worker(place) for place in places]

    def each(function: Work, calls: Iterable[Any]) -> Iterator[tuple[Any, tuple[str, str]]]:
        waiting = iter(calls)
        busy: list[_Worker] = []
        while True:
            for worker in pool:
                if worker not in busy and (call := next(waiting, None)) is not None:
                    worker.take(function, call)
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


class _Worker:
    """One place at which a call runs: a process that is started when it is needed, and anew when it was lost."""

    def __init__(self, place: Place):
        self.place = place
        self.process: Any = None
        self.call: Any = None
        self.began: float | None = None

    def take(self, function: Work, call: Any) -> None:
        """That a process died meanwhile is told by the outcome."""
        self.call, self.began = call, None
        if self.process is None or not self.process.is_alive():
            self._start()
        self.kills = _kills_for_memory()
        with contextlib.suppress(OSError):
            self.pipe.send((function, call))

    def _start(self) -> None:
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.place))
        with _interrupts_held():
            self.process.start()
        theirs.close()  # so that its end is the end of the pipe

    @property
    def signals(self) -> list[Any]:
        """What becomes ready when there is news."""
        return [self.pipe, self.process.sentinel]

    def outcome(self, timeout: float | None) -> tuple[str, str] | None:
        """Status and reason of the call once it has ended, also by the end of its process; None while it goes on.

        Raises InputError where no call can go on, for want of room.
        """
        try:
            while self.pipe.poll():
                message = self.pipe.recv()
                if isinstance(message, Exception):
                    raise message
                if message != BEGUN:
                    return message
                self.began = time.monotonic()  # its start, which takes seconds, is no part of the call
        except (EOFError, OSError):
            return self._died()
        if not self.process.is_alive() and not self.pipe.poll():
            return self._died()
        if timeout is not None and self.began is not None and time.monotonic() - self.began > timeout:
            self.kill()
            return "timeout", f"took longer than --timeout {timeout:g} s"
        return None

    def _died(self) -> tuple[str, str]:
        self.process.join()
        code = self.process.exitcode
        self.kill()
        if code == -signal.SIGKILL and _kills_for_memory() > self.kills:
            return "oom", "its process was killed by the system for want of memory"
        return "failed", f"its process {f'was killed by signal {-code}' if code < 0 else f'ended with status {code}'}"

    def kill(self) -> None:
        """What it writes appears whole or not at all, so nothing has to be waited for."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process.close()
            self.pipe.close()
            self.process = None


def _wait(busy: Sequence[_Worker], timeout: float | None) -> None:
    """Until there is news of a worker, or one has used up its time."""
    begun = [worker.began for worker in busy if worker.began is not None]
    left = None if timeout is None or not begun else max(0.0, min(begun) + timeout - time.monotonic()) + 0.01
    connection.wait([one for worker in busy for one in worker.signals], left)


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
    with contextlib.suppress(EOFError, OSError):  # the parent has gone
        while True:
            function, call = pipe.recv()
            pipe.send(BEGUN)
            pipe.send(outcome_of(function, call))


def _end_with_parent() -> None:
    """A parent that was killed can't kill its workers, which must not go on writing into a folder it gave up."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def outcome_of(function: Work, call: Any) -> tuple[str, str] | InputError:
    """What the call returned; whatever it raised becomes a status, but for a full disk, which ends the run."""
    try:
        return function(*call)
    except (Exception, SystemExit) as error:  # noqa: BLE001
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if isinstance(error, OSError) and out_of_room(error):
            return InputError(f"{reason}; make room and run the same command again: what is finished is kept")
        return "oom" if isinstance(error, MemoryError) else "failed", reason


def _kills_for_memory() -> int:
    """How many processes the kernel has killed for want of memory since it started; 0 where that isn't told."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("oom_kill ")))
    return 0


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
