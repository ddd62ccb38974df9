"""Any name and any text: what is written reads back the same from every file, and is shown as what it is."""

import html.parser
import io
import json
import math
import re
import shlex
import xml.etree.ElementTree as ET

import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st

from gradebench.analysis import tables
from gradebench.core import options, schema
from gradebench.core.errors import InputError
from gradebench.core.shown import one_line, shown, utf8
from gradebench.experiment import repeat
from gradebench.reporting import charts, console, terminal_tables
from gradebench.reporting.report import write_report
from gradebench.storage import formats, records, shapes

FEW = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "phases": [Phase.explicit, Phase.generate],
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
# Unicode throughout, lone surrogates included, and what some reader or writer takes for something else.
AWKWARD = [
    *("NA", "null", "None", "nan", "NaN", "True", "1", "1e5", "-1", "inf", "", " ", "a b ", "=1+1", "'=1", "''+x", "'"),
    *(
        ":smile:",
        "[red]",
        "[/]",
        "[bold]x[/bold]",
        "a:b,c=d",
        '"',
        "a'b",
        "a,b",
        "a\nb",
        "a\r\nb",
        "a\rb",
        "\t",
        "\x00",
    ),
    *("\x1b[31mred", "\u2028", "\u2029", "\x85", "\ufeff", "\ufffe", "\u202egnp", "\ud800", "\udcff", "\ud83d\ude00"),
    *("<script>alert(1)</script>", "&amp;", "]]>", "$x$", "_x", "\\ud800", "é", "😀", "漢字", "x" * 300),
]
anything = st.one_of(st.sampled_from(AWKWARD), st.text(max_size=12), st.text(st.characters(), max_size=12))
rows = st.lists(
    st.tuples(anything, anything, st.one_of(st.none(), st.floats(-1e9, 1e9), st.just(math.nan))), min_size=1
)


def frame_of(rows):
    """The texts as they may be in a frame, which holds no surrogates."""
    columns = {"estimator": [utf8(a) for a, *_ in rows], "setting": [utf8(b) for _, b, _ in rows]}
    return pd.DataFrame(columns | {"value": [value for *_, value in rows]})


@settings(**FEW)
@given(rows)
@example([(text, text, 0.5) for text in AWKWARD])
def test_tables_read_back_the_same(tmp_path, rows):
    frame = frame_of(rows)
    formats.write_csv(frame, tmp_path / "table.csv")
    formats.write_parquet(frame, tmp_path / "table.parquet")
    records._write_rows(frame, tmp_path / "table.arrow")
    for back in (
        formats.read_csv(tmp_path / "table.csv", ["value"]),
        formats.read_parquet(tmp_path / "table.parquet"),
        records.merged([tmp_path / "table.arrow"], "", []),
    ):
        assert back["estimator"].tolist() == frame["estimator"].tolist()
        assert back["setting"].tolist() == frame["setting"].tolist()
        assert back["value"].astype(float).tolist() == pytest.approx(frame["value"].astype(float).tolist(), nan_ok=True)


@settings(**FEW)
@given(st.lists(st.dictionaries(anything, anything, max_size=3), max_size=4))
@example([{"text": text} for text in AWKWARD] + [{text: 1} for text in AWKWARD])
def test_json_and_its_lines_read_back_the_same(tmp_path, rows):
    meant = [{utf8(key): utf8(one) if isinstance(one, str) else one for key, one in row.items()} for row in rows]
    assume([len(row) for row in rows] == [len(row) for row in meant])  # two keys may have one escape
    formats.write_lines(tmp_path / "rows.jsonl", rows)
    assert formats.read_lines(tmp_path / "rows.jsonl") == meant
    formats.write_json(tmp_path / "rows.json", {"rows": rows})
    assert formats.read_json(tmp_path / "rows.json") == {"rows": meant}
    json.loads((tmp_path / "rows.json").read_bytes().decode())  # of any other reader too


def run_of(folder, names, task, setting, text):
    """A run of two estimators and three seeds, as the harness would write it, with texts."""
    folder.mkdir(exist_ok=True)
    made, samples = [], []
    for place, name in enumerate(names):
        for seed in range(3):
            identity = records.Identity("run", f"c{place}{seed}", task, setting, name, "{}", "here", seed)
            record = records.CellRecord(identity)
            for step in (0, 4):
                record.add(
                    "evaluation", "test", step, {"objective": 0.1 * place + 0.01 * seed, "reward": 0.5, "kl": 0.1}
                )
                record.add_samples("test", step, [{"prompt": "p", "text": text, "reward": 0.5}])
            made.append(record.frame("ok"))
            samples += record.samples
    metrics = pd.concat(made, ignore_index=True)
    formats.write_parquet(metrics, folder / "metrics.parquet")
    formats.write_lines(folder / "samples.jsonl", samples)
    spelled = {"spec": names[0], "seeds": [0]}
    config = {
        "cells": [], "request": {}, "tasks": {task: {"options": {}}}, "learning_rates": {task: {names[0]: 0.1}},
        "facts": {"tasks": {task: {"steps": 4}}, "estimators": {task: {names[0]: {}}}},
        "given": {"tasks": {task: task}, "estimators": {task: {names[0]: spelled}}},
    }  # fmt: skip
    formats.write_json(folder / "config.json", config)
    return metrics


class Words(html.parser.HTMLParser):
    """What a browser shows, and the elements of the page."""

    def __init__(self):
        super().__init__()
        self.said, self.elements = "", set()

    def handle_data(self, data):
        self.said += data

    def handle_starttag(self, tag, attributes):
        self.elements.add(tag)


of_estimators = anything.filter(lambda name: name.strip() and ":" not in name and not name.endswith(tables.CONTROL))


@settings(max_examples=10, **FEW)  # of up to a dozen names each
@given(st.lists(of_estimators, min_size=2, max_size=12, unique_by=utf8), anything, anything, anything)
@example(["NA", "[red]"], "null", ":smile:", "\u2028\x00\ud800<script>")
@example(["\x1b[31m", "<script>"], "a,b\nc", "=1", "\r]]>")
def test_a_run_of_any_names_is_ranked_shown_and_reported(tmp_path, names, task, setting, text):
    metrics = run_of(tmp_path, names, task, setting, text)
    tests = tables.comparisons(metrics)
    board = tables.leaderboard(metrics, tests)
    assert set(board["estimator"]) == {utf8(name) for name in names} and set(board["n_seeds"]) == {3}
    formats.write_csv(board, tmp_path / "leaderboard.csv")
    back = formats.read_csv(tmp_path / "leaderboard.csv", ["rank"])
    for column in ("estimator", "task", "setting", "rank"):
        assert back[column].tolist() == board[column].tolist()
    source = write_report([tmp_path])[0].read_text(encoding="utf-8")
    page = Words()
    page.feed(source)
    for word in (*names, task, setting, text):
        assert " ".join(shown(utf8(word)).split()) in " ".join(page.said.split())
    assert source.count("<script") == 1  # ours
    for picture in re.findall("<svg.*?</svg>", source, re.DOTALL):
        ET.fromstring(picture)


@settings(**FEW)
@given(anything, st.sampled_from(["ascii", "latin-1", "cp1252", "utf-8", "utf-16"]), st.integers(20, 300))
@example("[red]:smile:\x1b[31m\n", "utf-8", 100)
@example("漢字²", "ascii", 20)
def test_the_terminal_shows_names_as_they_are_in_any_encoding_and_width(name, encoding, width):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    shown_on = console.PlainConsole(file=stream, width=width, force_terminal=False)
    row = {"estimator": utf8(name), "task": utf8(name), "setting": "s", "rank": 1, "steps": 4, "status": "ok"}
    row |= {"ranked_by": "objective", "test_objective_mean": 0.5, "gradient_bias_squared": 0.25}
    board = pd.DataFrame([row], columns=schema.LEADERBOARD_COLUMNS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(terminal_tables, "stdout_console", lambda: shown_on)
        terminal_tables.print_leaderboard(board)
        shown_on.print(name)
    stream.flush()
    said = stream.buffer.getvalue().decode(encoding)
    fitting = one_line(name).encode(encoding, "backslashreplace").decode(encoding)
    assert "".join(fitting.split()) in "".join(said.split())
    assert not {"\x1b", "\u2028", "\x00", "\r"} & set(said)


@settings(**FEW)
@given(anything, st.integers(2, 9))
def test_labels_go_back_into_commands(value, n):
    def factory(*, text: str = "x", n: int = 4): ...

    spec = f"name:text={value},n={n}"
    try:
        params = options.bind(factory, options.parse_spec(spec).options, "it")
    except InputError as error:
        assert "," in value or not value.strip() or utf8(value) != value, error
        return
    label = options.label("name", params, factory)
    assert options.bind(factory, options.parse_spec(label).options, "it") == params
    config = {
        "facts": {"tasks": {"t": {}}},
        "given": {"tasks": {"t": "t"}, "estimators": {"t": {label: {"spec": label, "seeds": [0]}}}},
    }
    words = shlex.split(repeat.commands_of(config)[0])
    assert words[words.index("-e") + 1] == label


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"cells": 3}, "cells is a whole number, not a list"),
        ({"cells": [3]}, "cells[0] is a whole number, not text"),
        ({"learning_rates": {"t": {"a": "x"}}}, "learning_rates.t.a is text, not a number"),
        ({"design": {"t": {}}}, "design.t lacks task"),
        ({"seeds": [True]}, "seeds[0] is true or false, not a whole number"),
        ([], "it is a list, not an object"),
        ({"request": {"against": None, "tasks": ["t"]}, "more": 1}, ""),
    ],
)
def test_the_first_thing_that_misfits_is_named(document, said):
    assert shapes.misfit(document, shapes.CONFIG) == said


def test_a_picture_of_any_name_is_well_formed():
    for name in AWKWARD:
        ET.fromstring(
            charts.scatter({name: ((1.0, 0.5, 1.5), (2.0, 1.0, 3.0)), "b": ((2.0, 1.0, 3.0),) * 2}, name, name)
        )
