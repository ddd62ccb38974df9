"""The same cells and tables from every launcher; places on GPUs; what a lost node costs."""

import functools
import os
import sys
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest

from gradebench.cli.options import Launcher
from gradebench.core.errors import InputError
from gradebench.experiment import launchers, runner, workers
from gradebench.experiment.workers import Place

TIMES = ["seconds", "seconds_per_step", "seconds_per_step_ci_low", "seconds_per_step_ci_high", "peak_memory_bytes"]


def full(number):
    raise OSError(28, "No space left on device", "cells/a/metrics.parquet")


# --- places -----------------------------------------------------------------------------------------------------


def test_cells_on_a_cpu_have_a_thread_each_whatever_their_number():
    assert workers.places(3, "cpu", []) == [Place(forked=True)] * 3 == [Place(1, None, True)] * 3


def test_jobs_are_so_many_on_each_gpu_and_gpus_are_dealt_out(monkeypatch):
    monkeypatch.setattr(workers, "usable_cores", lambda: 16)
    two = workers.places(2, "cuda", ["0", "3"])
    assert [place.gpu for place in two] == ["0", "3", "0", "3"] and {place.threads for place in two} == {4}
    assert workers.places(3, "cuda:1", ["0", "3"]) == [Place(5, None)] * 3  # that one, for all
    assert workers.places(1, "cuda", []) == [Place(16, None)]


def test_gpus_are_named_as_the_environment_names_them(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8a")
    assert workers.visible_gpus() == ["2", "GPU-8a"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert workers.visible_gpus() == ["0", "1", "2"]


def test_a_worker_sees_its_gpu_alone():
    with workers.workers([Place(1, "5")], None) as each:
        ((_, answer),) = each(os.getenv, [("CUDA_VISIBLE_DEVICES",)])
    assert answer == "5"


# --- Ray --------------------------------------------------------------------------------------------------------


def tables(folder):
    """metrics.csv and leaderboard.csv but for what clocks and memory say, as text."""
    metrics, board = (pd.read_csv(folder / name, dtype=str, keep_default_na=False) for name in FILES)
    return metrics[~metrics["metric"].isin(TIMES)].to_csv(index=False), board.drop(columns=TIMES[1:]).to_csv(
        index=False
    )


FILES = ("metrics.csv", "leaderboard.csv")


@pytest.fixture
def run(tiny, tmp_path, few_draws):
    def call(out, *estimators, **keywords):
        folder = tmp_path / out / "run"
        request = runner.Request(
            estimators or ["rloo", "ppo"], [tiny()], seeds="0-1", steps=2, out=str(folder), **keywords
        )
        return folder, runner.execute(request, runner.prepare(request, runner.Progress()), runner.Progress())

    return call


class KillsAnActor(runner.Progress):
    """Once the first cell has ended, the process of an actor that is at work is killed."""

    killed = 0

    def advance(self, cell, status):
        if cell is not None and not self.killed:
            actors = [p for p in psutil.process_iter(["cmdline"]) if "ray::_Seat" in " ".join(p.info["cmdline"] or [])]
            next(actor for actor in actors if psutil.Process() in actor.parents()).kill()
            self.killed += 1


@pytest.fixture
def ray():
    ray = pytest.importorskip("ray", reason="the extra `ray` isn't installed")
    yield ray
    ray.shutdown()


@pytest.mark.heavy
def test_a_ray_cluster_with_a_worker_killed_in_the_middle_gives_the_tables_of_one_job(ray, tiny, run, tmp_path):
    expected, _ = run("alone", jobs=1)
    progress, out = KillsAnActor(), tmp_path / "ray" / "run"
    request = runner.Request(["rloo", "ppo"], [tiny()], seeds="0-1", steps=2, out=str(out), jobs=2, launcher="ray")
    outcome = runner.execute(request, runner.prepare(request, progress), progress)
    assert progress.killed == 1 and outcome.complete, outcome.reasons
    assert tables(out) == tables(expected)


class Cluster:
    """As much of Ray as the scheduler sees: actors that answer, or are lost."""

    class exceptions:
        class RayError(Exception): ...

    def __init__(self, losses=()):
        self.losses, self.seats = list(losses), 0

    def seat(self):
        self.seats += 1
        return SimpleNamespace(run=SimpleNamespace(remote=lambda function, call: (id(object()), self.seats, call)))

    def wait(self, references, num_returns):
        return references[:num_returns], references[num_returns:]

    def get(self, reference):
        if reference[2] in self.losses:
            self.losses.remove(reference[2])
            raise self.exceptions.RayError("The actor died unexpectedly\nand more")
        return "ok", ""


def each_on(cluster, calls, number=2):
    return list(launchers._each_on_ray(cluster, cluster.seat, number, None, calls))


def test_a_call_that_is_lost_with_its_node_runs_again_on_another_seat():
    cluster = Cluster(losses=["b", "b"])
    assert sorted(each_on(cluster, "abcd")) == [(call, ("ok", "")) for call in "abcd"]
    assert cluster.seats == 4  # two, and one for each loss


def test_a_call_that_is_lost_again_and_again_is_a_failure():
    ended = dict(each_on(Cluster(losses=["b"] * 9), "abc"))
    assert ended["a"] == ended["c"] == ("ok", "")
    assert ended["b"] == ("failed", "lost 3 times with its Ray worker: The actor died unexpectedly")


def test_seats_take_cores_or_shares_of_gpus():
    resources = {"CPU": 8.0, "GPU": 2.0}
    assert launchers._ray_seats(None, "cpu", resources) == (8, {"num_cpus": 1})
    assert launchers._ray_seats(3, "cpu", resources) == (3, {"num_cpus": 1})
    assert launchers._ray_seats(2, "cuda", resources) == (4, {"num_cpus": 1, "num_gpus": 0.5})
    with pytest.raises(InputError, match="no GPU"):
        launchers._ray_seats(2, "cuda", {"CPU": 8.0})


@pytest.mark.parametrize(("launcher", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_launcher_that_is_not_installed_names_its_extra(command, tiny, tmp_path, monkeypatch, launcher, package):
    monkeypatch.setitem(sys.modules, package, None)
    arguments = ("-t", tiny(), "-e", "rloo", "--seeds", "0", "--launcher", launcher, "--out", tmp_path / "run")
    status, out, err = command("run", *arguments)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].endswith(f"needs the package {package}: pip install 'gradebench[{launcher}]'")


# --- Slurm ------------------------------------------------------------------------------------------------------


@pytest.fixture
def slurm():
    """Jobs as processes of this machine, by submitit's own stand-in for a cluster."""
    pytest.importorskip("submitit", reason="the extra `slurm` isn't installed")
    return functools.partial(launchers.on_slurm, cluster="local")


def test_slurm_jobs_run_their_shares_and_leave_nothing_in_the_cache(slurm, tmp_path):
    calls = [(number, 2) for number in range(3)]
    with slurm(1, "cpu", None) as each:
        ended = dict(each(divmod, calls))
    assert ended == {call: divmod(*call) for call in calls}
    assert not list((tmp_path / "cache" / "slurm").iterdir())


def test_without_slurm_there_is_one_line(monkeypatch, tmp_path):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"--launcher slurm: .*sbatch"), launchers.on_slurm(1, "cpu", None):
        pass
    assert not list((tmp_path / "cache" / "slurm").iterdir())


class Job:
    """A job of a cluster in this process: it does what it has to at once, unless it is lost."""

    job_id, state = "7_0", "NODE_FAIL"

    def __init__(self, work):
        work()

    def done(self):
        return True

    def cancel(self): ...


class Executor:
    def __init__(self, done_before_loss):
        self.done, self.arrays, self.given = list(done_before_loss), 0, {}

    def update_parameters(self, **given):
        self.given |= given

    def batch(self):
        self.arrays += 1
        return pytest.MonkeyPatch.context()  # any context will do

    def submit(self, function, work, calls, path, timeout):
        def written():
            for call in calls[: self.done.pop(0) if self.done else len(calls)]:
                with open(path, "a") as lines:
                    lines.write(f'["ok", "{call}"]\n')

        return Job(written)


@pytest.fixture
def each_share(tmp_path, monkeypatch):
    monkeypatch.setattr(launchers, "_POLL", 0)
    return lambda executor, calls, jobs=1: list(
        launchers._each_on_slurm(executor, tmp_path, [], jobs, None, None, calls)
    )


def test_what_was_lost_with_a_slurm_job_is_submitted_again_and_nothing_else(each_share):
    executor = Executor(done_before_loss=[1, 2, 0, 2])
    ended = each_share(executor, list("abcdefgh"))  # four shares of two
    assert sorted(ended) == [(call, ("ok", call)) for call in "abcdefgh"]
    assert executor.arrays == 2


def test_what_is_lost_with_three_slurm_jobs_is_a_failure(each_share):
    ended = dict(each_share(Executor(done_before_loss=[0, 0, 0]), ["a"]))
    assert ended == {"a": ("failed", "lost 3 times with its Slurm job 7_0, now NODE_FAIL")}


def test_an_array_of_ten_thousand_cells_is_no_longer_than_clusters_allow(each_share):
    class Counting(Executor):
        submitted = 0

        def submit(self, *arguments):
            self.submitted += 1
            return super().submit(*arguments)

    executor = Counting([])
    assert len(each_share(executor, range(10_000), jobs=500)) == 10_000
    assert executor.submitted == 1000 and executor.given["timeout_min"] == 24 * 60


def test_a_full_disk_ends_a_slurm_run_with_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr(launchers, "workers", lambda places, timeout, foreign: FullDisk())
    launchers._work_off(full, ["a", "b"], str(tmp_path / "share"), None)
    share = launchers._Share(["a", "b"], [0, 0], tmp_path / "share")
    with pytest.raises(InputError, match=r"No space left on device.*make room"):
        list(share.news())


class FullDisk:
    def __enter__(self):
        def each(function, calls):
            ended = workers.outcome_of(function, calls[:1])
            raise ended
            yield

        return each

    def __exit__(self, *error): ...


def test_the_command_line_knows_the_launchers_that_there_are():
    assert {one.value for one in Launcher} == set(launchers.LAUNCHERS)
