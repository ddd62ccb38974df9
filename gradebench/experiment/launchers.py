"""Where cells run: on this machine, on a Ray cluster, or as Slurm jobs.

All launchers use the worker processes of `workers`, so statuses, time limits and results are the same everywhere. All
nodes must see the run's folder. A cell whose Ray or Slurm node is lost is run again, `TRIES` times in all.
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
_POLL = 0.5  # seconds between reads of the Slurm jobs' result files
_SLURM_JOBS = 16  # jobs at a time, without --jobs
_ARRAY = 1000  # tasks in one array; most clusters allow as many
_HOURS = 24  # time limit of a Slurm job, without --timeout and SBATCH_TIMELIMIT


@contextlib.contextmanager
def launched(name: str, jobs: int | None, device: str, timeout: float | None) -> Iterator[Each]:
    """`each(function, calls)` of the named launcher, or that of torchrun if it started this process.

    `jobs` is the number of cells at a time; on GPUs, per GPU.

    Raises        InputError if the launcher's package isn't installed, or its cluster can't be reached.
    """
    with (in_step if parallel.world_size() > 1 else LAUNCHERS[name])(jobs, device, timeout) as each:
        yield each


def foreign(call: Any) -> Foreign:
    """The plugins whose code the call for a cell runs."""
    parts = call if isinstance(call, tuple) else ()
    return next((one.foreign for one in parts if isinstance(one, Cell)), ())


@contextlib.contextmanager
def local(jobs: int | None, device: str, timeout: float | None) -> Iterator[Each]:
    with workers(places(jobs or default_jobs(device), device, _gpus(device)), timeout, foreign) as each:
        yield each


def default_jobs(device: str) -> int:
    """One job for each core, or for each GPU."""
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
    """Each call is made by all processes of torchrun together, one call after the other."""
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
    """Make the call as a worker does: with a fixed number of threads, and with a plugin's output on stderr."""
    import torch

    torch.set_num_threads(max(1, usable_cores() // parallel.world_size()) if device.startswith("cuda") else 1)
    with contextlib.redirect_stdout(sys.stderr):
        return function(*call)


# --- Ray --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def on_ray(jobs: int | None, device: str, timeout: float | None) -> Iterator[Each]:
    """One actor for each job, with a worker process of its own, on the cluster of RAY_ADDRESS or else on this machine."""
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
    """The number of actors, and the resources of each. Raises InputError if the cluster lacks GPUs."""
    if not device.startswith("cuda"):
        return jobs or max(1, int(resources.get("CPU", 1))), {"num_cpus": 1}
    gpus, share = int(resources.get("GPU", 0)), jobs or 1
    if not gpus:
        raise InputError("--device cuda: the Ray cluster has no GPU; add nodes with GPUs, or give --device cpu")
    return gpus * share, {"num_cpus": 1, "num_gpus": 1 / share}


class _Seat:
    """The actor: a worker process on its node."""

    def __init__(self, timeout: float | None):
        self.stack = contextlib.ExitStack()
        self.each = self.stack.enter_context(workers([Place()], timeout, foreign))

    def run(self, function: Work, call: Any) -> tuple[str, str] | InputError:
        try:
            return next(ended for _, ended in self.each(function, [call]))
        except InputError as error:  # returned, because Ray would wrap the exception
            return error


def _each_on_ray(
    ray: Any, seat: Callable[[], Any], number: int, function: Work, calls: Iterable[Any]
) -> Iterator[Ended]:
    """Keep all actors busy; if one is lost, start another one and run its call again."""
    waiting, again = (
        iter(sorted(calls, key=foreign)),
        list[tuple[Any, int]](),
    )  # grouped, so that fewer processes are started
    idle: list[Any] = []
    busy: dict[Any, tuple[Any, Any, int]] = {}  # reference -> actor, call, number of earlier losses
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
    """The outcome of a call that was lost this often; None if it is to be tried again."""
    return ("failed", f"lost {times} times with {what}") if times >= TRIES else None


# --- Slurm ------------------------------------------------------------------------------------------------------


@dataclass
class _Share:
    """The calls that one Slurm job runs one after the other, and the file to which it writes their outcomes."""

    calls: list[Any]
    losses: list[int]
    path: Path
    job: Any = None
    told: int = field(default=0)  # lines that were read so far

    def news(self) -> Iterator[Ended]:
        """New outcomes in the file. Raises InputError if the job stopped because a disk was full."""
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        for line in text.splitlines(keepends=True)[self.told :]:
            if not line.endswith("\n"):
                return  # the line is still being written
            status, reason = json.loads(line)
            if status == "stop":
                raise InputError(reason)
            self.told += 1
            yield self.calls[self.told - 1], (status, reason)


@contextlib.contextmanager
def on_slurm(jobs: int | None, device: str, timeout: float | None, cluster: str = "slurm") -> Iterator[Each]:
    """Job arrays; each job runs its share of the cells in a worker process. Set partition and account by SBATCH_* variables."""
    submitit = _required("submitit", "slurm")
    # In the cache, because submitit passes functions as pickles, which must not be in a run's folder.
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
    """Submit all calls, yield each outcome as it comes, and resubmit the calls of lost jobs."""
    turns = [(call, 0) for call in sorted(calls, key=foreign)]  # grouped, so that fewer processes are started
    while turns or shares:
        size = -(
            -len(turns) // min(_ARRAY, 4 * jobs)
        )  # several shares for each job, so that a slow one delays few calls
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
    """Runs in the Slurm job: one call after the other; writes a line when each ends."""
    with open(path, "a", encoding="utf-8") as lines, workers([Place()], timeout, foreign) as each:
        try:
            for call in calls:  # the order of the calls is that of the lines
                _, ended = next(each(function, [call]))
                lines.write(json.dumps(ended) + "\n")
                lines.flush()
        except InputError as error:
            lines.write(json.dumps(("stop", str(error))) + "\n")


LAUNCHERS: Mapping[str, Callable[..., Any]] = {"local": local, "ray": on_ray, "slurm": on_slurm}
