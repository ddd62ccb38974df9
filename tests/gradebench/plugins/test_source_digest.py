"""What a plugin's digest changes with: its text, its parents and helpers, versions; and with nothing else."""

import importlib
import sys

import pytest

from gradebench.plugins import registry, source_digest
from gradebench.plugins.source_digest import source_digest as digest_of

FILES = {
    "mine.py": "import json\nfrom parents import Parent\n\nclass Mine(Parent):\n    def gradient(self):\n        import helper\n",
    "parents.py": "from grandparents import Grandparent\nclass Parent(Grandparent): ...\n",
    "grandparents.py": "class Grandparent: ...\n",
    "helper.py": "from inner import deep\n",
    "inner/__init__.py": "from . import deep\n",
    "inner/deep.py": "FACTOR = 2\n",
    "unrelated.py": "import nothing\n",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return tmp_path


def of(folder):
    return digest_of("mine", str(folder / "mine.py"))


@pytest.mark.parametrize("name", [name for name in FILES if name != "unrelated.py"])
def test_an_edit_of_anything_that_the_plugin_imports_changes_its_digest(folder, name):
    before = of(folder)
    path = folder / name
    path.write_text(path.read_text() + "# edited\n")
    assert of(folder) != before
    path.write_text(FILES[name])
    assert of(folder) == before


def test_an_edit_of_what_it_does_not_import_changes_nothing_and_nothing_is_imported(folder):
    before = of(folder)
    (folder / "unrelated.py").write_text("another = 1\n")
    assert of(folder) == before
    assert not {"mine", "parents", "helper", "inner"} & set(sys.modules)


def test_a_file_is_read_again_only_when_it_has_changed(folder, monkeypatch):
    before, read = of(folder), []
    monkeypatch.setattr(source_digest, "_collected", lambda *name: read.append(name))
    assert of(folder) == before and not read


def test_another_version_of_an_imported_package_changes_the_digest(folder, monkeypatch):
    (folder / "helper.py").write_text("import torch\n")
    before = of(folder)
    source_digest._known.clear()
    monkeypatch.setattr(source_digest, "_version", lambda name: "9.9" if name == "torch" else None)
    assert of(folder) != before


def test_a_loop_of_imports_and_a_text_that_cannot_be_parsed_have_digests(folder):
    (folder / "grandparents.py").write_text("import mine\n")
    looped = of(folder)
    (folder / "grandparents.py").write_text("def (\n")
    assert of(folder) != looped


def test_a_built_in_depends_on_its_helpers_and_on_what_it_takes_from_gradebench_but_not_on_other_families():
    digests = [registry.resolve("estimators", name).digest for name in ("ppo", "relax")]
    critic, variate = (
        {path.rpartition("/")[2] for path in files}
        for family in ("actor_critic", "control_variate")
        for (module, _), (files, _) in source_digest._known.items()
        if module.endswith(family)
    )
    assert {"actor_critic.py", "minibatches.py", "estimator.py", "problem.py"} <= critic
    assert {"control_variate.py", "estimator.py", "problem.py", "sampling.py"} <= variate  # gumbel_given
    assert not {"group_relative.py", "runner.py", "report.py", "running.py", "api.py"} & (critic | variate)
    assert {len(digest) for digest in digests} == {64}
