"""The documentation site: it builds without a network and without a dead link, and its tables are those of the code."""

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from gradebench.core import schema
from gradebench.plugins.registry import entries

ROOT = Path(__file__).parents[1]
HOOKS = runpy.run_path(str(ROOT / "docs" / "hooks.py"))


class Page(HTMLParser):
    """The ids of a page, where its links lead, and what it loads."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self.ids |= {known[name] for name in ("id", "name") if known.get(name)}
        if tag == "a" and known.get("href"):
            self.links.append(known["href"])
        elif tag in ("script", "img", "link", "iframe") and (at := known.get("src") or known.get("href")):
            self.loads.append(at)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if not importlib.util.find_spec("material") or not importlib.util.find_spec("mkdocstrings_handlers"):
        pytest.skip("the site isn't built here: pip install -e '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return {path: Page(path.read_text(encoding="utf-8")) for path in out.rglob("*.html") if path.name != "404.html"}


def test_no_link_of_the_site_is_dead_and_nothing_comes_from_a_network(site):
    lost = []
    for path, page in site.items():
        assert not [one for one in page.loads if re.match(r"(https?:)?//", one)], path
        for link in [*page.links, *page.loads]:
            target, anchor = urldefrag(link)
            if re.match(r"[a-z]+:", target):
                continue
            at = (path.parent / unquote(target)).resolve() if target else path
            if not at.exists() or (anchor and at in site and unquote(anchor) not in site[at].ids):
                lost.append(f"{path.name}: {link}")
    assert lost == [] and len(site) > 25


def test_the_search_has_every_page(site):
    index = next(path for path in site if path.name == "index.html").parent / "search" / "search_index.js"
    text = index.read_text(encoding="utf-8")
    assert all(f'"{name}.html' in text for name in ("tables", "gallery", "commands", "tutorials/estimator"))


def test_the_reference_has_every_public_name():
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
    import gradebench

    assert set(re.findall(r"^::: gradebench\.(\w+)$", pages, re.MULTILINE)) == set(gradebench.__all__)


def test_the_page_of_tables_is_the_dictionary_of_the_code():
    """`python docs/hooks.py` writes it anew."""
    assert HOOKS["tables_page"]() == (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")


def test_the_dictionary_is_whole():
    kinds = {"text", "whole", "number", "truth", "object", "list"}
    for table in schema.TABLES:
        assert len(set(table.names)) == len(table.names), table.file
        for column in table.columns:
            assert (
                column.kind in kinds
                and column.meaning
                and column.better in ("", "higher", "lower", "that of the metric")
            )
            # what is better or worse is a number; a number has a unit
            assert column.kind in ("number", "whole") or not column.better, column
            assert column.kind != "number" or column.unit, column
    for metric in schema.METRICS.values():
        assert metric.unit and metric.meaning and metric.better in ("", "higher", "lower")


def test_one_name_is_one_quantity():
    """A column that is named like a metric has its unit; the one old name that hasn't says so."""
    for table in (schema.LEADERBOARD, schema.TRIALS, schema.SAMPLES):
        for column in table.columns:
            if column.name in schema.METRICS and "old name" not in column.meaning:
                metric = schema.METRICS[column.name]
                assert (column.unit, column.better) == (metric.unit, metric.better), column


def test_the_gallery_has_every_estimator_with_what_was_measured():
    page = HOOKS["gallery_page"]()
    parts = {part.partition("\n")[0]: part for part in page.split("\n### ")[1:]}
    builtin = [entry for entry in entries("estimators").values() if entry.builtin]
    assert set(parts) == {entry.name for entry in builtin}
    assert all(entry.card["bias"] in parts[entry.name] for entry in builtin)
    assert "| imdb | 0.445 (" in parts["grade-ste"] and "0.079 s a step" in parts["grade-ste"]
    assert sum("| exact | -" not in part for part in parts.values()) > 15


def test_the_commands_page_has_every_command():
    import typer.main

    from gradebench import cli

    page = HOOKS["commands_page"]()
    for name, command in typer.main.get_command(cli.app).commands.items():
        assert command.hidden or f"## gradebench {name}\n" in page
    assert "`--seeds`" in page
