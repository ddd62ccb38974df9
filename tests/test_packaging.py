"""What gets installed: the wheel's files, and entry points that the metadata repeats."""

import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
HOMES = {"gradebench": "gradebench", "estimators": "gradebench/estimators", "tasks": "gradebench/tasks"}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names of the files in a wheel that is built without a network, from a copy: the build writes beside it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in (*HOMES, "pyproject.toml", "README.md", "LICENSE"):
        copy_sources(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    done = subprocess.run([*pip, str(source)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(folder.glob("gradebench-*.whl"))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def copy_sources(origin, target):
    for path in [origin] if origin.is_file() else sources_below(origin):
        copy = target / path.relative_to(origin)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())


def sources_below(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]


def test_every_source_file_is_in_the_wheel_as_it_stands(wheel):
    for folder, home in HOMES.items():
        for path in sources_below(ROOT / folder):
            name = str(PurePosixPath(home, path.relative_to(ROOT / folder).as_posix()))
            assert wheel.get(name) == path.read_bytes(), name
    assert "gradebench/py.typed" in wheel and any(name.startswith("gradebench/tasks/data/") for name in wheel)


def test_nothing_else_lands_beside_the_package(wheel):
    tops = {name.partition("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"gradebench"}
    paths = [PurePosixPath(name) for name in wheel]
    assert not [path for path in paths if {"tests", "test", "__pycache__"} & set(path.parts)]
    assert not [path for path in paths if path.name.startswith(("test_", "conftest", "tiny"))]
    assert not [path for path in paths if path.suffix in (".pyc", ".ipynb")]


def test_the_wheel_carries_licence_and_commands(wheel, project):
    about = {PurePosixPath(name).name: content.decode() for name, content in wheel.items() if ".dist-info/" in name}
    assert "LICENSE" in about
    entries = about["entry_points.txt"]
    assert all(f"{name} = {value}" in entries for name, value in project["scripts"].items())


@pytest.mark.parametrize("group", ["gradebench.estimators", "gradebench.tasks"])
def test_the_installed_entry_points_are_those_of_the_project(project, group):
    """Otherwise the installation is stale: `pip install -e .` again."""
    points = metadata.distribution("gradebench").entry_points.select(group=group)
    assert {point.name: point.value for point in points} == project["entry-points"][group]
    for point in points:
        assert callable(point.load())


def test_the_installed_commands_are_those_of_the_project(project):
    points = metadata.distribution("gradebench").entry_points.select(group="console_scripts")
    assert {point.name: point.value for point in points} == project["scripts"]
    assert metadata.version("gradebench") == project["version"]


def test_every_package_that_the_code_imports_at_the_top_is_a_dependency(project):
    """What is imported lazily, and only for some options, may be an extra."""
    wanted = {line.split(">")[0].split("=")[0].strip() for line in project["dependencies"]}
    assert {"torch", "pandas", "scipy", "rich", "typer", "filelock", "safetensors", "tokenizers", "numpy"} <= wanted | {
        "numpy",  # of pandas and scipy
        "safetensors",  # of transformers
        "tokenizers",  # of transformers
    }
