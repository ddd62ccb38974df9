"""A third party's package, installed by pip into an environment of its own, beside gradebench."""

import csv
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[2] / "plugin"
TASK = f"{Path(__file__).parents[1]}/tiny.py:TinyTask"
LIST = "from gradebench.reporting.listing import print_listing; print_listing('estimators', as_json={json})"


@pytest.fixture(scope="session")
def plugin_environment(tmp_path_factory):
    """The Python of an environment that has the plugin, and sees the packages of the running environment."""
    folder = tmp_path_factory.mktemp("plugin")
    builder = venv.EnvBuilder(symlinks=os.name != "nt")
    builder.create(folder / "environment")
    python = Path(builder.ensure_directories(folder / "environment").env_exe)
    home = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    # addsitedir, and not the bare path, because it also follows the .pth files in there: an editable gradebench.
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    lines = [f"import site; site.addsitedir({path!r})\n" for path in shared]
    Path(home, "shared.pth").write_text("".join(lines))
    source = shutil.copytree(PLUGIN, folder / "source")  # the build writes into its source folder
    pip = ("-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run(python, *pip, str(source))
    return python


def run(python, *arguments, **keywords):
    """The finished process; fails with what it printed."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PIP_USER")}
    keywords |= {"capture_output": True, "text": True, "env": environment}
    finished = subprocess.run([python, *arguments], check=False, **keywords)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished


def test_both_entries_of_an_installed_plugin_are_listed(plugin_environment, tmp_path):
    printed = run(plugin_environment, "-c", LIST.format(json=False), cwd=tmp_path).stdout.splitlines()
    paired = next(line for line in printed if line.startswith("paired "))
    assert "gradebench-plugin-example 0.2.0  yes" in paired
    assert paired.endswith("REINFORCE in pairs: each sample of a pair is the other's baseline.")
    broken = next(line for line in printed if line.startswith("unimportable "))
    assert "gradebench-plugin-example 0.2.0" in broken
    assert broken.endswith("imports a_package_that_nobody_has, which isn't installed")
    assert any(line.startswith("rloo ") and "gradebench 0" in line for line in printed)


def test_the_document_of_the_listing_tells_a_plugin_from_a_built_in(plugin_environment, tmp_path):
    listed = json.loads(run(plugin_environment, "-c", LIST.format(json=True), cwd=tmp_path).stdout)["estimators"]
    by_name = {entry["name"]: entry for entry in listed}
    assert by_name["paired"]["status"] == "ok" and not by_name["paired"]["builtin"]
    assert [(option["name"], option["default"]) for option in by_name["paired"]["options"]] == [("pairs", 2)]
    assert by_name["unimportable"]["status"] == "broken"
    assert by_name["rloo"]["builtin"]


def test_an_estimator_of_an_installed_plugin_is_built_with_its_origin(plugin_environment, tmp_path):
    code = (
        "from gradebench.plugins.registry import resolve; found = resolve('estimators', 'paired:pairs=03');"
        "print(found.label, found.source, found.create().n, sep='|')"
    )
    printed = run(plugin_environment, "-c", code, cwd=tmp_path).stdout.strip()
    assert printed == "paired:pairs=3|gradebench-plugin-example 0.2.0|6"


def test_resolving_a_broken_plugin_is_one_line_with_its_origin(plugin_environment, tmp_path):
    code = (
        "from gradebench import InputError; from gradebench.plugins.registry import resolve\n"
        "try: resolve('estimators', 'unimportable')\n"
        "except InputError as error: print(error)"
    )
    printed = run(plugin_environment, "-c", code, cwd=tmp_path).stdout
    assert printed == (
        "estimator unimportable of gradebench-plugin-example 0.2.0 can't be imported: "
        "ModuleNotFoundError: No module named 'a_package_that_nobody_has' (unimportable.py, line 3)\n"
    )


def test_an_installed_plugin_runs_to_a_row_of_the_leaderboard_with_its_origin(plugin_environment, tmp_path):
    command = ["run", "-e", "paired:pairs=1", "-t", TASK, "--seeds", "0", "--steps", "1", "--jobs", "1"]
    code = "from gradebench.cli import main; main()"
    printed = run(plugin_environment, "-c", code, *command, "--out", str(tmp_path / "run"), cwd=tmp_path).stdout
    assert "paired:pairs=1" in printed
    with open(tmp_path / "run" / "leaderboard.csv", newline="") as file:
        assert [(row["estimator"], row["status"]) for row in csv.DictReader(file)] == [("paired:pairs=1", "ok")]
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["estimator_source"] for row in rows} == {"gradebench-plugin-example 0.2.0"}
    assert {row["estimator_params"] for row in rows} == {'{"pairs": 1}'}
