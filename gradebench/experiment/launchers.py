"""Where cells run: on this machine, on a Ray cluster or as Slurm jobs. All give what `workers` gives, through the same
warm processes, so that statuses, time limits and numbers are the same everywhere; the folder must be seen by all nodes.

Ray and Slurm only add what can be lost with a node: such a cell is run again, `TRIES` times in all.
"""

import contextlib
import importlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradebench.core import parallel
from gradebench.core.errors import InputError
from gradebench.experiment.plan import Cell
from gradebench.experiment.workers import (
    Each,
    Foreign,
    Place,
    Work,
    outcome_of,
    places,
    usable_cores,
    visible_gpus,
    workers,
)
from gradebench.storage.cache import cache_root

TRIES = 3
Ended = tuple[Any, tuple[str, str]]
_POLL = 0.5  # seconds between looks at the files of Slurm's jobs
_SLURM_JOBS = 16  # at a time, where --jobs says nothing
_ARRAY = 1000  # tasks of one array, as most clusters allow
_HOURS = 24  # of a Slurm job, where neither --timeout nor SBATCH_TIMELIMIT says


@contextlib.contextmanager
def launched(name: str, jobs: int | None, device: str, timeout: float | None) -> Iterator[Each]:
    """`each(function, calls)` of the launcher of that name, or of torchrun, where that has started us; `jobs` is the number of places, on GPUs of each GPU.

    Raises        InputError where its package isn't installed, or its cluster can't be reached.
    """
    with (in_step if parallel.world_size() > 1 else LAUNCHERS[name])(jobs, device, timeout) as each:
        yield each


def foreign(call: Any) -> Foreign:
    """The plugins whose code a call for a cell runs."""
    parts = call if isinstance(call, tuple) else ()
    return next((one.foreign for one in parts if isinstance(one, Cell)), ())


@contextlib.contextmanager
def local(jobs: int | None, device: str, timeout: float | None) -> Iterator[Each]:
    with workers(places(jobs or default_jobs(device), device, _gpus(device)), timeout, foreign) as each:
        yield each


def default_jobs(device: str) -> int:
    """One a core, or one on each GPU."""
    return 1 if device.startswith("cuda") else usable_cores()


def _gpus(device: str) -> list[str]:
    return visible_gpus() if device == "cuda" else []


def _required(package: str, launcher: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"--launcher {launcher} needs the package {package}: pip install 'gradebench[{launcher}]'"
        ) from error


# --- torchrun ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def in_step(jobs: int | None, device: str, timeout: float | None) -> Iterator[Each]:
    """The processes that torchrun has started make each call together, one after another."""
    if timeout is not None:
        raise InputError("--timeout can't end a cell that several processes run; leave it out under torchrun")

    def each(function: Work, calls: Iterable[Any]) -> Iterator[Ended]:
        for call in calls:
            ended = outcome_of(parallel.call, (_quietly, device, function, call))
            if isinstance(ended, InputError):
                raise ended
            yield call, ended

    yield each


def _quietly(device: str, function: Work, call: Any) -> tuple[str, str]:
    """The call as a worker makes it: with fixed threads, and what a plugin prints out of the tables."""
    import torch

    torch.set_num_threads(max(1, usable_cores() // parallel.world_size()) if device.startswith("cuda") else 1)
    with contextlib.redirect_stdout(sys.stderr):
        return function(*call)


# --- Ray --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def on_ray(jobs: int | None, device: str, timeout: float | None) -> Iterator[Each]:
    """An actor a place, each with a warm process of its own; the cluster of RAY_ADDRESS, else one on this machine."""
    ray = _required("ray", "ray")
    address = os.environ.get("RAY_ADDRESS")
    here = {"num_cpus": jobs or default_jobs("cpu")} if not address else {}
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=None if address else False, **here)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise InputError(f"no Ray cluster at {address or 'this machine'}: {' '.join(str(error).split())}") from error
    try:
        number, needs = _ray_seats(jobs, device, ray.cluster_resources())
        actor = ray.remote(max_restarts=0, **needs)(_Seat)
        yield lambda function, calls: _each_on_ray(ray, lambda: actor.remote(timeout), number, function, calls)
    finally:
        ray.shutdown()  # ends its actors, and with them their processes


def _ray_seats(jobs: int | None, device: str, resources: Mapping[str, float]) -> tuple[int, dict[str, float]]:
    """How many actors, and what each of them takes of the cluster. Raises InputError for GPUs that it lacks."""
    if not device.startswith("cuda"):
        return jobs or max(1, int(resources.get("CPU", 1))), {"num_cpus": 1}
    gpus, share = int(resources.get("GPU", 0)), jobs or 1
    if not gpus:
        raise InputError("--device cuda: the Ray cluster has no GPU; add nodes with GPUs, or give --device cpu")
    return gpus * share, {"num_cpus": 1, "num_gpus": 1 / share}


class _Seat:
    """The actor: a place of its own on its node."""

    def __init__(self, timeout: float | None):
        self.stack = contextlib.ExitStack()
        self.each = self.stack.enter_context(workers([Place()], timeout, foreign))

    def run(self, function: Work, call: Any) -> tuple[str, str] | InputError:
        try:
            return next(ended for _, ended in self.each(function, [call]))
        except InputError as error:  # a value, because Ray would wrap the exception
            return error


def _each_on_ray(
    ray: Any, seat: Callable[[], Any], number: int, function: Work, calls: Iterable[Any]
) -> Iterator[Ended]:
    """Keep all actors busy; where one is lost, take another and run its call again."""
    waiting, again = iter(sorted(calls, key=foreign)), list[tuple[Any, int]]()  # grouped: fewer processes to start
    idle: list[Any] = []
    busy: dict[Any, tuple[Any, Any, int]] = {}  # reference -> actor, call, earlier losses
    while True:
        while len(busy) < number and (turn := again.pop() if again else _first(waiting)) is not None:
            actor = idle.pop() if idle else seat()
            busy[actor.run.remote(function, turn[0])] = (actor, *turn)
        if not busy:
            return
        for reference in ray.wait(list(busy), num_returns=1)[0]:
            actor, call, losses = busy.pop(reference)
            try:
                ended = ray.get(reference)
            except ray.exceptions.RayError as error:
                ended = _lost(losses + 1, f"its Ray worker: {str(error).strip().splitlines()[0]}")
                if ended is None:
                    again.append((call, losses + 1))
                    continue
            else:
                idle.append(actor)
            if isinstance(ended, InputError):
                raise ended
            yield call, ended


def _first(calls: Iterator[Any]) -> tuple[Any, int] | None:
    call = next(calls, None)
    return None if call is None else (call, 0)


def _lost(times: int, what: str) -> tuple[str, str] | None:
    """What a cell is that was lost so often; None while it may be tried again."""
    return ("failed", f"lost {times} times with {what}") if times >= TRIES else None


# --- Slurm ------------------------------------------------------------------------------------------------------


@dataclass
class _Share:
    """Calls that one Slurm job runs one after the other, and the file in which it says what became of them."""

    calls: list[Any]
    losses: list[int]
    path: Path
    job: Any = None
    told: int = field(default=0)  # lines that were read

    def news(self) -> Iterator[Ended]:
        """What the file says of further calls. Raises InputError where the job could not go on for want of room."""
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        for line in text.splitlines(keepends=True)[self.told :]:
            if not line.endswith("\n"):
                return  # still being written
            status, reason = json.loads(line)
            if status == "stop":
                raise InputError(reason)
            self.told += 1
            yield self.calls[self.told - 1], (status, reason)


@contextlib.contextmanager
def on_slurm(jobs: int | None, device: str, timeout: float | None, cluster: str = "slurm") -> Iterator[Each]:
    """Arrays of jobs, each with a warm process for its share of the cells; partition and account by SBATCH_*."""
    submitit = _required("submitit", "slurm")
    # In the cache and not in the run's folder: submitit hands functions over as pickles, which no run folder holds.
    folder = cache_root() / "slurm" / uuid.uuid4().hex
    folder.mkdir(parents=True)
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    except RuntimeError as error:
        shutil.rmtree(folder)
        raise InputError(f"--launcher slurm: {' '.join(str(error).split())}; run it where sbatch is") from error
    at_once = jobs or _SLURM_JOBS
    gpu = {"gpus_per_node": 1} if device.startswith("cuda") else {}
    executor.update_parameters(name="gradebench", cpus_per_task=1, slurm_array_parallelism=at_once, **gpu)
    shares: list[_Share] = []
    try:
        yield lambda function, calls: _each_on_slurm(executor, folder, shares, at_once, timeout, function, calls)
    finally:
        for share in shares:
            share.job.cancel()
        shutil.rmtree(folder, ignore_errors=True)


def _each_on_slurm(
    executor: Any,
    folder: Path,
    shares: list[_Share],
    jobs: int,
    timeout: float | None,
    function: Work,
    calls: Iterable[Any],
) -> Iterator[Ended]:
    """Submit all calls, tell of each as it ends, and submit again what was lost with its job."""
    turns = [(call, 0) for call in sorted(calls, key=foreign)]  # grouped: fewer processes to start
    while turns or shares:
        size = -(-len(turns) // min(_ARRAY, 4 * jobs))  # several shares a job, so that none waits for a slow one
        new = [_share(turns[i : i + size], folder) for i in range(0, len(turns), size or 1)]
        if new:
            executor.update_parameters(timeout_min=_minutes(size, timeout))
            with executor.batch():
                for share in new:
                    share.job = executor.submit(_work_off, function, share.calls, str(share.path), timeout)
            shares += new
        turns = []
        time.sleep(_POLL)
        for share in list(shares):
            over = share.job.done()
            yield from share.news()
            if over:
                shares.remove(share)
                for call, losses in list(zip(share.calls, share.losses, strict=True))[share.told :]:
                    ended = _lost(losses + 1, f"its Slurm job {share.job.job_id}, now {share.job.state}")
                    if ended is None:
                        turns.append((call, losses + 1))
                    else:
                        yield call, ended


def _share(turns: Sequence[tuple[Any, int]], folder: Path) -> _Share:
    return _Share([call for call, _ in turns], [losses for _, losses in turns], folder / f"{uuid.uuid4().hex}.jsonl")


def _minutes(calls: int, timeout: float | None) -> int:
    given = os.environ.get("SBATCH_TIMELIMIT", "")
    if given.isdigit():
        return int(given)
    return _HOURS * 60 if timeout is None else 10 + int(calls * timeout / 60)


def _work_off(function: Work, calls: Sequence[Any], path: str, timeout: float | None) -> None:
    """In the job: one call after the other, with a line for each as it ends."""
    with open(path, "a", encoding="utf-8") as lines, workers([Place()], timeout, foreign) as each:
        try:
            for call in calls:  # in this order, which is that of the lines
                _, ended = next(each(function, [call]))
                lines.write(json.dumps(ended) + "\n")
                lines.flush()
        except InputError as error:
            lines.write(json.dumps(("stop", str(error))) + "\n")


LAUNCHERS: Mapping[str, Callable[..., Any]] = {"local": local, "ray": on_ray, "slurm": on_slurm}
