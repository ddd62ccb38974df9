"""Whatever happens to a file in the cache, the next run has the numbers of a fresh one, says so, and mends the cache."""

import functools
import random
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradebench import InputError
from gradebench.core.sampling import generator
from gradebench.storage.cache import cache_root, fault_of
from gradebench.tasks import arithmetic, grammar, imdb

CPU = torch.device("cpu")
SHAPE = {"width": 8, "layers": 1, "heads": 2}
TINY = imdb.Size(**SHAPE, vocabulary=300, prompt=5, horizon=2, prompts=32, policy_steps=2, reward_steps=2, steps=2)


def flipped(path):
    content = bytearray(path.read_bytes())
    bit = random.Random(path.name).randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path):
    path.write_bytes(b"")


@functools.cache
def few_reviews(seed=imdb.SPLIT_SEED):
    reviews = grammar.generate_reviews(1000, seed)
    labels = imdb.np.array([review.label for review in reviews], dtype=imdb.np.int8)
    return imdb.Corpus("embedded", [review.text for review in reviews], labels, [review.film for review in reviews])


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(imdb.SIZES, "mini", TINY)
    monkeypatch.setattr(imdb, "embedded_corpus", few_reviews)
    monkeypatch.setattr(arithmetic, "Pretraining", functools.partial(arithmetic.Pretraining, **SHAPE, steps=2))


def numbers(make):
    """The task's metrics, what its numbers depend on, and the lines that it has said."""
    task, lines = make(), []
    task.prepare(CPU, lines.append)
    task.load(CPU)
    return task.evaluate("test", generator("cpu", 0, "test")), task.digests(), lines


def files_of_cache():
    return sorted(path for path in cache_root().rglob("*") if path.is_file())


def contents():
    return {path: path.read_bytes() for path in files_of_cache()}


TASKS = {
    "imdb": lambda: imdb.Imdb("embedded"),
    "arithmetic": lambda: arithmetic.Arithmetic(digits=1),
}


@pytest.mark.parametrize("damage", [flipped, truncated, emptied, Path.unlink])
@pytest.mark.parametrize("name", TASKS)
def test_a_damaged_file_of_the_cache_is_made_again_and_changes_no_number(name, damage, tmp_path, monkeypatch):
    make = TASKS[name]
    *fresh, _ = numbers(make)
    whole = contents()
    (folder,) = {path.parent for path in whole}
    kept = shutil.copytree(folder, tmp_path / "kept")
    assert {"digests.json", "facts.json", "report.json"} < {path.name for path in whole}
    for path in whole:
        damage(path)
        *again, lines = numbers(make)
        assert again == fresh, path
        assert contents() == whole, path
        (notice,) = (line for line in lines if "it is made again" in line)
        assert str(folder) in notice and (path.name in notice or path.name == "digests.json")
        assert numbers(make)[2] == []
        # The first file's was trained again; for the others, which cost a test as much, a copy of that does.
        monkeypatch.setattr(type(make()), "_build", lambda self, draft, *_: _copied(kept, draft))


def _copied(kept, draft):
    for path in kept.iterdir():
        if path.name not in ("digests.json", "facts.json"):
            shutil.copy(path, draft)


@pytest.mark.parametrize("name", TASKS)
def test_a_worker_refuses_what_was_damaged_since_the_run_began(name):
    task = TASKS[name]()
    task.prepare(CPU, print)
    worker = type(task)(**task.options)
    worker.prepared = task.prepared
    worker.load(CPU)
    flipped(task.folder / "policy.safetensors" if name == "imdb" else task.folder / "model.safetensors")
    with pytest.raises(InputError, match=r"damaged during the run.*run again"):
        worker.load(CPU)


def test_every_bit_counts(tmp_path_factory):
    numbers(TASKS["imdb"])
    whole = contents()

    @settings(deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(sorted(whole)), st.integers(0, 10**9))
    def check(path, bit):
        content = bytearray(whole[path])
        bit %= 8 * len(content)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        assert fault_of(path.parent)
        path.write_bytes(whole[path])
        assert not fault_of(path.parent)

    check()
