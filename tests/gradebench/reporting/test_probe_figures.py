"""The figures of probes: what is drawn of what was measured, and the same bytes for the same table."""

import math
import re
from xml.etree import ElementTree

import pandas as pd
import pytest

from gradebench.core.schema import PROBES_COLUMNS
from gradebench.reporting import pictures, probe_figures, svg

# estimator -> relative variance and relative squared bias, each with its interval
TABLE = {
    "exact": [(0.02, 0.01, 0.04), (0.004, -0.003, 0.012)],
    "grade:tau=0.5": [(1.0, 0.7, 1.4), (0.04, 0.02, 0.06)],
    "ppo": [(3.9, 3.0, 5.1), (7000.0, 6000.0, 8000.0)],
    "rloo": [(0.5, 0.4, 0.6), (-0.02, -0.03, -0.01)],
}
GONE = (math.nan, math.nan, math.nan)


def rows_of(estimator, metric, interval, **other):
    row = dict.fromkeys(PROBES_COLUMNS, "") | {
        "task": "toy", "setting": "size=4", "estimator": estimator, "seed": 0, "along": "reference", "step": 0,
        "samples": 16, "draws": 500, "metric": metric,
    }  # fmt: skip
    return row | dict(zip(("value", "ci_low", "ci_high"), interval, strict=True)) | other


def table(change=None, steps=(0, 100, 200), **other):
    """Probes of TABLE at some checkpoints, `change` being (estimator, step) -> other intervals."""
    rows = []
    for estimator, usual in TABLE.items():
        for step in steps:
            variance, bias = (change or {}).get((estimator, step), usual)
            rows.append(rows_of(estimator, "gradient_variance_relative", variance, step=step, **other))
            rows.append(rows_of(estimator, "gradient_bias_relative", bias, step=step, **other))
        for batch in (4, 8, 16):
            ends = (4 / batch, 3 / batch, 5 / batch)
            rows.append(rows_of(estimator, "gradient_variance_by_batch", ends, samples=batch, draws=125, **other))
        rows.append(rows_of(estimator, "gradient_variance_slope", (-1.0, -1.25, -0.75), draws=125, **other))
    return pd.DataFrame(rows, columns=PROBES_COLUMNS)


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """The files that are written of a table of probes, by name."""
    monkeypatch.setattr(pictures, "no_png", lambda: "none here")

    def of(probes, folder="plots"):
        written = probe_figures.write_figures(probes, tmp_path / folder)
        return {path.name: path.read_text(encoding="utf-8") for path in written}

    return of


def elements(picture, kind):
    root = ElementTree.fromstring(picture)
    return [node for node in root.iter() if node.tag.rpartition("}")[2] == kind]


def words(picture):
    return " ".join("".join(node.itertext()) for node in elements(picture, "text"))


def bias_of(probes):
    """The figure of bias against variance of a table of probes."""
    (figure, *_), _ = probe_figures.of_probes(probes)
    return figure


def marks(picture, kind):
    """The places of the marks, full ("dot") or hollow."""
    paths = [node for node in elements(picture, "path") if node.get("class").startswith(kind)]
    return [tuple(map(float, re.findall(r"-?[\d.]+", node.get("transform"))[:2])) for node in paths]


def test_both_figures_are_xml_with_every_estimator_as_text(draw):
    drawn = draw(table())
    assert list(drawn) == ["variance-bias-toy.svg", "variance-batch-toy.svg"]
    for picture in drawn.values():
        assert all(name in words(picture) for name in TABLE)
        assert "toy [size=4]: " in words(picture)
        assert all(name in ElementTree.fromstring(picture).get("aria-label") for name in TABLE)
    assert "500 draws of batch 16" in words(drawn["variance-bias-toy.svg"])
    assert "-1.00 [-1.25, -0.75]" in words(drawn["variance-batch-toy.svg"])


def test_the_same_table_gives_the_same_bytes_whatever_its_order(draw):
    first = draw(table())
    assert draw(table().sample(frac=1, random_state=0), "again") == first


def test_a_bias_that_is_not_significant_is_hollow_and_in_the_band():
    picture = bias_of(table()).picture
    bands = elements(picture, "rect")
    assert len(bands) == 2
    floors = [float(band.get("y")) for band in bands]
    bottoms = [float(band.get("y")) + float(band.get("height")) for band in bands]
    hollow, full = marks(picture, "hollow"), marks(picture, "dot")
    assert len(hollow) == len(full) == 4  # exact and rloo, grade and ppo, at two checkpoints
    assert all(any(top < y < end for top, end in zip(floors, bottoms, strict=True)) for _, y in hollow)
    assert not any(top < y < end for top, end in zip(floors, bottoms, strict=True) for _, y in full)
    label = ElementTree.fromstring(picture).get("aria-label")
    for name in ("exact", "rloo"):
        assert len(re.findall(rf"{name} [\d.]+, not significantly different from 0", label)) == 2
    assert "ppo 3.9, 7e+03" in label and "grade:tau=0.5 1, 0.04" in label


def test_without_any_bias_that_is_not_significant_there_is_no_band():
    probes = table()
    assert elements(bias_of(probes[probes["estimator"].isin(["ppo", "grade:tau=0.5"])]).picture, "rect") == []


def test_all_marks_stay_inside_the_figure_off_the_usual_scale_too():
    extreme = {
        ("ppo", 0): [(1e9, 1e-12, 1e15), (1e8, 1.0, 1e30)],
        ("exact", 0): [(1e-9, 1e-11, 1e-7), (0.0, -9.0, 1e-20)],
    }
    picture = bias_of(table(extreme)).picture
    height = float(re.findall(r'viewBox="0 0 \d+ (\d+)"', picture)[0])
    places = [*marks(picture, "dot"), *marks(picture, "hollow")]
    for kind, names in (("line", ("x1", "y1")), ("line", ("x2", "y2")), ("text", ("x", "y"))):
        places += [tuple(float(node.get(name)) for name in names) for node in elements(picture, kind)]
    assert len(places) > 50 and all(0 <= x <= svg.WIDTH and 0 <= y <= height for x, y in places)


def test_a_taller_bias_and_a_larger_variance_lie_further_up_and_right():
    ppo, grade = sorted(marks(bias_of(table(steps=(0,))).picture, "dot"), key=lambda place: place[1])
    assert ppo[0] > grade[0]


def test_labels_keep_off_each_other_and_inside_the_figure():
    close = {("rloo", 0): [(3.8, 3.0, 5.0), (6900.0, 6000.0, 8000.0)]}
    picture = bias_of(table(close)).picture
    boxes = []
    for node in elements(picture, "text"):
        if "".join(node.itertext()) in TABLE:
            x, y, width = float(node.get("x")), float(node.get("y")), svg.LETTER * len("".join(node.itertext()))
            x -= width if node.get("text-anchor") == "end" else 0
            boxes.append((x, y - 10, x + width, y + 2))
    assert len(boxes) == 2 * len(TABLE)
    assert not any(svg.overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(box[0] >= svg.LEFT and box[2] <= svg.WIDTH for box in boxes)


@pytest.mark.parametrize(
    ("intervals", "reason"),
    [
        ([GONE, (1.0, 0.5, 1.5)], "relative variance not resolved"),
        ([(0.0, 0.0, 0.0), (0.0, 0.0, 0.0)], "no variance"),
        ([(1.0, 0.5, 2.0), GONE], "bias not resolved: the reference gradient isn't significantly different from 0"),
    ],
)
def test_what_cannot_be_drawn_is_named_below(draw, intervals, reason):
    picture = draw(table({("ppo", 200): intervals}))["variance-bias-toy.svg"]
    assert f"Not shown: ppo at step 200 ({reason})." in words(picture)
    assert len(elements(picture, "path")) == 2 * len(TABLE) - 1


def test_an_estimator_that_failed_at_a_checkpoint_is_named_below(draw):
    probes = table()
    picture = draw(probes[(probes["estimator"] != "rloo") | (probes["step"] != 200)])["variance-bias-toy.svg"]
    assert "Not shown: rloo at step 200 (not measured)." in words(picture)


def test_points_without_intervals_are_drawn_hollow_and_without_bars():
    intervals = [(1.0, math.nan, math.nan), (0.5, math.nan, math.nan)]
    picture = bias_of(table({(name, 0): intervals for name in TABLE}, steps=(0,))).picture
    assert {path.get("class").split()[0] for path in elements(picture, "path")} == {"hollow"}
    bars = [line for line in elements(picture, "line") if line.get("class").startswith("thin")]
    assert all(bar.get("x1") == bar.get("x2") and bar.get("y1") == bar.get("y2") for bar in bars)


def test_no_figure_without_its_metrics_or_without_a_point(draw, tmp_path):
    probes = table()
    bias, batch = "variance-bias-toy.svg", "variance-batch-toy.svg"
    assert list(draw(probes[probes["metric"].str.startswith("gradient_variance_relative")])) == []
    assert list(draw(probes[probes["samples"] != 16])) == [batch]
    assert list(draw(probes[probes["metric"].str.endswith("_relative")])) == [bias]
    assert list(draw(table({(name, step): [GONE, GONE] for name in TABLE for step in (0, 100, 200)}))) == [batch]
    assert draw(pd.DataFrame(columns=PROBES_COLUMNS), "empty") == {}
    assert not (tmp_path / "empty").exists()


@pytest.mark.filterwarnings("error")
def test_rows_of_a_group_of_parameters_do_not_count_and_a_csv_reads_the_same(draw, tmp_path):
    plain = draw(table(), "plain")
    both = pd.concat([table(), table({(n, s): [GONE, GONE] for n in TABLE for s in (0, 200)}, group="norm")])
    both.to_csv(tmp_path / "probes.csv", index=False)
    assert draw(pd.read_csv(tmp_path / "probes.csv"), "grouped") == plain
    table().to_csv(tmp_path / "probes.csv", index=False)
    assert draw(pd.read_csv(tmp_path / "probes.csv"), "ungrouped") == plain  # a column of NaN, hence of floats


def test_settings_have_figures_of_their_own_and_names_are_safe(draw):
    odd = {"task": "../my tasks.py:Odd"}
    drawn = draw(pd.concat([table(**odd), table(**odd, setting="size=8")]))
    assert sorted(drawn) == [
        f"variance-{kind}-my-tasks.py-Odd{number}.svg" for kind in ("batch", "bias") for number in ("-2", "")
    ]
    assert "size=8" in words(drawn["variance-bias-my-tasks.py-Odd-2.svg"])


def test_names_are_text_and_never_markup(draw, monkeypatch):
    monkeypatch.setitem(TABLE, "_$x^2$ & <b>", TABLE["exact"])
    for picture in draw(table()).values():
        assert "_$x^2$ & <b>" in words(picture)


def test_one_checkpoint_is_one_panel():
    assert len(elements(bias_of(table(steps=(0,))).picture, "rect")) == 1
    assert len(elements(bias_of(table()).picture, "rect")) == 2


def test_seeds_are_pooled_and_one_without_an_answer_takes_the_point_away():
    more = {("ppo", 0): [(3.9 * 4, 3.0 * 4, 5.1 * 4), (1000.0, 900.0, 1100.0)], ("rloo", 0): [GONE, (0.0, -1.0, 1.0)]}
    figure = bias_of(pd.concat([table(), table(more, seed=1)]))
    data = figure.data.set_index(["step", "estimator"])
    assert data.loc[(0, "ppo"), "variance"] == pytest.approx(3.9 * 2)
    assert data.loc[(0, "ppo"), "bias_squared"] == pytest.approx(4000)
    assert (0, "rloo") not in data.index and (200, "rloo") in data.index
    assert "means over 2 seeds" in figure.caption


def test_the_bias_of_direction_is_what_no_factor_removes():
    """Of the cosine: 1 - cos²; a cosine whose interval reaches 1 is in the band."""
    cosines = {
        "exact": (0.99, 0.9, 1.0),
        "grade:tau=0.5": (0.8, 0.7, 0.9),
        "ppo": (-0.1, -0.3, 0.1),
        "rloo": (1.0, 1.0, 1.0),
    }
    rows = [rows_of(name, "gradient_cosine", ends, step=step) for name, ends in cosines.items() for step in (0, 200)]
    (whole, direction), _ = probe_figures.of_probes(pd.concat([table(steps=(0, 200)), pd.DataFrame(rows)]))
    assert (whole.name, direction.name) == ("variance-bias", "variance-direction")
    data = direction.data.set_index(["step", "estimator"])
    ends = ["direction_bias", "direction_bias_ci_low", "direction_bias_ci_high"]
    assert data.loc[(200, "grade:tau=0.5"), ends].tolist() == pytest.approx([0.36, 0.19, 0.51])
    assert data.loc[(0, "ppo"), ends].tolist() == pytest.approx([0.99, 0.91, 1.0])
    assert len(marks(direction.picture, "hollow")) == len(marks(direction.picture, "dot")) == 4
    assert data["variance"].tolist() == pytest.approx(whole.data["variance"].tolist())


def test_pooled_intervals_shrink_as_independent_ones():
    probes = pd.concat([table(seed=seed) for seed in range(4)])
    bias = probe_figures.over_seeds(probes, "gradient_bias_relative")["ppo", 0, 16]
    assert (bias.low, bias.value, bias.high) == pytest.approx((6500, 7000, 7500))
    variance = probe_figures.over_seeds(probes, "gradient_variance_relative", logarithmic=True)["exact", 0, 16]
    assert (variance.low, variance.value, variance.high) == pytest.approx((0.02 / 2**0.5, 0.02, 0.02 * 2**0.5))


def test_the_command_names_the_figures_that_it_wrote_and_why_there_is_no_png(
    command, in_process, tmp_path, monkeypatch
):
    monkeypatch.setattr(pictures, "no_png", lambda: "no PNG here")
    task = "enumerable-lm:vocabulary=3,horizon=3,layers=1,width=4"
    numbers = ["--draws", 12, "--checkpoints", 1, "--steps", 2]
    status, out, err = command("probe", "-t", task, "-e", "st", *numbers, "--plots", "--out", tmp_path / "probes")
    assert status == 0 and err.splitlines()[-1] == "no PNG here"
    written = sorted(f"plots/{path.name}" for path in (tmp_path / "probes" / "plots").iterdir())
    assert written and sorted(re.findall(r"plots/[^,\s]+", out)) == written


def test_a_figure_is_also_a_png_with_its_caption(tmp_path):
    """The PNG is of the same proportions as the SVG with its caption, and has ink: a lost font would leave it without."""
    if pictures.no_png():
        pytest.skip(pictures.no_png())
    image = pytest.importorskip("PIL.Image")
    written = probe_figures.write_figures(table(), tmp_path)
    assert [path.suffix for path in written] == [".svg", ".png"] * 2
    title = elements(written[0].read_text(), "g")[-1]
    assert ("".join(title.itertext()), title.get("font-weight")) == ("Bias against variance", "bold")
    _, _, width, height = map(float, re.findall(r'viewBox="([^"]+)"', written[0].read_text())[0].split())
    with image.open(written[1]) as picture:
        assert picture.size == (pictures.ZOOM * width, pictures.ZOOM * height)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert tuple(bytes.fromhex(svg.LIGHT["ink"][1:])) in colours
