"""Cached folders: built once for the same facts, and whole or not there."""

import contextlib
import multiprocessing
import os
import random
from pathlib import Path

import pytest

from gradebench.core.errors import InputError
from gradebench.storage import cache


@pytest.fixture
def build():
    """A builder that counts its calls."""

    class Builder:
        calls = 0

        def __call__(self, folder):
            self.calls += 1
            (folder / "content").write_text("whole")

    return Builder()


def names(root):
    return [path.name for path in root.iterdir()]


def test_the_same_facts_are_built_once(build):
    first = cache.cached_folder("thing", {"a": 1, "b": [2]}, build)
    again = cache.cached_folder("thing", {"b": [2], "a": 1}, build)
    assert first == again and build.calls == 1
    assert (first / "content").read_text() == "whole"
    assert names(cache.cache_root()) == [first.name]


def test_other_facts_and_other_names_are_built_apart(build):
    folders = {cache.cached_folder(*key, build) for key in (("x", {"a": 1}), ("x", {"a": 2}), ("y", {"a": 1}))}
    assert len(folders) == build.calls == 3


def test_a_build_that_fails_leaves_nothing(build):
    def failing(folder):
        (folder / "content").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.cached_folder("thing", {}, failing)
    assert not names(cache.cache_root())
    assert cache.cached_folder("thing", {}, build).is_dir() and build.calls == 1


def test_of_two_builders_at_once_the_second_keeps_what_the_first_made(build):
    def slower(folder):
        cache.cached_folder("thing", {}, build)
        (folder / "content").write_text("the second's")

    folder = cache.cached_folder("thing", {}, slower)
    assert (folder / "content").read_text() == "whole"
    assert names(cache.cache_root()) == [folder.name]


def test_a_damaged_folder_is_built_anew_and_said_so(build):
    folder = cache.cached_folder("thing", {}, build)
    (folder / "facts.json").unlink()
    (folder / "content").write_text("damaged")
    lines = []
    assert (cache.cached_folder("thing", {}, build, lines.append) / "content").read_text() == "whole"
    assert build.calls == 2 and len(lines) == 1 and str(folder) in lines[0]
    assert names(cache.cache_root()) == [folder.name]


def test_of_two_that_mend_a_folder_at_once_both_find_it_whole(build):
    folder = cache.cached_folder("thing", {}, build)
    (folder / "content").write_text("damaged")

    def slower(draft):
        cache.cached_folder("thing", {}, build, list)
        assert (folder / "content").read_text() == "whole"
        (draft / "content").write_text("the second's")

    cache.cached_folder("thing", {}, slower, list)
    assert (folder / "content").read_text() == "whole" and not cache.fault_of(folder)
    assert names(cache.cache_root()) == [folder.name]


def test_processes_that_damage_and_mend_one_folder_never_stumble():
    with multiprocessing.get_context("fork").Pool(4) as pool:
        mended = pool.map(_damage_and_mend, range(4))
    assert min(mended) > 0
    folder = cache.cached_folder("thing", {}, _five_files, list)
    assert not cache.fault_of(folder) and names(cache.cache_root()) == [folder.name]


def _five_files(draft):
    for number in range(5):
        (draft / f"{number}").write_bytes(bytes([number]) * 1000)


def _damage_and_mend(seed):
    """How often one of the processes found the folder damaged."""
    dice, lines = random.Random(seed), []
    for _ in range(60):
        path = cache.cached_folder("thing", {}, _five_files, lines.append) / dice.choice(["0", "3", "digests.json"])
        with contextlib.suppress(OSError):  # it has just been put aside
            dice.choice([lambda path: None, Path.unlink, lambda path: path.write_bytes(b"damaged")])(path)
    return len(lines)


def test_drafts_of_killed_builders_go_and_those_of_living_ones_stay(build):
    root = cache.cache_root()
    left = [root / ".thing-0", root / ".thing-1-damaged", root / ".thing-2"]
    for path in left:
        path.mkdir(parents=True)
        (path / "content").write_text("half")
    (left[0] / ".lock").touch()
    for path in left[:2]:
        os.utime(path, (0, 0))

    def while_another_builds(draft):
        os.utime(draft, (0, 0))
        cache.cached_folder("other", {}, build)
        build(draft)

    cache.cached_folder("thing", {}, while_another_builds)
    assert [path.exists() for path in left] == [False, False, True]  # the last one has just begun
    assert all(not cache.fault_of(path) for path in root.iterdir() if path not in left)


def test_a_cache_below_a_file_is_refused_with_its_name(build, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GRADEBENCH_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(InputError, match=f"can't write into the cache {tmp_path}/file/below.*GRADEBENCH_CACHE"):
        cache.cached_folder("thing", {}, build)


@pytest.mark.parametrize(
    ("variables", "root"),
    [
        ({"GRADEBENCH_CACHE": "/a"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/gradebench"),
        ({"HOME": "/c", "XDG_CACHE_HOME": "", "GRADEBENCH_CACHE": ""}, "/c/.cache/gradebench"),
    ],
)
def test_the_caches_place_follows_the_environment(monkeypatch, variables, root):
    for name in ("GRADEBENCH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache.cache_root() == Path(root)
