"""What is made of a table is made once within `made_once`, and is the same as without."""

import pandas as pd

from gradebench.analysis import curves, groups, multi_task, tables
from gradebench.analysis.once import made_once, once
from gradebench.storage import records


def metrics(tasks):
    """Two estimators, three seeds and a failed cell on each task, with a control."""
    frames = []
    for task in tasks:
        for seed in range(3):
            for place, name in enumerate(("rloo", "grpo", f"grpo{tables.CONTROL}")):
                record = records.CellRecord(
                    records.Identity("run", f"{task}{name}{seed}", task, "s", name, "{}", "", seed)
                )
                for step in (0, 2, 4):
                    found = {
                        "objective": 0.1 * place + 0.01 * seed * step,
                        "reward": 0.5 + 0.01 * step * place,
                        "kl": 0.1 * step,
                    }
                    record.add("evaluation", "test", step, found)
                    record.add("train", "train", step, {"reward_calls": 8.0 * step, "updates": float(step)})
                frames.append(record.frame("failed" if (seed, name) == (2, "grpo") else "ok"))
    rows = pd.concat(frames, ignore_index=True).assign(learning_rate=0.1, rate_source="task")
    return rows.assign(control_of=rows["estimator"].str.endswith(tables.CONTROL).map({True: "grpo", False: ""}))


def all_tables(rows):
    tests = tables.comparisons(rows)
    found = [
        tests,
        tables.leaderboard(rows, tests),
        tables.controls(rows),
        multi_task.across_tasks(rows),
        curves.budgets(rows),
    ]
    found += [curves.crossings_of(rows)]
    for place in groups.places_of(rows).values():
        found += [curves.budgets(place, "objective"), curves.budgets(place, "reward"), tables.comparisons(place)]
    return [one.to_csv() for one in found]


def test_tables_are_those_that_are_made_apart():
    rows = metrics(["a", "b"])
    apart = all_tables(rows)
    with made_once():
        assert all_tables(rows) == apart
        assert all_tables(rows) == apart
        assert all_tables(rows[rows["task"] == "a"].copy()) != apart


def test_a_table_is_parted_once_and_no_longer_than_asked_for(monkeypatch):
    rows, counted, checked = metrics(["a"]), [], groups._checked

    def counting(given):
        counted.append(given)
        return checked(given)

    monkeypatch.setattr(groups, "_checked", counting)
    with made_once(), made_once():
        all_tables(rows)
        assert len(counted) == 1
    all_tables(rows)
    assert len(counted) > 5


def test_what_is_kept_is_told_by_the_very_object():
    with made_once():
        for number in range(100):
            assert once(lambda number=number: number, [number]) == number  # each at an address of its own
