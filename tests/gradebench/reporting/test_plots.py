"""The figures of probes: what is drawn of what was measured, and the same bytes for the same table."""

import math
import sys
from xml.etree import ElementTree

import pandas as pd
import pytest

from gradebench.core.errors import InputError
from gradebench.core.schema import PROBES_COLUMNS
from gradebench.reporting import plots

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
def draw(tmp_path):
    pytest.importorskip("matplotlib")

    def of(probes, folder="plots"):
        return {path.name: path.read_text(encoding="utf-8") for path in plots.draw_probes(probes, tmp_path / folder)}

    return of


@pytest.fixture
def figure_of(draw, monkeypatch):
    """The figure of variance against bias, as matplotlib holds it."""

    def of(probes):
        found = []
        save = plots._save
        monkeypatch.setattr(plots, "_save", lambda drawing, *rest: found.append(drawing.figure) or save(drawing, *rest))
        draw(probes)
        return found[0]

    return of


def markers(figure):
    """gid -> the line that has the marker."""
    return {line.get_gid(): line for axes in figure.axes for line in axes.get_lines() if line.get_gid()}


def words(svg):
    return " ".join(
        "".join(node.itertext()) for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text")
    )


def test_both_figures_are_xml_with_every_estimator_as_text(draw):
    drawn = draw(table())
    assert list(drawn) == ["variance-bias-toy.svg", "variance-batch-toy.svg"]
    for svg in drawn.values():
        assert all(name in words(svg) for name in TABLE)
        assert "toy: " in words(svg) and "size=4" in words(svg)
        assert "<title>toy: " in svg and "Estimators: exact, grade:tau=0.5, ppo, rloo." in svg
    assert "500 draws of batch 16" in words(drawn["variance-bias-toy.svg"])
    assert "ppo  -1.00 [-1.25, -0.75]" in words(drawn["variance-batch-toy.svg"])


def test_the_same_table_gives_the_same_bytes_whatever_its_order_and_the_users_settings(draw):
    import matplotlib

    first = draw(table())
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": None, "axes.facecolor": "red"}):
        again = draw(table().sample(frac=1, random_state=0), "again")
    assert again == first
    assert "dc:date" not in first["variance-bias-toy.svg"]


def test_nothing_of_pyplot_is_loaded_and_no_setting_left_behind(draw):
    import matplotlib

    before, loaded = dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules
    draw(table())
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_a_bias_that_cannot_be_told_from_zero_is_hollow_and_in_the_band(figure_of):
    figure = figure_of(table())
    found = markers(figure)
    assert set(found) == {f"untold-{step}-{name}" for step in (0, 200) for name in ("exact", "rloo")} | {
        f"told-{step}-{name}" for step in (0, 200) for name in ("grade:tau=0.5", "ppo")
    }
    floor = min(axes.patches[0].get_y() + axes.patches[0].get_height() for axes in figure.axes)
    for gid, line in found.items():
        hollow = gid.startswith("untold")
        assert (line.get_markerfacecolor() == "white") == hollow
        assert (line.get_ydata()[0] < floor) == hollow


def test_values_off_the_usual_scale_stay_inside_the_axes(figure_of):
    for axes in figure_of(table()).axes:
        low, high = axes.get_ylim()
        assert low < 0.02 and high > 8000
        assert axes.get_yscale() == axes.get_xscale() == "log"


def test_an_estimator_keeps_colour_and_marker(figure_of):
    found = markers(figure_of(table()))
    looks = {
        name: {
            (line.get_marker(), line.get_markeredgecolor() if gid.startswith("untold") else line.get_markerfacecolor())
            for gid, line in found.items()
            if gid.endswith(f"-{name}")
        }
        for name in TABLE
    }
    assert all(len(look) == 1 for look in looks.values())
    assert len(set.union(*looks.values())) == len(TABLE)


def test_labels_keep_off_each_other_and_inside_the_figure(figure_of):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = figure_of(table({("rloo", 0): [(3.8, 3.0, 5.0), (6900.0, 6000.0, 8000.0)]}))
    renderer = FigureCanvasAgg(figure).get_renderer()
    for axes in figure.axes:
        boxes = [text.get_window_extent(renderer) for text in axes.texts]
        assert len(boxes) == len(TABLE) + 1
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert all(box.x0 >= axes.bbox.x0 and box.x1 <= axes.bbox.x1 for box in boxes)


@pytest.mark.parametrize(
    ("intervals", "reason"),
    [
        ([GONE, (1.0, 0.5, 1.5)], "relative variance that isn't resolved"),
        ([(0.0, 0.0, 0.0), (0.0, 0.0, 0.0)], "no variance"),
        ([(1.0, 0.5, 2.0), GONE], "bias without a reference gradient that can be told from zero"),
    ],
)
def test_what_cannot_be_drawn_is_named_below(draw, intervals, reason):
    svg = draw(table({("ppo", 200): intervals}))["variance-bias-toy.svg"]
    assert f"not shown: ppo at step 200 ({reason})" in words(svg)
    assert "told-0-ppo" in svg and "told-200-ppo" not in svg


def test_an_estimator_that_failed_at_a_checkpoint_is_named_below(draw):
    probes = table()
    svg = draw(probes[(probes["estimator"] != "rloo") | (probes["step"] != 200)])["variance-bias-toy.svg"]
    assert "not shown: rloo at step 200 (not measured)" in words(svg)


def test_points_without_intervals_are_drawn_hollow_and_without_bars(draw):
    intervals = [(1.0, math.nan, math.nan), (0.5, math.nan, math.nan)]
    assert "untold-0-ppo" in draw(table({("ppo", 0): intervals}))["variance-bias-toy.svg"]


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


def test_names_are_text_and_never_markup_or_mathematics(draw, monkeypatch):
    monkeypatch.setitem(TABLE, "_$x^2$ & <b>", TABLE["exact"])
    for svg in draw(table()).values():
        assert "_$x^2$ & <b>" in words(svg)


def test_one_checkpoint_is_one_panel(figure_of):
    assert len(figure_of(table(steps=(0,))).axes) == 1


def test_seeds_are_pooled_and_one_without_an_answer_takes_the_point_away(figure_of):
    more = {("ppo", 0): [(3.9 * 4, 3.0 * 4, 5.1 * 4), (1000.0, 900.0, 1100.0)], ("rloo", 0): [GONE, (0.0, -1.0, 1.0)]}
    found = markers(figure_of(pd.concat([table(), table(more, seed=1)])))
    assert found["told-0-ppo"].get_xdata()[0] == pytest.approx(3.9 * 2)
    assert found["told-0-ppo"].get_ydata()[0] == pytest.approx(4000)
    assert "untold-0-rloo" not in found and "untold-200-rloo" in found


def test_pooled_intervals_shrink_as_independent_ones():
    probes = pd.concat([table(seed=seed) for seed in range(4)])
    bias = plots._over_seeds(probes, "gradient_bias_relative")["ppo", 0, 16]
    assert (bias.low, bias.value, bias.high) == pytest.approx((6500, 7000, 7500))
    variance = plots._over_seeds(probes, "gradient_variance_relative", logarithmic=True)["exact", 0, 16]
    assert (variance.low, variance.value, variance.high) == pytest.approx((0.02 / 2**0.5, 0.02, 0.02 * 2**0.5))


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"^--plots needs matplotlib: pip install 'gradebench\[plots\]'$"):
        plots.require_matplotlib()
    with pytest.raises(InputError):
        plots.draw_probes(table(), tmp_path)
