"""The former names of a task's parts, which work for one version."""

import pytest

from gradebench.core.task import Task

OPERATIONS = dict.fromkeys(("prepare", "load", "problem", "evaluate"), lambda self, *arguments: None)


def test_a_task_that_defines_needs_still_says_its_requirements():
    with pytest.warns(FutureWarning, match="Old.needs is called requirements now"):
        old = type("Old", (Task,), OPERATIONS | {"needs": lambda self: [*Task.needs(self), "downloads: 1 GB"]})
    assert old().requirements() == ["downloads: 1 GB"]


def test_what_a_task_leaves_as_settled_is_found_as_prepared():
    task = type("Old", (Task,), OPERATIONS)()
    with pytest.warns(FutureWarning, match="called Task.prepared now"):
        task.settled = {"folder": "here"}
    assert task.prepared == {"folder": "here"}
    task.prepared = {"folder": "there"}
    with pytest.warns(FutureWarning, match="called Task.prepared now"):
        assert task.settled == {"folder": "there"}
