"""The report of a run: whole, escaped, offline, and every figure with its numbers.

Long because one file tests one module.
"""

import base64
import functools
import hashlib
import itertools
import json
import math
import re
import shlex
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from gradebench.analysis import tables
from gradebench.core import schema
from gradebench.experiment import repeat
from gradebench.reporting import families, figures, pictures, report, sections, svg, wording
from gradebench.storage.tuned import CURVES_COLUMNS


class Page(HTMLParser):
    """Elements that were opened and not closed are an error, but those that HTML leaves open."""

    VOID = frozenset({"meta", "br", "line", "circle", "polyline", "polygon", "input"})

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.attributes, self.words = [], [], [], []
        self.feed(text)
        assert not self.open

    @property
    def pictures(self):
        """The figures' drawings, without the signs of estimators."""
        return [value for name, value in self.attributes if (name, value) == ("role", "img")]

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def text_of(run):
    return report.write_report([run])[0].read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(written):
    """The report of that run as it is, for those that look at it alone."""
    return written.read_text(encoding="utf-8")


def test_the_command_writes_a_whole_page(command, run):
    status, out, _ = command("report", run)
    assert status == 0 and out.strip() == str(run / "report.html")
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert (
        len(page.pictures) == 10
    )  # intervals, pairs, curves, reward and norm by step, four pairs of quantities, equal KL
    assert page.seen.count("figure") == page.seen.count("figcaption") == 10
    assert text.count("<summary>the numbers</summary>") == 10
    assert len(text) < 3e6


def test_nothing_from_the_run_is_markup(text, nasty):
    page = Page(text)
    assert not {"i", "u", "b"} & set(page.seen) and page.seen.count("script") == 1  # ours
    assert any(nasty in word for word in page.words)
    assert any("corpus=<i>" in word for word in page.words)


def hostile_page():
    """Everything that the template is filled with, each text hostile and with a number of its own; and all those texts."""
    texts = []

    def hostile():
        texts.append(f"</td></style></script><b onload=alert(1)>&amp;{{{{ 1234*5 }}}}\x1b'\" {len(texts)}.")
        return texts[-1]

    def table():
        columns = [sections.Column(hostile(), "x"), sections.Column(hostile(), "y", prose=True)]
        numbers = [{"value": "1", "low": "0", "high": "2"}, {"value": "3"}]
        rows = [sections.Row([hostile(), hostile()], tier, hostile(), numbers) for tier in (False, True)]
        return sections.Table(columns, rows, ["", "extra"])

    def figure():
        return {name: hostile() for name in ("name", "title", "caption")} | {
            "picture": svg.of(hostile(), hostile(), []),
            "numbers": table(),
        }

    budgets = {"metric": hostile(), "same": [hostile(), hostile()], "leaders": table(), "crossings": table()}
    budgets |= {"all_crossings": table()}
    names = ("name", "verdict", "ranked_at", "ranking")
    task = {name: hostile() for name in names} | {"board": table(), "figures": [figure()], "lead": [figure()]}
    task |= {"ranked": True, "notices": [hostile()], "front": [hostile(), hostile()], "no_figures": [hostile()]}
    task |= {"facts": {hostile(): hostile()}, "said": [hostile()], "probe": False}
    task |= {"sizes": {"sentence": hostile(), "leads": table(), "note": hostile()}}
    task |= {"legend": [{"name": hostile(), "style": "f0", "shape": "M0 0z"}]}
    task |= {"samples": {"steps": 40, "seed": 0, "texts": table()}, "budgets": budgets | {"figures": [figure()]}}
    instances = {"task": hostile(), "count": 3, "metric": hostile(), "board": table(), "pairs": table()}
    frontiers = {name: hostile() for name in ("task", "metric", "setting")}
    frontiers |= {"figure": figure(), "leaders": [hostile()], "areas": table()}
    origin = {"name": hostile(), "commands": [hostile()], "failures": table()}
    origin |= {"facts": [(hostile(), {hostile(): hostile(), hostile(): {hostile(): 1}})]}
    return {
        "title": hostile(),
        "ran": {hostile(): hostile()},
        "instances": [instances],
        "frontiers": [frontiers],
        "tasks": [
            task | {"against": []},
            task | {"against": [hostile(), hostile()]},
            task | {"probe": True, "against": []},
        ],
        "together": {"figures": [figure()], "ranks": hostile()},
        "claims": {"judged": table(), "untested": {hostile(): hostile()}},
        "cards": {hostile(): {hostile(): hostile()}},
        "origins": [origin],
        "left_out": [hostile()],
    }, texts


def test_hostile_text_in_every_field_of_the_report_stays_text():
    """A field that the template shows and that isn't filled here fails, since none may be undefined."""
    fields, texts = hostile_page()
    page = Page(report.rendered(**fields, letters=wording.LETTERS))
    words = "".join([*page.words, *(value for _, value in page.attributes)])
    # A dictionary among the values is shown as Python writes it, with its own escapes.
    lost = [text for text in texts if text.replace("\x1b", "\\x1b") not in words and repr(text) not in words]
    assert len(texts) > 100 and lost == []
    assert "b" not in page.seen and page.seen.count("script") == 1 and page.seen.count("style") == 2  # ours
    known = {"lang", "charset", "name", "http-equiv", "content", "class", "scope", "tabindex", "id", "type", "title"}
    known |= {"viewbox", "aria-hidden", "d"} | {
        f"data-{name}" for name in ("column", "estimator", "family", "value", "low", "high", "name")
    }
    assert {name for name, _ in page.attributes} <= known
    assert "6170" not in words and "\x1b" not in words


def test_nothing_is_fetched(text):
    page = Page(text)
    assert not {"link", "img", "iframe", "object", "form", "base"} & set(page.seen)
    policy = next(value for _, value in page.attributes if value and value.startswith("default-src 'none'"))
    ours = re.findall(r"<(?:script|style)[^>]*>(.*?)</(?:script|style)>", text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in ours]
    assert len(ours) == 3 and all(f"'sha256-{digest}'" in policy for digest in digests)
    assert "unsafe" not in policy and policy.count("sha256-") == 3
    assert not {"src", "href", "onload", "onclick"} & {name for name, _ in page.attributes}
    assert "url(" not in text and "@import" not in text


def test_every_figure_has_words_for_those_who_do_not_see_it(text):
    page = Page(text)
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert len(labels) == len(page.pictures) == 10 and all("ppo" in label for label in labels)
    # at equal divergence rloo has no curve: it moves nowhere in this run
    assert sum("rloo" in label for label in labels) == 9
    assert [value for name, value in page.attributes if name == "role"] == ["img"] * len(labels)


def test_the_report_says_how_to_repeat_it_and_what_was_skipped(text):
    words = " ".join(Page(text).words)
    assert "gradebench run -e all -e" in words and "-t imdb --steps 40 --seeds 0-7" in words
    assert "skipped" in words and "2.13.0<" in words


def test_the_command_of_a_probe_and_of_a_control_is_one_that_can_be_given(command, tiny):
    request = {"estimators": ["rloo"], "tasks": [tiny()], "seeds": "3", "steps": 2, "draws": 8, "checkpoints": 1}
    words = shlex.split(repeat._of_request(request | {"train": False, "along": "own"}))
    assert words[:2] == ["gradebench", "probe"] and words[-2:] == ["--seed", "3"]
    assert {"--draws", "--checkpoints", "--along"} <= set(words) and "--seeds" not in words
    words = shlex.split(repeat._of_request(request | {"train": True, "control": True}))
    status, _, err = command(*words[1:], "--dry-run")
    assert status == 0, err
    assert "--aa-test" in words and "--draws" not in words


def test_a_tier_begins_under_a_rule_also_after_one_that_has_no_rank(run):
    """An estimator between two tiers whose learning rate keeps it out of both."""
    frame = pd.DataFrame({"estimator": list("abcd"), "tier": pd.array([1, pd.NA, 1, 2], dtype="Int64")})
    rows = sections.table(frame, [sections.Column("estimator", "estimator")], tiers=True).rows
    assert [row.new_tier for row in rows] == [False, False, False, True]


def test_claims_and_cards_are_in_it(text):
    words = " ".join(Page(text).words)
    assert "RLOO ends with a higher reward than PPO" in words and "contradicted" in words
    assert "Kool et al. 2019" in words


@pytest.mark.parametrize(
    ("p", "letters", "said"),
    [
        ([0.01, 0.01], "abb", "a is highest at 40 steps, by objective: significantly above each other"),
        (
            [0.2, 0.01],
            "aab",
            "a is highest at 40 steps, by objective; not significantly different from it, with 8 seeds: b.",
        ),
        (
            [0.2, 0.2],
            "aaa",
            "No two of the 3 estimators are significantly different at 40 steps, by objective, with 8 seeds.",
        ),
        ([], "", "No estimator has a test reward"),
    ],
)
def test_the_verdict_names_what_is_not_different_from_the_first(p, letters, said):
    board = pd.DataFrame({"estimator": list("abc")[: len(letters)], "letters": list(letters), "n_seeds": 8})
    board = board.assign(
        p_vs_best_holm=[math.nan, *p][: len(letters)], same_as="", steps=40, ranked_by="objective", tier=1
    )
    assert said in wording.verdict(board)


def test_the_verdict_against_a_baseline_groups_the_others():
    words = ["above b; not significantly different from c", "", "", "below b; below c"]
    board = pd.DataFrame({"estimator": list("abcd"), "verdict": words, "n_seeds": 8, "steps": 40})
    said = wording.verdict(board.assign(same_as="", ranked_by="reward"), ["b", "c"])
    assert said == (
        "At 40 steps, by reward, with 8 seeds: above b: a; below b: d; below c: d; not significantly different from c: a."
    )


def test_a_run_of_one_seed_has_a_report(run):
    frame = pd.read_parquet(run / "metrics.parquet")
    tables.write_parquet(frame[frame["seed"] == 0], run / "metrics.parquet")
    Page(text_of(run))


def test_a_run_without_any_reward_has_a_report(run):
    frame = pd.read_parquet(run / "metrics.parquet")
    tables.write_parquet(frame[frame["status"] == "skipped"], run / "metrics.parquet")
    assert "No estimator has a test reward" in text_of(run)


def test_a_folder_without_a_run_is_one_line(command, tmp_path):
    status, _, err = command("report", tmp_path)
    assert status == 2 and len(err.splitlines()) == 1


# --- figures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 1e5), (0.501, 0.502), (5.0, 5.0), (1e-9, 2e-9)])
def test_ticks_are_round_and_within(low, high):
    axis = svg.Axis.over([low, high], 0, 100)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 7
    assert all(axis.low <= tick <= axis.high for tick in ticks)
    assert all(float(f"{tick:.4g}") == pytest.approx(tick, rel=1e-6, abs=1e-12 * high) for tick in ticks)
    assert axis.at(low) < axis.at(high) or low == high


@pytest.mark.parametrize(("low", "high"), [(1e-6, 1e6), (2.0, 3.0), (1.0, 10.0)])
def test_logarithmic_ticks_are_powers_of_ten_where_there_are_two(low, high):
    axis = svg.Axis.over([low, high], 0, 100, logarithmic=True)
    ticks = axis.ticks()
    assert len(ticks) >= 2
    assert all(math.log10(tick) >= axis.low - 1e-9 and math.log10(tick) <= axis.high + 1e-9 for tick in ticks)


def test_marks_stay_inside_the_figure(text):
    for place in ('cx="', 'x1="', 'x2="', 'transform="translate\\('):
        found = [float(x) for x in re.findall(rf"{place}([-0-9.]+)", text)]
        assert found and min(found) >= 0 and max(found) <= svg.WIDTH


def test_figures_come_as_files_of_their_own(command, run, monkeypatch):
    monkeypatch.setattr(pictures, "no_png", lambda: "none here")
    status, out, _ = command("report", run, "--plots")
    assert status == 0
    files = [line for line in out.splitlines() if line.endswith(".svg")]
    assert len(files) == 10 and sorted(files) == [str(path) for path in sorted((run / "plots").glob("*.svg"))]
    for file in files:
        root = ElementTree.parse(file).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "--ink" in root[0].text and root.get("aria-label")


def test_figures_come_as_png_too(run):
    """In full size, and with ink: a font that isn't found would leave the labels out without a word."""
    pytest.importorskip("resvg_py")
    image = pytest.importorskip("PIL.Image")
    written = [path for path in report.write_report([run], plots=True) if path.suffix == ".png"]
    assert len(written) == 10
    for path in written:
        picture = image.open(path).convert("RGB")
        assert picture.width == pictures.ZOOM * svg.WIDTH
        colours = {colour for _, colour in picture.getcolors(1 << 24)}
        assert {(255, 255, 255), tuple(bytes.fromhex(svg.LIGHT["ink"][1:]))} <= colours  # only words are in ink


def test_without_a_font_there_are_svg_alone_and_one_line(command, run, monkeypatch):
    """The converter would leave all letters out, as it does here where it doesn't look for the machine's fonts."""
    converter = pytest.importorskip("resvg_py")
    fontless = functools.partial(converter.svg_to_bytes, skip_system_fonts=True)
    monkeypatch.setattr(converter, "svg_to_bytes", fontless)
    pictures._has_font.cache_clear()
    status, out, err = command("report", run, "--plots")
    pictures._has_font.cache_clear()
    assert status == 0 and out.count(".svg") == 10 and ".png" not in out
    assert err.splitlines() == ["no PNG beside the SVG: no font is installed; install one, such as DejaVu Sans"]


def test_without_the_extra_there_are_svg_alone_and_one_line(command, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    status, out, err = command("report", run, "--plots")
    assert status == 0 and out.count(".svg") == 10 and ".png" not in out
    assert err.splitlines() == ["no PNG beside the SVG: pip install 'gradebench[plots]' for them"]


def curves_of(path):
    """Sensitivity curves as `gradebench tune` leaves them, of two estimators, with one trial lost."""
    rows = [
        {"task": "imdb:kl=0.1", "setting": "corpus=<i>", "estimator": name, "learning_rate": rate, "options": ""}
        | {"objective": 0.5 + 10 * rate, "standard_error": 0.01, "seeds": 2, "status": "ok", "chosen": rate == 0.003}
        | {"steps": 40, "fit": 0.5 + 10 * rate, "fit_error": 0.01, "tied": rate > 0.0003}
        for name in ("rloo", "ppo")
        for rate in (0.0003, 0.001, 0.003)
    ]
    rows[0] |= {"objective": math.nan, "status": "diverged"}
    tables.write_csv(pd.DataFrame(rows)[CURVES_COLUMNS], path / "curves.csv")


def test_sensitivity_to_the_learning_rate_is_a_figure_where_it_was_tuned(run, text):
    assert "No figure of sensitivity to the learning rate" in text
    curves_of(run)
    text = text_of(run)
    assert "No figure of sensitivity" not in text
    assert "the chosen rate has a ring" in text and "Trials that didn&#39;t finish, of rloo" in text
    assert text.count('<circle class="ring"') == 2  # the chosen ones


def test_probes_of_another_folder_give_the_scaling_of_variance(command, run, tmp_path):
    folder = tmp_path / "probes"
    folder.mkdir()
    frame = pd.read_parquet(run / "metrics.parquet").query("phase == 'probe'")
    tables.write_parquet(frame, folder / "metrics.parquet")
    (folder / "config.json").write_text(json.dumps({"cells": [], "request": {"train": False}}))
    rows = [
        {"task": "imdb:a=b", "setting": "corpus=<i>", "estimator": name, "step": step, "samples": n, "group": ""}
        | {"metric": "gradient_variance_by_batch", "value": 8 / n, "ci_low": 4 / n, "ci_high": 16 / n}
        for name in ("rloo", "ppo")
        for step in (0, 40)
        for n in (8, 16, 32)
    ]
    tables.write_csv(pd.DataFrame(rows).reindex(columns=schema.PROBES_COLUMNS), folder / "probes.csv")
    status, out, err = command("report", run, folder)
    assert (status, out) == (2, "") and "--out" in err
    status, _, err = command("report", run, folder, "--out", tmp_path / "both")
    assert status == 0, err
    text = (tmp_path / "both" / "report.html").read_text()
    assert "variance by sequences per gradient. ppo: 1 at 8, 0.5 at 16, 0.25 at 32; rloo" in text
    assert "How probes was made" in text and text.count("<h2>imdb</h2>") == 1


def test_the_bias_of_the_leaderboard_has_a_band_for_what_is_not_significant(run):
    """rloo's bias is made to lie about 0, over seeds; the others' stays as it is, from 1 on."""
    frame = pd.read_parquet(run / "metrics.parquet")
    mine = (frame["metric"] == "gradient_bias_squared") & (frame["estimator"] == "rloo")
    frame.loc[mine, "value"] = [1.0, -1.0] * (mine.sum() // 2)
    tables.write_parquet(frame, run / "metrics.parquet")
    text = text_of(run)
    label = next(value for name, value in Page(text).attributes if name == "aria-label" and "logarithmic axes" in value)
    assert re.search(r"rloo [\d.]+, not significantly different from 0", label)
    assert re.search(r"ppo [\d.]+, [\d.]+; ", label)
    assert text.count('<rect class="ground" x="62') == 1 and text.count('<path class="hollow f0"') == 1


def test_training_steps_are_drawn_as_means_of_windows_with_their_numbers(text, nasty):
    """90 steps in windows of three. Seeds of ppo are the cells 8 to 15, whose norms are 1, 2, 4 and 8 twice."""
    rows = re.search(r'<figure data-name="training-gradient-norm">.*?</figure>', text, re.DOTALL)[0]
    table = re.findall(r"<tr>\s*<td>ppo</td><td>([^<]*)</td><td>([^<]*)</td>", rows)
    assert [float(step) for step, _ in table] == [3 * window + 1 for window in range(30)]
    assert all(float(mean) == pytest.approx(8**0.5, rel=1e-4) for _, mean in table)
    assert (
        "geometric mean over seeds. With 95 % bands over seeds, for the 3 highest estimators. Each point is the mean of 3 steps."
        in rows
    )
    picture = rows[rows.index("<svg") : rows.index("</svg>")]
    assert picture.count("<polyline") == 3 and 'class="dot' not in picture  # so many points aren't marked
    said = re.search(r"<title>(ppo: gradient norm [^<]*)</title>", picture)[1]
    assert 4 < said.count(" at ") <= 8
    reward = re.search(r'<figure data-name="training-reward">.*?</figure>', text, re.DOTALL)[0]
    table = dict(re.findall(r"<tr>\s*<td>rloo</td><td>([^<]*)</td><td>([^<]*)</td>", reward))
    means = [0.001 * (seed % 3) for seed in range(8)]
    assert float(table["88"]) == pytest.approx(0.4 + 88 * sum(means) / 8, rel=1e-5)


def test_a_bad_table_of_training_steps_is_left_out_and_said_so(run, capsys):
    (run / "training.parquet").write_bytes(b"nothing")
    text = text_of(run)
    assert "training-reward" not in text and "training.parquet can't be read" in capsys.readouterr().err
    (run / "training.parquet").unlink()
    assert "training-reward" not in text_of(run) and capsys.readouterr().err == ""


def test_pairs_are_differences_of_each_seed_with_their_numbers(text, nasty):
    """Seeds share their luck here, so the differences of an estimator to the best are all the same number."""
    page = Page(text)
    label = next(value for name, value in page.attributes if name == "aria-label" and "minus that of" in value)
    assert label.startswith(f"test reward of {nasty} minus that of: ppo 0.4, rloo 0.8")
    assert "seed 7" in page.words


def test_several_tasks_have_profiles_and_say_why_there_are_no_ranks(run, monkeypatch):
    monkeypatch.setattr(pictures, "no_png", lambda: "none here")
    frame = pd.read_parquet(run / "metrics.parquet")
    other = frame.assign(task="toy", cell_id="toy-" + frame["cell_id"])
    tables.write_parquet(pd.concat([frame, other]), run / "metrics.parquet")
    files = [path.stem for path in report.write_report([run], plots=True) if path.suffix == ".svg"]
    assert {"interquartile-mean", "performance-profiles"} <= set(files)
    assert len(files) == len(set(files)) == 20 and "test-reward-toy_corpus=_i_" in files
    text = (run / "report.html").read_text()
    assert "No critical-difference diagram: 2 tasks are too few to compare ranks" in text


def test_a_page_has_sections_of_so_many_tasks_and_says_of_how_many_not(run, monkeypatch, capsys):
    monkeypatch.setattr(report, "SECTIONS", 1)
    frame = pd.read_parquet(run / "metrics.parquet")
    other = frame.assign(task="toy", cell_id="toy-" + frame["cell_id"])
    tables.write_parquet(pd.concat([frame, other]), run / "metrics.parquet")
    report.write_report([run])
    text = (run / "report.html").read_text()
    assert "1 of 2 tasks and settings" in text and "1 of 2 tasks and settings" in capsys.readouterr().err
    assert "<h2>toy</h2>" not in text


def test_ten_tasks_have_a_critical_difference(run):
    frame = pd.read_parquet(run / "metrics.parquet")
    many = [frame.assign(task=f"t{i}", cell_id=f"{i}-" + frame["cell_id"]) for i in range(10)]
    found = figures.of_tasks(pd.concat(many))
    assert [figure.name for figure in found][2:] == ["critical-difference"]
    assert found[2].data["mean_rank"].tolist() == [1, 2, 3]


def test_samples_stand_side_by_side_and_are_escaped(run):
    rows = [
        {"task": "imdb", "setting": "corpus=<i>", "estimator": name, "seed": seed, "split": split, "step": step}
        | {"number": 0, "prompt": "a film", "text": f"a film <script>{name} {seed} {step}", "reward": 0.25}
        for name in ("rloo", "ppo")
        for seed in (0, 1)
        for split in ("train", "test")
        for step in (0, 40)
    ]
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Page(text_of(run))
    words = " ".join(page.words)
    assert page.seen.count("script") == 1  # ours
    for shown in ("<script>rloo 0 40 (0.25)", "<script>ppo 0 40 (0.25)", "0 0 (0.25)", "before training"):
        assert shown in words
    assert "rloo 1 40" not in words  # one seed


def channels_of(colour):
    """Its red, green and blue as they add up."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels])


def luminance(colour):
    return float(channels_of(colour) @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_words_and_marks_have_the_contrast_that_the_guidelines_ask_for(theme):
    """WCAG 2.1 level AA: words 4.5 to 1 against the page and its wash; marks of figures, which are no words, 3 to 1."""
    colours = dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", svg.style().split("@media")[theme]))
    marks = [f"f{i}" for i in range(len(families.FAMILIES))]
    assert len(marks) == 8 and {"ink", "faint", "page", "wash", *marks} <= set(colours)
    for ground in ("page", "wash"):
        assert min(contrast(colours[name], colours[ground]) for name in ("ink", "faint")) >= 4.5
    assert min(contrast(colours[name], colours["page"]) for name in marks) >= 3
    assert not re.search(r"text\.f\d", svg.style())


# Machado, Oliveira and Fernandes 2009: what is seen without the cones of one kind, of linear RGB.
SIGHT = {
    "full": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(linear):
    xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]] @ np.clip(linear, 0, 1)
    f = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("colours", [families.LIGHT, families.DARK], ids=["light", "dark"])
def test_families_are_told_apart_by_colour_with_any_sight_and_by_shape(colours, sight):
    """A distance of 15 in CIELAB is seen at a glance; 2.3 is just noticeable."""
    seen = {name: lab(np.array(SIGHT[sight]) @ channels_of(colour)) for name, colour in colours.items()}
    near = [(np.linalg.norm(seen[a] - seen[b]), a, b) for a, b in itertools.combinations(seen, 2)]
    assert min(near)[0] > 15, min(near)
    assert len(set(families.SHAPES.values())) == len(families.SHAPES) == len(colours)


def test_an_estimator_has_the_colour_of_its_family_in_all_figures_and_one_unknown_that_of_others(run, nasty):
    page = text_of(run)
    assert families.family_of("grade:tau=0.5") == families.family_of("gapped-st") == "relaxed path"
    assert families.family_of(nasty) == families.family_of("no such") == families.OTHER
    groups = re.findall(r'<g data-estimator="ppo" data-family="([^"]+)">(.*?)</g>', page, re.DOTALL)
    assert len(groups) == 10 and {family for family, _ in groups} == {"actor-critic"}
    assert {colour for _, parts in groups for colour in re.findall(r'class="[a-z ]*(f\d)', parts)} == {"f4"}


def test_the_lines_of_one_family_have_different_dashes():
    found = families.dashes(["st", "rloo", "gapped-st", "grade", "reinforce"])
    assert found == {"st": "d0", "rloo": "d0", "gapped-st": "d1", "grade": "d2", "reinforce": "d1"}
    assert ".d1 {" in svg.style() and ".d0 {" not in svg.style()
