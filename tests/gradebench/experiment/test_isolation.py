"""A plugin that misbehaves fails alone: the rows of the others are those of a run without it, to the bit."""

import resource
import runpy
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from gradebench.storage import records

SLIPS_FILE = Path(__file__).with_name("slips.py")
SLIPS = {name: word for name, (_, word) in runpy.run_path(str(SLIPS_FILE))["SLIPS"].items()}
TIMES = ["seconds", "seconds_per_step", "seconds_per_step_ci_low", "seconds_per_step_ci_high", "peak_memory_bytes"]
PATCHES_AT_IMPORT = "import torch\ntorch.Tensor.softmax = lambda self, *given, **named: self\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("isolation")


@pytest.fixture
def run(command, tiny, short, folders):
    """`gradebench run` with rloo last, in one process, where whatever was left changed would meet it."""

    def call(name, *estimators):
        chosen = [part for estimator in (*estimators, "rloo") for part in ("-e", estimator)]
        options = ("--seeds", "0", "--steps", "2", "--jobs", "1", "--out", folders / name / "run")
        return command("run", "-t", tiny(), *chosen, *options)

    return call


def rows_of_rloo(folder):
    metrics = pd.read_csv(folder / "run" / "metrics.csv", dtype=str, keep_default_na=False)
    rows = metrics[(metrics["estimator"] == "rloo") & ~metrics["metric"].isin(TIMES)]
    assert len(rows) > 10 and set(rows["status"]) == {"ok"}
    return rows.to_csv(index=False)


@pytest.fixture
def beside_slips(run, folders):
    """Two folders, without the slips and with all of them in one command; run once for all tests."""
    at_import = folders / "at_import.py"
    if not at_import.exists():
        at_import.write_text(PATCHES_AT_IMPORT + SLIPS_FILE.read_text())
        assert run("alone")[0] == 0
        status, _, err = run(
            "beside", f"{at_import}:Slip:name=mode", *[f"{SLIPS_FILE}:Slip:name={name}" for name in SLIPS]
        )
        assert status == 1 and "Traceback" not in err
        assert f"{at_import} replaced torch.Tensor.softmax for the whole process" in err
    return folders / "alone", folders / "beside"


def ended(folder, name):
    (path,) = (folder / "run" / "cells").glob(f"*{name}--s0-*/cell.json")
    return records.read_ended(path.parent)


@pytest.mark.parametrize("name", SLIPS)
def test_the_row_of_a_slip_says_what_it_was(beside_slips, name):
    cell = ended(beside_slips[1], f"slips.py_Slip_name={name}")
    assert cell["status"] == "failed" and SLIPS[name] in cell["reason"]
    assert "slips.py" in cell["reason"] or SLIPS[name] in ("KeyboardInterrupt", "SystemExit: leaving", "GeneratorExit")


def test_what_is_replaced_at_import_is_put_back_and_fails_the_plugins_cells(beside_slips):
    cell = ended(beside_slips[1], "at_import.py_Slip_name=mode")
    assert cell["status"] == "failed" and "torch.Tensor.softmax" in cell["reason"]


def test_the_rows_of_the_others_are_those_of_a_run_without_the_slips(beside_slips):
    alone, beside = beside_slips
    assert rows_of_rloo(alone) == rows_of_rloo(beside)


def test_a_slip_while_it_is_built_is_refused_in_one_line(run, tmp_path):
    text = "from gradebench.estimators.score_function import Rloo\nclass Mine(Rloo):\n    def init(self, problem):\n"
    (tmp_path / "mine.py").write_text(text + "        problem.reward_model.token.requires_grad_(True)\n")
    status, _, err = run("built", f"{tmp_path / 'mine.py'}:Mine")
    assert status == 2
    assert err.splitlines()[-1].startswith(
        "gradebench: estimator mine.py:Mine can't be used: it changed what others use"
    )


def test_a_run_whose_folder_a_plugin_deletes_ends_with_one_line(run, folders, tmp_path):
    text = "import shutil\nfrom gradebench.estimators.score_function import Rloo\nclass Mine(Rloo):\n"
    text += f"    def reset(self):\n        shutil.rmtree({str(folders / 'deleted' / 'run')!r}, ignore_errors=True)\n"
    (tmp_path / "mine.py").write_text(text)
    status, _, err = run("deleted", f"{tmp_path / 'mine.py'}:Mine")
    assert status == 2 and "Traceback" not in err
    assert "was deleted or emptied while the run went on" in err.splitlines()[-1]


# --- processes --------------------------------------------------------------------------------------------------


SCRIPT = """
import sys
from gradebench.core.errors import InputError
from gradebench.experiment.workers import Place, workers
{first}
try:
    with workers([Place(forked={forked})], None) as each:
        list(each(divmod, [(7, 2)] * 9))
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("forked", "first", "said"),
    [
        (False, "", "can't start: a script"),
        (True, "", "can't start: a script"),
        (False, "if __name__ != '__main__': sys.exit(5)", "3 in a row, the last one ended with status 5"),
        (True, "if __name__ != '__main__': sys.exit(5)", "3 in a row, the last one ended with status 1"),
    ],
)
def test_a_script_that_each_worker_would_run_anew_ends_with_what_to_do(tmp_path, forked, first, said):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(first=first, forked=forked))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.count("\n") == 1 and said in done.stdout and '__name__ == "__main__"' in done.stdout


def test_a_process_that_ran_a_plugin_serves_no_other_and_one_of_ours_may_become_a_plugins():
    from gradebench.experiment.workers import _may_serve

    ours, theirs, others, task = ("", ""), ("", "a.py"), ("", "b.py"), ("t.py", "")
    assert all(
        _may_serve(had, wanted)
        for had, wanted in [((), theirs), (ours, theirs), (task, ("t.py", "a.py")), (theirs, theirs)]
    )
    assert not any(
        _may_serve(had, wanted) for had, wanted in [(theirs, ours), (theirs, others), (task, ours), (theirs, ())]
    )


def test_calls_come_grouped_by_plugin_and_a_worker_keeps_its_own():
    from types import SimpleNamespace

    from gradebench.experiment.workers import _Waiting

    waiting = _Waiting(["a1", "b1", "a2", "b2", "a3"], lambda call: (call[0],))
    worker = SimpleNamespace(foreign=())
    order = []
    while (turn := waiting.next(worker, [])) is not None:
        order.append(turn[0])
        worker.foreign = turn[1]
    assert order == ["a1", "a2", "a3", "b1", "b2"]


LEAKS = """
import os
from gradebench.estimators.score_function import Rloo
class Leaks(Rloo):
    def __init__(self):
        super().__init__()
        self.kept = [os.open(os.devnull, os.O_RDONLY) for _ in range({number})]
    def gradient(self, problem, rng):
        with open({log!r}, "a") as file:
            print(os.getpid(), file=file)
        return super().gradient(problem, rng)
"""


def test_a_process_whose_cell_leaks_open_files_runs_no_other(command, few_draws, tmp_path):
    (tmp_path / "leaks.py").write_text(LEAKS.format(number=40, log=str(tmp_path / "log")))
    words = ("-e", f"{tmp_path / 'leaks.py'}:Leaks", "-t", "bernoulli-toy", "--seeds", "0-1", "--steps", "1")
    assert command("run", *words, "--jobs", "1", "--out", tmp_path / "run")[0] == 0
    assert len(set((tmp_path / "log").read_text().split())) == 2


def test_an_estimator_that_leaks_many_open_files_while_it_is_built_is_refused(command, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limits[1]))
    try:
        (tmp_path / "leaks.py").write_text(LEAKS.format(number=300, log=""))
        words = ("-e", f"{tmp_path / 'leaks.py'}:Leaks", "-t", "bernoulli-toy", "--seeds", "0", "--dry-run")
        status, _, err = command("run", *words)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert status == 2 and "300 files open, of 1024" in err.splitlines()[-1]
