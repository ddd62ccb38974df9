"""Controls and trials: tables hold what they are in columns, and tables of older versions in labels alone."""

import math

import pandas as pd
import pytest

from gradebench.analysis import cell_labels, tables


@pytest.mark.parametrize("estimator", ["rloo", "ppo:lam=0.9,n=8", "mine.py:Mine", "a (control) b", "b @ c"])
def test_a_label_of_an_older_version_says_what_the_columns_say(estimator):
    nothing = dict.fromkeys(cell_labels.COLUMNS, "")
    assert cell_labels.parsed(cell_labels.control_label(estimator))["control_of"] == estimator
    for options in ("", "tau=0.3", "tau=0.3,k=4"):
        found = cell_labels.parsed(cell_labels.trial_label(estimator, 3e-3, options))
        assert found == nothing | {"trial_of": estimator, "trial_options": options}
    assert cell_labels.parsed("rloo") == nothing


def test_columns_are_believed_before_labels():
    table = pd.DataFrame({"estimator": ["mine (control)", "other @ 0.1 x=2"], "learning_rate": [0.25, 0.125]})
    written = table.assign(control_of="", trial_of="", trial_options="")
    assert cell_labels.with_columns(written) is written
    assert cell_labels.with_columns(table)["control_of"].tolist() == ["mine", ""]
    assert cell_labels.with_columns(table)["trial_options"].tolist() == ["", "x=2"]
    assert cell_labels.with_trial_rates(table)["learning_rate"].tolist() == [0.25, 0.125]
    assert cell_labels.with_trial_rates(table[["estimator"]])["learning_rate"].iloc[1] == 0.1


def test_an_estimator_whose_label_ends_like_a_controls_is_ranked():
    place = {"run_id": "r", "task": "t", "setting": "s", "estimator_params": "{}", "estimator_source": "here"}
    place |= {"phase": "evaluation", "split": "test", "step": 1, "metric": "reward", "unit": "1", "status": "ok"}
    rows = pd.DataFrame(
        place | {"cell_id": f"{name}-{seed}", "estimator": name, "seed": seed, "value": seed + len(name)}
        for name in ("a", "mine (control)")
        for seed in range(3)
    )
    labelled = rows.assign(control_of="", trial_of="", trial_options="")
    for table, ranked in ((labelled, {"a", "mine (control)"}), (rows, {"a"})):
        assert set(tables.leaderboard(table, tables.comparisons(table))["estimator"]) == ranked
    swapped = labelled.assign(control_of=labelled["estimator"].map({"a": "mine (control)", "mine (control)": ""}))
    (test,) = tables.controls(swapped).to_dict("records")
    assert (test["estimator_a"], test["estimator_b"]) == ("mine (control)", "a")


@pytest.mark.parametrize("labels", [["rloo", None], [None, None], [math.nan, math.nan], ["rloo", 3.5]])
def test_rows_without_an_estimator_are_left_to_the_readers_that_refuse_them(labels):
    table = cell_labels.with_columns(pd.DataFrame({"estimator": labels, "value": [1.0, 2.0]}))
    assert table[cell_labels.COLUMNS].eq("").all(axis=None)
