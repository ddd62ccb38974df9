"""The figures of a finished run, one by one."""

from pathlib import Path

import pytest

import gradebench
from gradebench import InputError

RUN = Path(__file__).parents[3] / "results" / "budgets-enumerable-lm"


@pytest.fixture(scope="module")
def plot():
    return gradebench.load(RUN).plot


def test_each_figure_of_the_report_is_a_method(plot):
    assert {"test_reward", "pairs_by_seed"} <= set(dir(plot)) and "test_reward" in repr(plot)
    shown = plot.test_reward()
    assert shown._repr_svg_().startswith("<svg") and "grade-ste" in shown._repr_svg_()
    assert "95 % interval" in shown.caption
    assert set(shown.data["estimator"]) == {"rloo", "grade-ste", "st", "reinforce"}


def test_a_figure_is_saved_in_its_width(plot, tmp_path):
    path = plot.test_reward().save(tmp_path / "new" / "reward.svg", width=2)
    assert path == tmp_path / "new" / "reward.svg" and 'width="144pt"' in path.read_text(encoding="utf-8")
    with pytest.raises(InputError, match=r"reward.jpg: .* svg, pdf, png"):
        plot.test_reward().save(tmp_path / "reward.jpg")


def test_what_is_not_there_is_refused_with_what_is(plot):
    with pytest.raises(InputError, match=r"no figure nothing, only .*test_reward"):
        plot.nothing()
    with pytest.raises(InputError, match=r"no figure test_reward of other, only of enumerable-lm"):
        plot.test_reward(task="other")
