"""Every block of Python or shell in docs/ is run here, with fewer seeds and steps, or says above it why it isn't.

A block that begins with `# NAME.py` is that file. Pages share a folder, as they would for a reader who goes from one to the next.
"""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer.main

from gradebench import cli

DOCS = Path(__file__).parents[2] / "docs"
IN_ORDER = ["index.md", "tutorials/estimator.md", "howto/tables.md"]  # these first, as others read what they wrote
ELSEWHERE = {"python.md": "tests/gradebench/test_api.py", "tasks.md": "tests/gradebench/kit/test_tasks_page.py"}
SMALL = "enumerable-lm:vocabulary=3,horizon=2,layers=1,width=4"
SMALLER = {
    "--seeds 0-5": "--seeds 0-1",
    "--seeds 0-9": "--seeds 0-2",
    "seeds=6": "seeds=2",
    "--steps 20": "--steps 2",
    "--steps 10": "--steps 2",
    "--draws 2000": "--draws 8",
    "--draws 200": "--draws 8",
    "steps=10": "steps=2",
}
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>[^\n]*?) *-->\n)?```(?P<kind>python|bash)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
OPENING = re.compile(r"^ *```(?:python|bash)\b", re.MULTILINE)


def pages():
    found = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")}
    return {name: found[name] for name in [*IN_ORDER, *sorted(set(found) - set(IN_ORDER))]}


def smaller(text):
    for full, short in SMALLER.items():
        text = text.replace(full, short)
    return re.sub(r"enumerable-lm(?!:)", SMALL, text)


def lines_of(text):
    return [line for line in text.replace("\\\n", " ").split("\n") if line.strip() and not line.startswith("#")]


def test_every_block_runs_or_says_why_not(command, in_process, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = 0
    for name, page in pages().items():
        blocks = list(BLOCK.finditer(page))
        assert len(blocks) == len(OPENING.findall(page)), f"{name} has a block that this test doesn't read"
        known = {"__name__": "__main__"}
        for block in blocks if name not in ELSEWHERE else ():
            text = smaller(block["text"])
            if block["why"]:
                assert len(block["why"].split()) > 3, f"{name} gives no reason: {block['why']}"
                continue
            ran += 1
            if block["kind"] == "bash":
                for line in lines_of(text):
                    program, *words = shlex.split(line)
                    if words[0] == "enumerate":  # in tests/test_questions.py, with what it prints
                        continue
                    status, _, err = command(*words)
                    assert program == "gradebench" and status == 0, f"{name}: {line}\n{err}"
                continue
            if file := re.match(r"# (\w+\.py)\n", text):
                (tmp_path / file[1]).write_text(text, encoding="utf-8")
            if [one for one in ("polars", "duckdb") if f"import {one}" in text and not importlib.util.find_spec(one)]:
                continue  # of the extra `test`
            exec(compile(text, f"{name} of the docs", "exec"), known)  # noqa: S102 - our own docs
    assert ran >= 15


def test_pages_that_are_run_elsewhere_are_named_there():
    for page, file in ELSEWHERE.items():
        assert f'"{page}"' in (DOCS.parent / file).read_text(encoding="utf-8")


def test_every_command_in_a_block_exists_with_its_options():
    """Also of blocks that aren't run."""
    commands = typer.main.get_command(cli.app).commands
    seen = 0
    for name, page in pages().items():
        for line in re.findall(
            r"^(?:    |)gradebench (?:\\\n|[^\n])*",
            re.sub(r"^\S.*?`gradebench.*$", "", page, flags=re.MULTILINE),
            re.MULTILINE,
        ):
            word, *rest = shlex.split(line.replace("\\\n", " ").strip(), comments=True)[1:]
            assert word in commands, f"{name}: {line}"
            known = {opt for one in commands[word].params for opt in (*one.opts, *one.secondary_opts)}
            given = {one.partition("=")[0] for one in rest if re.fullmatch(r"--?[a-z][\w-]*(=.*)?", one)}
            assert given <= known, f"{name}: {line}"
            seen += 1
    assert seen > 15


def test_messages_of_the_page_of_troubles_are_those_of_the_program():
    page = pages()["troubleshooting.md"]
    table = page.partition("| the line says")[2].partition("##")[0]
    code = "".join(path.read_text(encoding="utf-8") for path in (DOCS.parent / "gradebench").rglob("*.py"))
    code = re.sub(r'"\s*f?"', "", re.sub(r"\s+", " ", code))
    messages = re.findall(r"^\| `([^`]*)`", table, re.MULTILINE)
    assert len(messages) > 5
    assert [one for one in messages if one not in code] == []


@pytest.mark.parametrize("page", pages())
def test_pages_have_one_title(page):
    assert pages()[page].startswith("# ")
