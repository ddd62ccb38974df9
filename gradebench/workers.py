"""Cells side by side in processes of their own: one may hang, crash or be killed without harm to the others."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from multiprocessing import get_context, resource_tracker
from typing import Any

import torch

from gradebench import parallel
from gradebench.errors import InputError

Work = Callable[..., tuple[str, str]]  # returns a status, and the reason where that isn't `ok`
Each = Callable[[Work, Sequence[Any]], Iterator[tuple[Any, tuple[str, str]]]]


@contextlib.contextmanager
def workers(jobs: int, device: str, timeout: float | None) -> Iterator[Each]:
    """Warm processes: `each(function, calls)` yields the arguments of a call with its status and reason as it ends.

    Where torchrun has started several processes, it is they who do each call together, one after another.
    """
    if parallel.world() > 1:
        if timeout is not None:
            raise InputError("--timeout can't end a cell that several processes run; leave it out under torchrun")
        yield _in_step(device)
        return
    from pebble import ProcessPool

    threads = max(1, usable_cores() // jobs) if device.startswith("cuda") else 1
    pool = ProcessPool(jobs, initializer=_start_worker, initargs=(threads,), context=get_context("spawn"))

    def each(function: Work, calls: Sequence[Any]) -> Iterator[tuple[Any, tuple[str, str]]]:
        with _interrupts_held():
            futures: dict[Future, Any] = {pool.schedule(function, args=job, timeout=timeout): job for job in calls}
        waiting: set[Future] = set(futures)
        while waiting:
            finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in finished:
                yield futures[future], _result_of(future, timeout)

    try:
        yield each
        pool.close()
    finally:
        pool.stop()  # what still runs is interrupted; after `close` nothing does
        pool.join()


def _in_step(device: str) -> Each:
    def each(function: Work, calls: Sequence[Any]) -> Iterator[tuple[Any, tuple[str, str]]]:
        for job in calls:
            answer: Future = Future()
            try:
                answer.set_result(parallel.call(_quietly, device, function, job))
            except (Exception, SystemExit) as error:  # noqa: BLE001 - a future holds whatever it was
                answer.set_exception(error)
            yield job, _result_of(answer, None)

    return each


def _quietly(device: str, function: Work, job: Sequence[Any]) -> tuple[str, str]:
    """The call as a worker makes it: with fixed threads, and what a plugin prints out of the tables."""
    torch.set_num_threads(max(1, usable_cores() // parallel.world()) if device.startswith("cuda") else 1)
    with contextlib.redirect_stdout(sys.stderr):
        return function(*job)


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


def _start_worker(threads: int) -> None:
    """Fixed threads, so that results don't depend on how many cells run side by side; Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    sys.stdout = sys.stderr  # what a plugin prints is no part of the tables
    leave = os._exit
    # The pool takes status 0 for a worker that went in peace, and would wait for its cell for ever.
    vars(os)["_exit"] = lambda status: leave(status or 70)


def _result_of(future: Future, timeout: float | None) -> tuple[str, str]:
    """Status and reason of a cell, also where its process was killed or died."""
    from pebble import ProcessExpired

    try:
        return future.result()
    except TimeoutError:
        return "timeout", f"took longer than --timeout {timeout:g} s"
    except ProcessExpired as error:
        code = error.exitcode
        return "failed", f"its process {f'was killed by signal {-code}' if code < 0 else f'ended with status {code}'}"
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever ended the worker becomes the cell's status
        return "failed", f"{type(error).__name__}: {' '.join(str(error).split())}"


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
