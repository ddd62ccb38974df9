"""The code of docs/tasks.md does what the page says."""

import re
from pathlib import Path

import pytest
import torch

from gradebench import LanguageModelTask, Task
from gradebench.core.sampling import generator
from gradebench.kit.making import Pretraining
from gradebench.plugins import registry

PAGE = (Path(__file__).parents[3] / "docs" / "tasks.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL)
CPU = torch.device("cpu")


@pytest.fixture
def pages(tmp_path, monkeypatch):
    monkeypatch.setattr(LanguageModelTask, "pretraining", Pretraining(width=8, layers=1, heads=2, steps=5, batch=8))
    for name, code in BLOCKS:
        (tmp_path / name).write_text(code, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(("spec", "soft"), [("sea.py:Sea", False), ("soft.py:SoftSea:wanted=coin", True)])
def test_the_tasks_of_the_page_run(pages, spec, soft):
    task = registry.resolve("tasks", f"{pages}/{spec}").create()
    task.prepare(CPU, lambda message: None)
    task.load(CPU)
    problem = task.problem("train", torch.arange(4))
    assert ("soft_reward" in problem.offers) == soft
    for name in ("rloo", "grade-ste") if soft else ("rloo",):
        gradient = registry.resolve("estimators", name).create().gradient(problem, generator(CPU)).grad
        assert all(part.isfinite().all() for part in gradient)
    keys = re.findall(r"^\| `(\w+)` \| (?:reward|nats|share)", PAGE, re.MULTILINE)
    assert set(task.evaluate("test", generator(CPU))) == set(keys) - (set() if soft else {"gold_reward"})


def test_the_page_gives_the_defaults_that_are():
    def of(row):
        return re.search(rf"^\| {re.escape(row)} .*\| ([^|]+) \|$", PAGE, re.MULTILINE)[1]

    task, shape = LanguageModelTask, Pretraining()
    assert of("`horizon`, `longest_prompt`") == f"{task.horizon}, {task.longest_prompt}"
    assert of("`evaluated`, `sampled`") == f"{task.evaluated}, {task.sampled}"
    assert of("`pretraining`") == ", ".join(f"{value}" for value in vars(shape).values())
    rates = of("`default_steps`, `default_batch`, `learning_rate`")
    assert rates == f"{Task.default_steps}, {Task.default_batch}, {Task.learning_rate}"
    assert [name for name, _ in BLOCKS] == ["sea.py", "soft.py"]
