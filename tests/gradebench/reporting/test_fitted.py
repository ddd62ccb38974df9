"""Tables that fit: names whole, the important columns first, plain text where the terminal is plain."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from gradebench.reporting import next_steps
from gradebench.reporting.console import PlainConsole
from gradebench.reporting.fitted import GAP, Shown, chosen, print_table

WORD = st.text("abcxyz-_:=.漢²±", min_size=1, max_size=30)


def printed(columns, width=80, encoding="utf-8", title="", **options):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    print_table(PlainConsole(file=stream, width=width, **options), title, columns)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@st.composite
def tables(draw):
    rows = draw(st.integers(1, 4))
    names = [f"{draw(WORD)}{number}" for number in range(rows)]
    others = st.lists(WORD | st.just("-"), min_size=rows, max_size=rows)
    made = [Shown(f"h{n}", draw(others), draw(st.integers(1, 5))) for n in range(draw(st.integers(0, 6)))]
    return [Shown("name", names, left=True), *made]


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(20, 120))
def test_names_stay_whole_and_no_line_is_wider(columns, width):
    lines = printed(columns, width).splitlines()
    names = columns[0].cells
    assert all(any(line.split("  ")[0].rstrip() == name for line in lines) for name in names)
    assert all(cell_len(line) <= width for line in lines if line not in names)


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(20, 120))
def test_a_column_is_left_out_only_where_there_is_no_room_beside_more_important_ones(columns, width):
    taken = chosen(columns, width)
    for column in columns[1:]:
        if set(column.cells) == {"-"}:
            assert column not in taken
        elif column not in taken:
            above = [one for one in taken if one.importance <= column.importance]
            assert sum(one.width + GAP for one in above) + column.width > width


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_signs_and_rules_are_those_that_the_encoding_has(encoding):
    columns = [Shown("name", ["rlo²"], left=True), Shown("bias²", ["0.5 ± 0.1"])]
    text = printed(columns, encoding=encoding)
    if encoding == "ascii":
        assert "bias^2" in text and "0.5 +- 0.1" in text and "rlo\\xb2" in text and "----" in text
    else:
        assert "bias²" in text and "0.5 ± 0.1" in text and "rlo²" in text
        assert ("─" in text) == (encoding == "utf-8")


@pytest.mark.parametrize("setting", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {}])
def test_plain_terminals_get_no_control_codes(monkeypatch, setting):
    for name in ("NO_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    text = printed([Shown("name", ["rloo"], left=True)], title="a title", force_terminal=True)
    assert ("\x1b" in text) == (not setting)


def test_prose_takes_the_room_that_is_left_and_is_broken_between_words():
    text = printed([Shown("name", ["rloo"], left=True), Shown("summary", ["word " * 30], prose=20)], width=60)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 60 and text.count("word") == 30 and "rloo  word word" in text
    assert sum("word" in line for line in lines) == 3


def test_a_command_that_is_too_long_is_broken_so_that_a_shell_reads_it():
    command = "gradebench run -e rloo -e 'a b:c=1' -t enumerable-lm --seeds 0-13 --out 'my results/x'"
    lines = next_steps.broken(command, 40)
    assert max(map(len, lines)) <= 40 and all(line.endswith(" \\") for line in lines[:-1])
    joined = " ".join(line.removesuffix("\\").strip() for line in lines)
    assert joined == command
