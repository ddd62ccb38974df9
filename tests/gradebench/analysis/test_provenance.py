"""Where rates come from, and that nothing is said of two estimators of which one was tuned and the other wasn't."""

import math

import numpy as np
import pandas as pd
import pytest

from gradebench import InputError
from gradebench.analysis import claims, curves, frontier, instances, multi_task, provenance, tables
from gradebench.analysis.provenance import Ran, Rate, comparable, together
from gradebench.core import schema
from gradebench.experiment import cell_setup
from gradebench.experiment.plan import Plan
from gradebench.plugins import registry

TUNED = "tuned: 6 rates x 5 seeds at 40 steps"
RECORD = {"learning_rate": 1e-3, "steps": 320, "trials": "6 rates x 5 seeds", "budgets": {"40": 5e-3, "80": 2e-3}}


def rate_of(spec, record=None, setting="kl=0", **plan):
    """The rate of an estimator on a task that records `record` for rloo alone."""

    class Recorded:
        learning_rate = 0.02

        def tuned(self, estimator):
            return record if estimator == "rloo" else None

    facts = {"run_id": "run", "out": ".", "device": "cpu", "batch": 8, "setting": setting}
    return cell_setup.learning_rate_of(Recorded(), Plan(**facts, **({"steps": 40} | plan)), spec)


@pytest.mark.parametrize(
    ("spec", "plan", "value", "source"),
    [
        ("rloo", {"steps": 40}, 5e-3, TUNED),
        ("rloo", {"steps": 320}, 1e-3, "tuned: 6 rates x 5 seeds at 320 steps"),
        ("rloo", {"steps": 50}, 5e-3, "tuned for 40 steps: 6 rates x 5 seeds at 40 steps"),
        ("rloo", {"steps": 9000}, 1e-3, "tuned for 320 steps: 6 rates x 5 seeds at 320 steps"),
        ("rloo", {"setting": "kl=1"}, 5e-3, "tuned in another setting: 6 rates x 5 seeds at 40 steps"),
        ("rloo:n=8", {}, 5e-3, f"like rloo: {TUNED}"),  # other options than those that were tuned
        ("ppo", {}, 0.02, "task"),
        ("ppo:rate-like=rloo", {}, 5e-3, f"like rloo: {TUNED}"),
        ("rloo:rate-like=ppo", {}, 0.02, "task"),  # nobody tuned the lender's
        ("rloo", {"learning_rate": 0.5}, 0.5, "given"),
        ("ppo:rate-like=rloo", {"learning_rate": 0.5}, 0.5, "given"),
        ("rloo", {"tuned": {"rloo": Rate(0.7, "tuned", "8 rates x 3 seeds at 40 steps", "a.json")}}, 0.7,
         "tuned: 8 rates x 3 seeds at 40 steps"),
        ("rloo:n=8", {"tuned": {"rloo": Rate(0.7, "tuned")}}, 0.7, "like rloo: tuned"),
    ],
)  # fmt: skip
def test_every_rate_says_where_it_comes_from(spec, plan, value, source):
    found = rate_of(spec, RECORD | {"setting": "kl=0"}, **plan)
    assert (found.value, found.source) == (value, source)


def test_a_record_of_a_rate_alone_counts_as_tuned():
    assert rate_of("rloo", {"learning_rate": 0.3}) == Rate(0.3, "tuned", "", "recorded by the task")


def test_a_lender_is_an_estimator_with_a_rate_of_its_own():
    assert registry.resolve("estimators", "ppo:lam=0.5,rate-like=rloo").label == "ppo:lam=0.5,rate-like=rloo"
    with pytest.raises(InputError, match="nobody"):
        registry.resolve("estimators", "ppo:rate-like=nobody")
    with pytest.raises(InputError, match="borrows its own rate; name rloo"):
        registry.resolve("estimators", "ppo:rate-like=rloo:rate-like=rloo")
    with pytest.raises(InputError, match="has no option 'rate-like'"):
        registry.resolve("tasks", "enumerable-lm:rate-like=rloo")


TWO = Ran("rloo", 1e-3, TUNED), Ran("ppo", 1e-4, TUNED)
MINE = Ran("mine", 1e-3, f"like rloo: {TUNED}")


@pytest.mark.parametrize(
    ("a", "b", "fair"),
    [
        (*TWO, True),
        (TWO[0], Ran("ppo", 1e-3, "task"), False),  # also at the same rate, which is the best of one of them
        (TWO[0], Ran("ppo", 1e-4, "tuned: 8 rates x 5 seeds at 40 steps"), False),
        (TWO[0], MINE, True),
        (TWO[1], MINE, False),
        (TWO[0], Ran("mine", 2e-3, MINE.source), False),  # a loan of another day
        (MINE, Ran("yours", 1e-3, MINE.source), True),
        (Ran("a", 0.1, "given"), Ran("b", 0.1, "given"), True),
        (Ran("a", 0.1, "given"), Ran("b", 0.2, "given"), False),
        (Ran("a", math.nan, ""), Ran("b", math.nan, ""), True),  # of a version that didn't say
    ],
)
def test_only_equal_rates_or_equal_tuning_can_be_compared(a, b, fair):
    assert comparable(a, b) is comparable(b, a) is fair


def test_the_most_that_can_be_compared_are_ranked_together():
    untuned = [Ran(name, 0.02, "task") for name in ("u", "v")]
    assert together([MINE, *TWO]) == ["rloo", "ppo"]
    assert together([MINE, TWO[0]]) == ["mine", "rloo"]
    assert together([*untuned, *TWO]) == ["rloo", "ppo"]  # as many: those that were tuned
    assert together([*untuned, TWO[0]]) == ["u", "v"]
    assert together([]) == []


# --- in tables ----------------------------------------------------------------------------------------------------


def metrics(sources, rewards, steps=40, seeds=range(14)):
    """Metrics of estimators with rate and source, and a test reward in each seed."""
    rows = []
    for name, (rate, source) in sources.items():
        for seed in seeds:
            noise = float(np.random.default_rng([seed, len(name)]).normal(0, 0.001))
            place = {"run_id": "r", "cell_id": f"{name}{seed}", "task": "t", "setting": "s", "estimator": name}
            kept = {"estimator_params": "{}", "estimator_source": "", "unit": "1", "status": "ok", "seed": seed}
            for step, gain in ((0, 0.0), (steps, rewards[name] + noise)):
                where = {"phase": "evaluation", "split": "test", "step": step, "metric": "reward", "value": gain}
                rows.append(place | kept | where | {"learning_rate": rate, "rate_source": source})
            probe = {"phase": "probe", "split": "train", "step": 0, "metric": "gradient_variance"}
            value = {"value": 1 + rewards[name] + noise, "learning_rate": rate, "rate_source": source}
            rows.append(place | kept | probe | value)
    return pd.DataFrame(rows)[schema.METRICS_COLUMNS + schema.RATE_COLUMNS]


SOURCES = {"rloo": (3e-4, TUNED), "ppo": (1e-4, TUNED), "st": (2e-4, TUNED), "mine": (1e-3, "task")}
REWARDS = {"mine": 0.9, "rloo": 0.7, "ppo": 0.5, "st": 0.2}


def test_the_untuned_has_no_tier_and_no_p_and_leaves_the_family():
    rows = metrics(SOURCES, REWARDS)
    tests = tables.comparisons(rows).set_index(["metric", "estimator_a", "estimator_b"]).sort_index()
    board = tables.leaderboard(rows, tables.comparisons(rows)).set_index("estimator")
    apart = tests.loc[("reward", "mine")]
    assert set(apart["verdict"]) == {"not comparable: untuned against tuned"}
    assert apart[["p_value", "p_holm", "ci_low", "ci_high"]].isna().all(axis=None)
    assert apart["mean_difference"].notna().all()
    assert tests.loc[("reward", "rloo", "ppo"), "p_holm"] == pytest.approx(3 * 2 / 2**14)  # of three pairs, not six
    assert tests.loc["gradient_variance", "p_holm"].notna().all()  # whose trajectory all share
    assert list(board["rank"]) == [1, 2, 3, 4] and board["tier"].fillna(0).to_dict() == {
        "mine": 0, "rloo": 1, "ppo": 2, "st": 3
    }  # fmt: skip
    assert board["p_vs_best_holm"].notna().to_dict() == {"mine": False, "rloo": False, "ppo": True, "st": True}
    assert board.loc["mine", "rate_source"] == "task" and board.loc["mine", "learning_rate"] == 1e-3


def test_what_was_borrowed_is_compared_with_its_lender_alone():
    rows = metrics(SOURCES | {"mine": (3e-4, f"like rloo: {TUNED}")}, REWARDS)
    tests = tables.comparisons(rows).query("metric == 'reward'").set_index(["estimator_a", "estimator_b"])
    assert tests.loc[("mine", "rloo"), "p_holm"] < 0.05
    assert tests.loc[("mine", "ppo"), "verdict"] == "not comparable: like rloo against tuned"
    (said,) = provenance.notices(rows)
    assert said == (
        "t: mine ran at the rate of rloo, the others at rates tuned for each, so there is no tier and no p between them "
        "except with rloo; `gradebench run --tune -e mine -e ppo -e rloo -e st -t t --steps 40` tunes all of them in the "
        "same way"
    )


def test_metrics_of_an_older_version_are_compared_as_before():
    rows = metrics(SOURCES, REWARDS).drop(columns=schema.RATE_COLUMNS)
    board = tables.leaderboard(rows, tables.comparisons(rows))
    assert list(board["tier"]) == [1, 2, 3, 4] and set(board["rate_source"]) == {""}
    assert provenance.notices(rows) == []


def test_equal_rates_are_compared_and_rates_for_other_steps_are_said():
    given = dict.fromkeys(SOURCES, (0.1, "given"))
    assert provenance.notices(metrics(given, REWARDS)) == []
    assert tables.comparisons(metrics(given, REWARDS))["p_holm"].notna().all()
    off = {name: (rate, "tuned for 40 steps: 4 rates x 2 seeds") for name, (rate, _) in SOURCES.items()}
    rows = metrics(off, REWARDS, steps=320)
    assert tables.comparisons(rows)["p_holm"].notna().all()
    (said,) = provenance.notices(rows)
    assert (
        said.startswith("t: rates tuned for 40 steps, and these ran 320: the same for all") and "--steps 320`" in said
    )


def test_scores_over_tasks_and_claims_leave_the_untuned_out():
    rows = metrics(SOURCES | {"grade-ste": (1e-3, "task")}, REWARDS | {"grade-ste": 0.8}).assign(task="imdb")
    assert set(multi_task.scores(rows)["imdb s"].columns) == {"rloo", "ppo", "st"}
    verdicts = claims.judge(claims.read_claims(), rows).set_index("claim")
    unfair = verdicts.loc["grade-ste-reward-over-ppo"]
    assert unfair["verdict"] == "untested"
    assert unfair["reason"].startswith("not comparable: untuned against tuned; this would test it: gradebench run ")


# --- every table that compares ----------------------------------------------------------------------------------

LABELS = ["lm", "lm:1", "lm:2"]


def trained_by(sources, seeds=8):
    """Metrics of three tasks on which the last estimator is far above the others; a name to its rate_source."""
    rng, rows = np.random.default_rng(0), []
    for task in LABELS:
        for place, (name, source) in enumerate(sources.items()):
            for seed in range(seeds):
                cell = {"task": task, "setting": f"of {task}", "estimator": name, "seed": seed, "rate_source": source}
                for step in (0, 10, 20):
                    reward = 0.01 * step * (1 + place) + 0.001 * rng.normal()
                    spent = {"reward_calls": 8.0 * step, "seconds": 0.1 * step, "updates": 1.0 * step}
                    values = {"reward": reward, "gold_reward": reward, "objective": reward, "kl": 0.1 * step}
                    parts = [("train", "train", spent)] + [("evaluation", s, values) for s in ("validation", "test")]
                    rows += [
                        cell | {"phase": phase, "split": split, "step": step, "metric": metric, "value": value}
                        for phase, split, found in parts
                        for metric, value in found.items()
                    ]
    frame = pd.DataFrame(rows).assign(status="ok", estimator_params="{}", learning_rate=0.1)
    return frame.reindex(columns=[*schema.METRICS_COLUMNS, *schema.RATE_COLUMNS]).fillna({"run_id": "r"})


def design_by(name):
    return {label: {"task": "lm", "values": {name: str(place)}} for place, label in enumerate(LABELS)}


def over_instances(metrics):
    return instances.written(metrics, design_by("instance"))


# tables of pairs, and of ranks with the column that ranks
PAIRS = {
    "tests": tables.comparisons,
    "crossings": curves.crossings_of,
    "areas under frontiers": lambda metrics: frontier.areas(metrics, design_by("kl")),
    "instances": lambda metrics: over_instances(metrics)[instances.NAME],
}
RANKS = {
    "leaderboard": (lambda metrics: tables.leaderboard(metrics, tables.comparisons(metrics)), "tier"),
    "budgets": (curves.budgets, "rank"),
    "frontier": (lambda metrics: frontier.budgets(metrics, design_by("kl")), "rank"),
    "instances": (lambda metrics: over_instances(metrics)[instances.BOARD], "rank"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_no_table_of_pairs_compares_an_untuned_estimator_with_tuned_ones(name):
    fair = PAIRS[name](trained_by({"a": TUNED, "b": TUNED, "mine": TUNED}))
    rows = PAIRS[name](trained_by({"a": TUNED, "b": TUNED, "mine": "task"}))
    rows = rows[rows["metric"] != "gradient_variance"]
    mine = (rows["estimator_a"] == "mine") | (rows["estimator_b"] == "mine")
    assert mine.any() and not mine.all()
    assert rows.loc[mine, "verdict"].str.startswith("not comparable").all()
    assert rows.loc[mine, ["ci_low", "ci_high"]].isna().all(axis=None)
    for part in (fair["verdict"], rows.loc[~mine, "verdict"]):
        assert not part.str.startswith("not comparable").any()
        assert part.str.contains("higher|leads").any()  # what may be compared is decided


@pytest.mark.parametrize("name", RANKS)
def test_no_table_of_ranks_has_an_untuned_estimator_lead_tuned_ones(name):
    make, ranking = RANKS[name]
    fair = make(trained_by({"a": TUNED, "b": TUNED, "mine": TUNED}))
    assert set(fair.loc[fair[ranking] == 1, "estimator"]) == {"mine"}
    rows = make(trained_by({"a": TUNED, "b": TUNED, "mine": "task"}))
    assert set(rows.loc[rows[ranking] == 1, "estimator"]) == {"b"}
    mine = rows[rows["estimator"] == "mine"]
    assert len(mine) and mine[ranking].isna().all()
    p = next(column for column in rows.columns if column.startswith("p_vs_"))
    assert mine[p].isna().all() and (rows.loc[rows["estimator"] == "a", p] < 0.05).any()


def test_who_leads_in_words_leaves_out_what_is_not_compared():
    metrics = trained_by({"a": TUNED, "b": TUNED, "mine": "task"})
    shown = curves.leaders(curves.budgets(metrics))
    assert set(shown["leader"]) == {"b"} and "mine" not in " ".join(shown["not_different"])
    table = frontier.budgets(metrics, design_by("kl"))
    spans = frontier.leaders(table[table["metric"] == "reward"])
    assert {leader for *_, leader, _ in spans} == {"b"} and all("mine" not in beside for *_, beside in spans)
