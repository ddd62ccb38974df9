"""What `gradebench new` writes: it keeps its contract as it stands, and never overwrites anything."""

import json
import os
import subprocess
import sys
import tomllib

import pytest
import torch
import yaml

import gradebench
from gradebench.checks.conformance import report
from gradebench.core.sampling import generator
from gradebench.kit.making import Pretraining
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


# --- a task -------------------------------------------------------------------------------------------------------


@pytest.fixture
def made_quickly(monkeypatch):
    """Small policies, in next to no steps."""
    monkeypatch.setattr(Pretraining, "__init__", lambda self, **shape: None)
    for name, value in {"width": 8, "layers": 1, "heads": 2, "vocabulary": 100, "steps": 5, "batch": 4}.items():
        monkeypatch.setattr(Pretraining, name, value)


@pytest.mark.parametrize(("name", "cls"), [("my-task", "MyTask"), ("RLOO2", "RLOO2"), ("sea_shanty", "SeaShanty")])
def test_the_page_of_a_task_can_be_resolved_and_is_one_page(command, here, name, cls):
    status, out, _ = command("new", "--task", name)
    (file,) = here.iterdir()
    assert status == 0 and f"gradebench run -e all -t ./{file.name}:{cls}" in out
    task = registry.resolve("tasks", f"./{file.name}:{cls}:wanted=ship,kl=0.2").create()
    assert task.options == {"wanted": "ship", "kl": 0.2, "policy": "scratch", "instance": 0}
    assert len(file.read_text(encoding="utf-8").splitlines()) < 50


@pytest.mark.heavy
def test_every_estimator_trains_on_the_page_of_a_task_or_says_why_not(command, here, short, made_quickly):
    command("new", "--task", "mine")
    status, _, err = command("run", "-e", "all", "-t", "./mine.py:Mine", "--seeds", 0, "--steps", 2, "--out", "out")
    assert status == 0, err
    cells = {
        path.parent.name.split("--")[1]: json.loads(path.read_text()) for path in here.glob("out/cells/*/cell.json")
    }
    builtin = [name for name, entry in registry.entries("estimators").items() if entry.builtin]
    assert set(cells) >= {name for name in builtin if registry.load("estimators", name).factory.in_all}
    assert {cell["status"] for cell in cells.values()} == {"ok", "skipped"}
    skipped = {name: cell["reason"] for name, cell in cells.items() if cell["status"] == "skipped"}
    assert {"grade", "grade-ste", "st", "rebar"} <= set(skipped) and "rloo" not in skipped
    assert all("which the task does not offer" in reason for reason in skipped.values())
    assert "its reward reads texts, which have no derivative" in skipped["grade"]


def test_the_page_of_a_task_rewards_what_it_says(command, made_quickly):
    command("new", "--task", "mine")
    task = registry.resolve("tasks", "./mine.py:Mine").create()
    task.prepare(torch.device("cpu"), lambda message: None)
    task.load(torch.device("cpu"))
    for sample in task.samples("test", generator("cpu")):
        assert sample["reward"] == sample["text"].split().count("coin")


def test_both_pages_are_in_house_style(command, here):
    pytest.importorskip("ruff")
    command("new", "--task", "mine")
    command("new", "--package", "theirs")
    for check in (["format", "--check"], ["check", "--select", "E,F,UP,B"]):
        subprocess.run([sys.executable, "-m", "ruff", *check, "--line-length", "120", "."], check=True)


@pytest.mark.parametrize(
    "name", ["language-model-task", "LanguageModelTask", "pretraining", "kl", "policy", "itertools"]
)
def test_a_name_that_the_page_of_a_task_needs_is_refused(command, here, name):
    status, _, err = command("new", "--task", name)
    assert status == 2 and len(err.splitlines()) == 1 and "another name" in err
    assert not list(here.iterdir())


# --- a package ----------------------------------------------------------------------------------------------------


def test_a_package_has_all_that_a_project_needs(command, here):
    status, out, _ = command("new", "--package", "my-plugin")
    top = here / "gradebench-my-plugin"
    assert status == 0 and "pip install -e '.[test]' && pytest" in out
    assert sorted(path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file()) == [
        ".github/workflows/test.yml",
        ".gitignore",
        "README.md",
        "gradebench_my_plugin/__init__.py",
        "gradebench_my_plugin/estimator.py",
        "gradebench_my_plugin/task.py",
        "pyproject.toml",
        "tests/test_plugin.py",
    ]
    project = tomllib.loads((top / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dependencies"] == [f"gradebench>={gradebench.__version__}"]
    assert project["entry-points"]["gradebench.tasks"] == {"my-plugin": "gradebench_my_plugin.task:MyPlugin"}
    steps = yaml.safe_load((top / ".github/workflows/test.yml").read_text())["jobs"]["test"]["steps"]
    assert [step.get("run", "").split()[:1] for step in steps[2:]] == [["pip"], ["pytest"]]
    assert steps[1]["with"] == {"python-version": "${{ matrix.python }}"}
    assert not [path for path in top.rglob("*") if path.is_file() and "$package" in path.read_text(encoding="utf-8")]


@pytest.mark.heavy
def test_a_package_installs_and_passes_its_own_tests(command, here):
    """In an environment of its own, which sees what this one has and nothing of a network."""
    command("new", "--package", "mine")
    top, venv = here / "gradebench-mine", here / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    site = next(venv.glob("lib/python*/site-packages"))
    seen = [path for path in sys.path if path.endswith("-packages")] + [
        os.path.dirname(os.path.dirname(gradebench.__file__))
    ]
    (site / "seen.pth").write_text("".join(f"{path}\n" for path in seen))
    pip = [str(python), "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "-q", str(top)]
    subprocess.run(pip, check=True, capture_output=True)
    done = subprocess.run(
        [str(python), "-m", "pytest", "-q", str(top)], check=False, capture_output=True, text=True, cwd=top
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "2 passed" in done.stdout


@pytest.mark.parametrize("name", ["rloo", "imdb", "class", "a b", "torch"])
def test_a_name_that_a_package_cant_have_is_refused(command, here, name):
    status, _, err = command("new", "--package", name)
    assert status == 2 and len(err.splitlines()) == 1 and not list(here.iterdir())


def test_a_package_that_is_there_stays(command, here):
    command("new", "--package", "mine")
    (here / "gradebench-mine" / "README.md").write_text("precious")
    status, _, err = command("new", "--package", "mine")
    assert status == 2 and "there already" in err
    assert (here / "gradebench-mine" / "README.md").read_text() == "precious"
    assert command("new", "--package", "--task", "mine")[0] == 2
