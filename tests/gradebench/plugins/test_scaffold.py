"""The page that `gradebench new` writes: it keeps its contract as it stands, and never overwrites anything."""

import subprocess
import sys

import pytest

from gradebench.checks.conformance import report
from gradebench.plugins import registry


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "file", "cls"),
    [("my-estimator", "my_estimator.py", "MyEstimator"), ("RLOO2", "rloo2.py", "RLOO2"), ("a_b", "a_b.py", "AB")],
)
def test_the_page_is_named_and_can_be_resolved(command, here, name, file, cls):
    status, out, _ = command("new", name)
    assert status == 0
    assert f"gradebench check ./{file}:{cls}" in out
    assert f"gradebench run -e rloo -e ./{file}:{cls}:rate-like=rloo" in out  # untuned it would meet a tuned rloo
    assert f"gradebench run --tune -e rloo -e ./{file}:{cls}" in out
    assert registry.resolve("estimators", f"./{file}:{cls}:n=8").create().n == 8


def test_the_page_keeps_its_contract(command):
    command("new", "mine")
    assert report("./mine.py:Mine", seed=0)["passed"]


def test_the_page_is_in_house_style(command):
    pytest.importorskip("ruff")
    command("new", "mine")
    for check in (["format", "--check"], ["check", "--select", "E,F,UP,B"]):
        subprocess.run([sys.executable, "-m", "ruff", *check, "--line-length", "120", "mine.py"], check=True)


@pytest.mark.parametrize("name", ["", "../mine", "2fast", "-x", "a b", "é", "__"])
def test_a_name_that_makes_no_class_is_refused(command, here, name):
    status, _, err = command("new", "--", name)
    assert status == 2 and len(err.splitlines()) == 1
    assert not list(here.iterdir())


def test_a_file_that_is_there_stays(command, here):
    (here / "mine.py").write_text("precious")
    status, _, err = command("new", "mine")
    assert status == 2 and "there already" in err
    assert (here / "mine.py").read_text() == "precious"


def test_a_folder_that_is_closed_is_one_line(command, here, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    status, _, err = command("new", "mine")
    assert status == 2 and "Permission denied" in err


@pytest.mark.parametrize(
    "name",
    [
        "none",
        "true",
        "class",
        "lambda",
        "estimate",
        "Estimator",
        "problem",
        "range",
        "annotated",
        "value-error",
        "ValueError",
        "torch",
        "typing",
        "random",
        "numpy",
        "gradebench",
        "statistics",
    ],
)
def test_a_name_that_something_else_needs_is_refused(command, here, name):
    """Of Python's own words, of what the page uses, and of modules that would no longer be found beside it."""
    status, _, err = command("new", name)
    assert status == 2 and len(err.splitlines()) == 1 and "another name" in err
    assert not list(here.iterdir())


@pytest.mark.parametrize("n", ["0", "-1", "2.5"])
def test_a_number_of_samples_that_is_none_is_refused(command, here, n):
    (here / "mine.py").write_text(
        "from gradebench import Estimator\n\n\nclass Mine(Estimator):\n    def __init__(self, n: float = 1):\n"
        "        super().__init__()\n        self.n = int(n) if n == int(n) else n\n\n    def gradient(self, problem, rng): ...\n"
    )
    status, _, err = command("run", "-e", f"./mine.py:Mine:n={n}", "-t", "bernoulli-toy", "--dry-run")
    assert status == 2 and f"n={n}" in err.splitlines()[-1] and "1 or more" in err
    assert f"n={n}" in command("check", f"./mine.py:Mine:n={n}")[1]
