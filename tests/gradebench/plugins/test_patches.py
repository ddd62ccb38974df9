"""Whatever of the watched modules is replaced is found, named and put back."""

import importlib

import pytest

from gradebench.plugins import patches

WATCHED = sorted({*patches._MODULES, *patches._PACKAGES})


def test_all_that_is_watched_are_modules():
    assert [name for name in WATCHED if not patches._is_watched(name)] == []
    assert all(importlib.import_module(name).__name__ == name for name in WATCHED)


@pytest.mark.parametrize("name", [name for name in WATCHED if name != "gradebench"])
def test_a_function_that_is_replaced_is_named_and_put_back(name):
    module = importlib.import_module(name)
    key = next(key for key in sorted(vars(module)) if not key.startswith("_") and callable(getattr(module, key)))
    before, snapshot = getattr(module, key), patches.Snapshot()
    try:
        setattr(module, key, lambda *given, **named: None)
        assert snapshot.undo("mine.py") == [f"{name}.{key}"]
        assert getattr(module, key) is before
        assert snapshot.undo("mine.py") == []
    finally:
        setattr(module, key, before)
