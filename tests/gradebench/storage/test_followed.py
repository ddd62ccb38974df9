"""What code of a plugin reads is noted with its digest, however it is read, and a change of it is seen."""

import importlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from gradebench.plugins import registry, source_digest
from gradebench.rewards.text_reward import load_function
from gradebench.storage import followed

# Ways in which a plugin comes to something, and the name of the file or variable that its numbers then depend on.
WAYS = {
    "open": ("open(HERE / 'data.txt').read()", "data.txt"),
    "pathlib": ("(HERE / 'data.txt').read_text()", "data.txt"),
    "numpy": ("numpy.loadtxt(HERE / 'data.txt')", "data.txt"),
    "pandas": ("pandas.read_csv(HERE / 'data.txt')", "data.txt"),
    "torch": ("torch.load(HERE / 'data.pt')", "data.pt"),
    "os.open": ("os.read(os.open(HERE / 'data.txt', os.O_RDONLY), 9)", "data.txt"),
    "absent": ("(HERE / 'absent.txt').exists() or [] if suppressed(open, HERE / 'absent.txt') else 0", "absent.txt"),
    "computed module": ("importlib.import_module('help' + 'er')", "helper.py"),
    "sibling folder": ("importlib.import_module('side' + 'ways')", "sibling/sideways.py"),
    "runpy": ("runpy.run_path(str(HERE / 'helper.py'))", "helper.py"),
    "environ[]": ("os.environ['FOLLOWED']", "$FOLLOWED"),
    "environ.get": ("os.environ.get('FOLLOWED', 'a')", "$FOLLOWED"),
    "getenv": ("os.getenv('FOLLOWED_ABSENT')", "$FOLLOWED_ABSENT"),
    "in environ": ("'FOLLOWED_ABSENT' in os.environ", "$FOLLOWED_ABSENT"),
}
TEXT = """
import importlib, os, runpy, sys
from pathlib import Path
import numpy, pandas, torch
HERE = Path(__file__).parent
def suppressed(function, *given):
    try:
        return function(*given)
    except OSError:
        return None
def work():
    sys.path[:0] = [str(HERE), str(HERE / "sibling")]
    everything = dict(os.environ)
    (HERE / "scratch.txt").write_text("mine")
    (HERE / "scratch.txt").read_text()
    {way}
    del sys.path[:2]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    import torch

    (tmp_path / "data.txt").write_text("1 2\n")
    torch.save(torch.ones(2), tmp_path / "data.pt")
    (tmp_path / "helper.py").write_text("X = 1\n")
    (tmp_path / "sibling").mkdir()
    (tmp_path / "sibling" / "sideways.py").write_text("X = 1\n")
    monkeypatch.setenv("FOLLOWED", "a")
    monkeypatch.delenv("FOLLOWED_ABSENT", raising=False)
    monkeypatch.setattr(followed._following, "opened", {})
    monkeypatch.setattr(followed._following, "variables", {})
    monkeypatch.setattr(followed._following, "loaded", {})
    for name in ("helper", "sideways"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path
    for name in ("helper", "sideways"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_read_is_noted_and_its_change_seen(folder, monkeypatch, way):
    (folder / "mine.py").write_text(TEXT.format(way=WAYS[way][0]))
    followed.follow([str(folder / "mine.py")])
    importlib.invalidate_caches()
    registry.load_file(str(folder / "mine.py"), "work").factory()
    name = WAYS[way][1]
    name = name if name.startswith("$") else str(folder / name)
    read = {one: digest for one, digest in followed.read(source_digest.known_files()).items() if _mine(one, folder)}
    assert list(read) == [name] and followed.stale(read) == []
    if name.startswith("$"):
        monkeypatch.setenv(name[1:], "another")
    else:
        (folder / name).write_text("X = 2\n")
    assert followed.stale(read) == [name]


def _mine(name, folder):
    """Not what other tests of this process have left."""
    return name.startswith(("$", str(folder)))


def test_a_copy_of_the_environment_depends_on_no_variable_and_scratch_files_are_no_input(folder):
    (folder / "mine.py").write_text(TEXT.format(way="pass"))
    followed.follow([str(folder / "mine.py")])
    registry.load_file(str(folder / "mine.py"), "work").factory()
    assert len(os.environ) > followed._COPY
    assert not [one for one in followed.read(source_digest.known_files()) if _mine(one, folder)]


@pytest.mark.parametrize("change", ["data.txt", "folder/deep.txt", "$FOLLOWED"])
def test_what_a_plugin_declares_is_part_of_its_digest(folder, monkeypatch, change):
    (folder / "folder").mkdir()
    (folder / "folder" / "deep.txt").write_text("deep")
    text = "depends_on = 'data.txt'\nclass Mine:\n    depends_on = ('folder', '$FOLLOWED')\ndef score(texts): ...\n"
    (folder / "mine.py").write_text(text)

    def digest():
        return registry.load_file(str(folder / "mine.py"), "Mine").digest

    before = digest()
    assert digest() == before
    if change.startswith("$"):
        monkeypatch.setenv(change[1:], "another")
    else:
        (folder / change).write_text("changed")
    assert digest() != before


def test_a_declared_file_that_is_not_there_is_refused_in_one_line(folder):
    (folder / "mine.py").write_text("depends_on = ['prices.csv']\nclass Mine: ...\n")
    with pytest.raises(
        registry.InputError, match=r"mine\.py depends on prices\.csv, and there is no .*; mend its depends_on"
    ):
        registry.load_file(str(folder / "mine.py"), "Mine")


@pytest.mark.parametrize("name", ["rewards/__init__.py", "rewards/scores.py", "rewards/deep/inner.py", "words.py"])
def test_a_reward_in_a_module_changes_with_all_that_it_imports(tmp_path, monkeypatch, name):
    files = {
        "rewards/__init__.py": "from rewards.scores import score\n",
        "rewards/scores.py": "import importlib\nimport words\nfrom rewards.deep import inner\ndef score(texts): ...\n",
        "rewards/deep/__init__.py": "",
        "rewards/deep/inner.py": "X = 1\n",
        "words.py": "X = 1\n",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in [one for one in sys.modules if one.partition(".")[0] in ("rewards", "words")]:
        del sys.modules[module]
    before = load_function("rewards:score").digest
    (tmp_path / name).write_text(files[name] + "Y = 2\n")
    assert load_function("rewards:score").digest != before


def test_a_finished_cell_goes_with_what_it_read(command, tiny, short, tmp_path):
    text = "from pathlib import Path\nfrom gradebench.estimators.score_function import Rloo\nclass Mine(Rloo):\n    def reset(self):\n"
    (tmp_path / "mine.py").write_text(text + "        Path(__file__).with_name('data.txt').read_text()\n")
    (tmp_path / "data.txt").write_text("1")

    def run(*more):
        chosen = ("-e", f"{tmp_path / 'mine.py'}:Mine", "--seeds", "0", "--steps", "2", "--out", tmp_path / "run")
        return command("run", "-t", tiny(), *chosen, *more)

    assert run()[0] == 0
    (tmp_path / "data.txt").write_text("2")
    status, _, err = run()
    assert status == 2 and f"read {tmp_path / 'data.txt'}, changed since" in err.splitlines()[-1]
    (tmp_path / "data.txt").write_text("1")
    assert "1 cell was finished by an earlier run and kept" in run()[2]


def test_a_file_of_a_module_is_looked_up_once_however_many_there_are(monkeypatch):
    """Every cell goes through all modules, and large libraries bring thousands."""
    for number in range(5000):
        module = ModuleType(f"torch.many{number}")
        module.__file__ = os.path.join(os.path.dirname(os.__file__), f"many{number}.py")
        monkeypatch.setitem(sys.modules, module.__name__, module)
    followed.read()
    before = followed._is_own_code.cache_info().misses
    followed.read()
    assert followed._is_own_code.cache_info().misses == before


PREPARES = """
import importlib, os
from pathlib import Path
from gradebench.tasks.toys import BernoulliToy
HERE = Path(__file__).parent
class Prepared(BernoulliToy):
    def prepare(self, device, log, strict=False):
        super().prepare(device, log, strict)
        {way}
        self.prepared = {{}}  # so that no worker prepares
"""


@pytest.mark.parametrize("way", ["open", "environ.get"])
def test_what_a_task_reads_to_prepare_counts_for_its_cells(command, short, folder, monkeypatch, way):
    text, name = WAYS[way]
    monkeypatch.syspath_prepend(str(folder))
    (folder / "mine.py").write_text(PREPARES.format(way=text))
    (folder / "other.py").write_text("from gradebench.tasks.toys import BernoulliToy\nclass Other(BernoulliToy): ...\n")

    def run():
        sys.modules.pop("helper", None)
        tasks = ("-t", f"{folder / 'mine.py'}:Prepared", "-t", f"{folder / 'other.py'}:Other")
        return command("run", "-e", "rloo", *tasks, "--seeds", "0", "--steps", "2", "--out", folder / "run")

    assert run()[0] == 0
    name = name if name.startswith("$") else str(folder / name)
    (cell,) = (folder / "run" / "cells").glob("other*rloo*/cell.json")
    assert name not in json.loads(cell.read_text())["read"]  # another plugin's task has not read it
    if name.startswith("$"):
        monkeypatch.setenv(name[1:], "another")
    else:
        Path(name).write_text("X = 2\n")
    status, _, err = run()
    assert status == 2 and f"read {name}, changed since" in err.splitlines()[-1]
