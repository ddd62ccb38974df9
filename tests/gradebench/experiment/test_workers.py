"""Cells in real worker processes: side by side, killed, crashed and interrupted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from gradebench.experiment import runner

# A shell ignores Ctrl-C for what it runs in the background, and so would these processes if the tests run there.
MAIN = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom gradebench.cli import main; main()"
)

TIMES = ["seconds", "seconds_per_step", "seconds_per_step_ci_low", "seconds_per_step_ci_high", "peak_memory_bytes"]


@pytest.fixture
def run(tiny, tmp_path, few_draws):
    def call(*estimators, out="run", **keywords):
        request = runner.Request(estimators, [tiny()], steps=2, out=str(tmp_path / out), **keywords)
        return runner.execute(request, runner.prepare(request, runner.Progress()), runner.Progress())

    return call


def test_side_by_side_gives_what_one_after_another_gives(run, tmp_path):
    """Leaderboard, metrics and probes byte for byte, but for what clock and memory say."""
    written = []
    for jobs in (1, 2):
        assert run("rloo", "ppo", out=f"jobs-{jobs}/run", seeds="0-2", jobs=jobs).complete
        names = ("leaderboard", "metrics", "probes", "tests")
        files = [tmp_path / f"jobs-{jobs}" / "run" / f"{name}.csv" for name in names]
        board, metrics, *others = (pd.read_csv(file, dtype=str, keep_default_na=False) for file in files)
        board, metrics = board.drop(columns=TIMES[1:]), metrics[~metrics["metric"].isin(TIMES)]
        written.append([table.to_csv(index=False) for table in (board, metrics, *others)])
    assert written[0] == written[1]


def test_a_cell_that_hangs_dies_crashes_or_eats_memory_is_a_row_and_the_others_go_on(run, tiny, tmp_path):
    """Also one that ends its process with status 0, as if all were well."""
    bad = [tiny(name) for name in ("Loops", "Allocates", "Dies", "Dies:status=0", "Crashes")]
    forks = f"Forks:pids={tmp_path / 'pids'}"
    bad.append(tiny(forks))
    outcome = run(*bad, "reinforce", seeds="0", jobs=2, timeout=15)
    found = outcome.leaderboard.set_index("estimator")["status"].to_dict()
    assert found == {
        "tiny.py:Loops": "timeout 1",
        "tiny.py:Allocates": "oom 1",
        "tiny.py:Dies": "failed 1",
        "tiny.py:Dies:status=0": "failed 1",
        "tiny.py:Crashes": "failed 1",
        f"tiny.py:{forks}": "ok",
        "reinforce": "ok",
    }
    reasons = sorted(outcome.reasons.values())
    assert reasons.pop(3).startswith("oom: RuntimeError: ")
    assert reasons == [
        "failed: its process ended with status 0",
        "failed: its process ended with status 3",
        "failed: its process was killed by signal 11",
        "timeout: took longer than --timeout 15 s",
    ]
    left = (tmp_path / "pids").read_text().split()
    assert len(left) == 2 and not any(is_running(pid) for pid in left)
    assert len(list((tmp_path / "run" / "cells").glob("*Forks*/cell.json"))) == 1


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def start(tiny, out, log, *arguments):
    """The command in a process group of its own, as a terminal starts it."""
    options = ["-t", tiny(), "--steps", "2", "--seeds", "0", "--jobs", "2", "--out", str(out), *arguments]
    with open(log, "w") as stderr:
        keywords = {"stdout": subprocess.PIPE, "stderr": stderr, "text": True, "start_new_session": True}
        return subprocess.Popen([sys.executable, "-c", MAIN, "run", *options], **keywords)


def wait_for(path, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not any(path.parent.glob(path.name)):
        assert process.poll() is None and time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.05)


def test_ctrl_c_leaves_tables_of_what_is_done_and_a_later_run_goes_on(tiny, run, tmp_path):
    process = start(tiny, tmp_path / "run", tmp_path / "log", "-e", "rloo", "-e", tiny("Sleeps"), "-e", "reinforce")
    for name in ("rloo", "reinforce"):
        wait_for(tmp_path / "run" / "cells" / f"*--{name}--s0-*", process)
        wait_for(next((tmp_path / "run" / "cells").glob(f"*--{name}--s0-*")) / "cell.json", process)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    log = (tmp_path / "log").read_text()
    assert process.returncode == 130 and "Traceback" not in log, log
    assert "interrupted" in out
    board = pd.read_csv(tmp_path / "run" / "leaderboard.csv").set_index("estimator")["status"]
    assert board.to_dict() == {"rloo": "ok", "reinforce": "ok", "tiny.py:Sleeps": "interrupted 1"}
    again = start(tiny, tmp_path / "run", tmp_path / "log", "-e", "rloo", "-e", "reinforce")
    again.communicate(timeout=120)
    assert again.returncode == 0
    assert "2 cells were finished by an earlier run and kept" in (tmp_path / "log").read_text()


def test_ctrl_c_while_the_workers_start_leaves_no_traceback_of_theirs(tiny, tmp_path):
    process = start(tiny, tmp_path / "run", tmp_path / "log", "-e", tiny("Sleeps"))
    wait_for(tmp_path / "run" / "environment.json", process)
    time.sleep(0.5)  # the workers are importing torch, which takes seconds
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    log = (tmp_path / "log").read_text()
    assert process.returncode == 130 and "Traceback" not in log, log
    assert (tmp_path / "run" / "leaderboard.csv").is_file()
