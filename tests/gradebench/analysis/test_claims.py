"""Claims on simulated runs whose truth is known, the shipped file, and files that are none."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from gradebench.analysis import claims, power, statistics, tables
from gradebench.analysis.claims import Claim, judge, read_claims
from gradebench.core import schema
from gradebench.core.errors import InputError
from gradebench.plugins import registry

ALPHA = 0.001  # of each statistical test here


def rows_of(estimator, seed, metric, value, task="imdb", **other):
    identity = {"run_id": "run", "cell_id": f"{estimator}-{seed}", "task": task, "setting": "a", "estimator": estimator}
    identity |= {"estimator_params": "{}", "estimator_source": "gradebench", "seed": seed, "unit": "", "status": "ok"}
    if metric.startswith("gradient_"):
        places = [("probe", "train", step) for step in (0, 40)]
    else:
        places = [("evaluation", "test", 40)]
    return [identity | dict(zip(("phase", "split", "step"), place, strict=True)) | {"metric": metric, "value": value} | other for place in places]  # fmt: skip


def run_of(metric="reward", task="imdb", **values):
    """The metrics of a run in which each estimator has these values, one a seed."""
    rows = [
        r for name, each in values.items() for seed, v in enumerate(each) for r in rows_of(name, seed, metric, v, task)
    ]
    return pd.DataFrame(rows, columns=schema.METRICS_COLUMNS)


def claim(**changes):
    facts = {"id": "c", "says": "a is better", "source": "somewhere", "task": "imdb", "a": "a", "b": "b"}
    facts |= {"metric": "reward", "form": "difference"} | changes
    return Claim(**facts if "at_most" in facts else {"at_least": 0.0} | facts)


def draws(mean, n=8, spread=0.01, seed=0):
    return mean + spread * np.random.default_rng(seed).standard_normal(n)


def verdict_of(one, metrics):
    (row,) = judge([one], metrics).to_dict("records")
    return row


def decided(one, a, b):
    """The verdict of a claim alone in its file, without the tables around it."""
    row = claims._measured(one, pd.DataFrame({"a": a, "b": b}), "place")
    row["p_holm"] = row["p_value"]
    return claims._verdict(row, row["contrast"], 1)["verdict"]


def test_only_ratios_of_variances_are_geometric():
    """A difference of variances, and a ratio of rewards, are of plain means."""
    both = pd.DataFrame({"a": [0.2, 0.8, 0.2, 0.8], "b": [0.4, 0.4, 0.4, 0.4]})

    def measured(metric, form):
        return claims._measured(claim(metric=metric, form=form, at_least=1.0), both, "place")["measured"]

    assert measured("gradient_variance", "ratio") == pytest.approx(1.0)
    assert measured("gradient_variance", "difference") == pytest.approx(0.1)
    assert measured("reward", "ratio") == pytest.approx(1.25)
    assert measured("reward", "difference") == pytest.approx(0.1)


@pytest.fixture
def verdicts_alone(monkeypatch):
    """Without what takes time and decides nothing."""
    monkeypatch.setattr(statistics, "difference_interval", lambda *_, **__: (math.nan, math.nan))
    monkeypatch.setattr(power, "seeds_for", lambda *_: math.nan)
    monkeypatch.setattr(power, "power_of", lambda *_: math.nan)


# --- verdicts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "a", "expected"),
    [
        ({"at_least": 0.0}, 0.7, "supported"),
        ({"at_most": 0.0}, 0.7, "contradicted"),
        ({"at_least": 0.3}, 0.7, "contradicted"),
        ({"at_most": 0.3}, 0.7, "supported"),
        ({"form": "ratio", "at_least": 1.2}, 0.7, "supported"),
        ({"form": "ratio", "at_least": 1.6}, 0.7, "contradicted"),
        ({"form": "ratio", "at_least": 1.4}, 0.7, "not distinguishable"),
        ({"at_least": 0.2}, 0.7, "not distinguishable"),
    ],
)
def test_a_reward_is_held_to_the_bound(bound, a, expected):
    row = verdict_of(claim(**bound), run_of(a=draws(a), b=draws(0.5, seed=1)))
    assert row["verdict"] == expected
    truth = 1.4 if bound.get("form") == "ratio" else 0.2
    assert row["ci_low"] < row["measured"] < row["ci_high"]
    assert row["measured"] == pytest.approx(truth, abs=0.05)
    assert math.isnan(row["seeds_needed"]) == (expected in ("supported", "contradicted"))


@pytest.mark.parametrize(("bound", "expected"), [(1 / 14, "supported"), (1 / 30, "contradicted")])
def test_variances_are_compared_as_factors(bound, expected):
    values = {"a": np.exp(draws(0, spread=0.1)), "b": 20 * np.exp(draws(0, spread=0.1, seed=1))}
    row = verdict_of(
        claim(metric="gradient_variance", form="ratio", at_most=bound), run_of("gradient_variance", **values)
    )
    assert row["verdict"] == expected
    assert row["measured"] == pytest.approx(1 / 20, rel=0.15)
    assert 1 < row["detectable"] < 2  # a factor


@pytest.mark.parametrize(
    ("a", "margin", "expected"),
    [
        (0.49, 0.02, "supported"),
        (0.49, 0.0, "contradicted"),
        (0.46, 0.02, "contradicted"),
        (0.48, 0.02, "not distinguishable"),
    ],
)
def test_no_worse_has_a_margin(a, margin, expected):
    """a - b is -0.01, -0.04 or -0.02, with a standard error of 0.001."""
    metrics = run_of(a=draws(a, spread=0.003), b=draws(0.5, spread=0.003, seed=1))
    assert verdict_of(claim(margin=margin), metrics)["verdict"] == expected
    at_most = claim(at_most=0.0, margin=margin, a="b", b="a")
    assert verdict_of(at_most, metrics)["verdict"] == expected
    assert at_most.claimed == ("b - a <= 0.02 (with a margin of 0.02)" if margin else "b - a <= 0")


def test_a_bound_that_nothing_could_reach_is_not_contradicted():
    """b has 0.76 and the metric ends at 1: no a is 1.5 times as much; 1.2 times could be, and isn't."""
    metrics = run_of(a=draws(0.8), b=draws(0.76, seed=1))
    row = verdict_of(claim(form="ratio", at_least=1.5, highest=1.0), metrics)
    assert row["verdict"] == "cannot be decided: the bound is out of reach"
    assert "b has 0.76" in row["reason"] and "at most 1.3" in row["reason"]
    assert row["steps"] == 40 and math.isnan(row["seeds_needed"])
    assert verdict_of(claim(form="ratio", at_least=1.2, highest=1.0), metrics)["verdict"] == "contradicted"
    assert verdict_of(claim(form="ratio", at_least=1.5), metrics)["verdict"] == "contradicted"
    assert verdict_of(claim(at_least=0.3, highest=1.0), metrics)["verdict"] == claims.OUT_OF_REACH
    (shipped,) = (one for one in read_claims() if one.id == "grade-ste-reward-over-ppo")
    assert shipped.out_of_reach(np.array([0.76])) and not shipped.out_of_reach(np.array([0.6]))


@pytest.mark.parametrize(
    ("bound", "expected"),
    [({"at_most": 0.0}, "supported"), ({"at_least": 0.0}, "contradicted"), ({"at_most": -0.08}, "not distinguishable")],
)
def test_a_value_is_held_to_the_bound_by_itself(bound, expected):
    """The best validation reward is 0.69 at step 20, the test reward 0.77 at the end; 0.9 at test before doesn't count."""
    rows = []
    for seed, noise in enumerate(draws(0.0)):
        for split, step, value in [
            ("validation", 0, 0.61),
            ("validation", 20, 0.69),
            ("validation", 40, 0.55),
            ("test", 20, 0.9),
            ("test", 40, 0.77 + noise),
        ]:
            rows += rows_of("a", seed, "reward", value, split=split, step=step)
    metrics = pd.DataFrame(rows, columns=schema.METRICS_COLUMNS)
    one = claim(metric="validation_gap", form="value", b="", **bound)
    row = verdict_of(one, metrics)
    assert row["verdict"] == expected
    assert row["n_pairs"] == 8 and row["measured"] == pytest.approx(-0.08 - draws(0.0).mean())
    assert row["ci_low"] < row["measured"] < row["ci_high"]
    assert one.claimed.startswith("validation_gap of a ")
    missing = verdict_of(claim(metric="validation_gap", form="value", b="", a="c"), metrics)["reason"]
    assert missing.endswith("this would test it: gradebench run -e c -t imdb --seeds 0-9")


@pytest.mark.parametrize(("low", "expected"), [(0.1, "supported"), (0.6, "contradicted")])
def test_biases_are_compared_as_means_over_checkpoints_also_where_they_are_negative(low, expected):
    values = {"a": draws(low, spread=0.2), "b": draws(0.35, spread=0.02, seed=1)}
    metrics = run_of("gradient_bias_squared", **values)
    assert (values["a"] < 0).any() or low > 0.5
    row = verdict_of(claim(metric="gradient_bias_squared", split="train", at_most=0.0), metrics)
    assert row["measured"] == pytest.approx((values["a"] - values["b"]).mean())
    assert row["verdict"] == expected
    gone = metrics[(metrics["estimator"] != "a") | (metrics["seed"] != 0) | (metrics["step"] != 0)]
    row = verdict_of(claim(metric="gradient_bias_squared", split="train", at_most=0.0), gone)
    assert row["n_pairs"] == 7  # a seed that lacks a checkpoint has no mean


def test_claims_about_named_estimators_are_the_family(command, tmp_path):
    metrics = run_of(a=draws(0.7, 6), b=draws(0.5, 6, seed=1), c=draws(0.5, 6, seed=2))
    listed = [claim(), claim(id="d", a="b", b="c")]
    assert [one.id for one in claims.about(listed, ["a"])] == ["c"]
    assert judge(claims.about(listed, ["a"]), metrics)["verdict"].tolist() == ["supported"]
    assert judge(listed, metrics)["verdict"].tolist()[0] == "underpowered"  # 2 / 2^6 twice is above 0.05
    tables.write_parquet(metrics, tmp_path / "metrics.parquet")
    status, _, err = command("claims", tmp_path, "--against", "rlooo")
    assert status == 2 and "--against rlooo: no claim is about it" in err and len(err.splitlines()) == 1
    out = command("claims", tmp_path, "--against", "rloo")[1]
    assert "RLOO ends" in out and "GRADE-STE" not in out


def test_too_few_seeds_are_underpowered_and_say_how_many_it_takes():
    row = verdict_of(claim(), run_of(a=draws(0.7, 3), b=draws(0.5, 3, seed=1)))
    assert row["verdict"] == "underpowered" and row["n_pairs"] == 3
    assert row["seeds_needed"] == statistics.seeds_needed(1) == 6


def test_holm_counts_all_claims_of_the_file_that_were_tested():
    """With six seeds one claim can reach 2 / 2^6 = 0.031; two can't be below 0.05 both, unless counted alone."""
    metrics = run_of(a=draws(0.7, 6), b=draws(0.5, 6, seed=1))
    assert judge([claim()], metrics)["verdict"].tolist() == ["supported"]
    two = judge([claim(), claim(id="d"), claim(id="e", a="nobody")], metrics)
    assert two["verdict"].tolist() == ["underpowered", "underpowered", "untested"]
    assert two["p_holm"].tolist()[:2] == [4 / 64, 4 / 64]


def test_seeds_are_paired_by_their_number():
    """A seed that one side lacks is left out; the others keep their partners."""
    metrics = run_of(a=draws(0.7), b=draws(0.5, seed=1))
    metrics = metrics[(metrics["estimator"] == "a") | (metrics["seed"] != 0)].sample(frac=1, random_state=0)
    row = verdict_of(claim(), metrics)
    assert row["n_pairs"] == 7
    assert row["measured"] == pytest.approx((draws(0.7) - draws(0.5, seed=1))[1:].mean())


@pytest.mark.parametrize(("a", "b", "ends"), [(1e200, 1e-200, (math.inf,) * 3), (1e-200, 1e200, (0.0,) * 3)])
def test_a_ratio_too_large_to_be_a_number_is_infinite(a, b, ends):
    """And where its upper end alone is, that."""
    one = claim(metric="gradient_variance", form="ratio", at_least=1.0)
    row = verdict_of(one, run_of("gradient_variance", a=a * np.exp(draws(0)), b=b * np.exp(draws(0, seed=1))))
    assert (row["measured"], row["ci_low"], row["ci_high"]) == ends
    assert row["verdict"] == ("supported" if a > b else "contradicted")
    wide = a ** np.linspace(0.5, 1.0, 8)
    row = verdict_of(one, run_of("gradient_variance", a=wide, b=1 / wide))
    assert sorted([row["ci_low"], row["measured"], row["ci_high"]]) == [row["ci_low"], row["measured"], row["ci_high"]]
    assert math.isfinite(row["ci_low"]) and (row["ci_high"] == math.inf) == (a > b)
    assert (
        claims._exp(709.5) == math.exp(709.5) and claims._exp(710.0) == math.inf and math.isnan(claims._exp(math.nan))
    )


def test_what_a_run_says_nothing_on_is_untested_with_the_reason():
    metrics = run_of(a=draws(0.7), b=draws(0.5))
    would = "; this would test it: gradebench run -e a -e"
    reasons = {
        f"the run has no task digits{would} b -t digits --seeds 0-9": claim(id="1", task="digits"),
        f"the run has no reward of nobody{would} nobody -t imdb --seeds 0-9": claim(id="2", b="nobody"),
        f"the run has no kl of a and b{would} b -t imdb --seeds 0-9": claim(id="3", metric="kl"),
    }
    table = judge(list(reasons.values()), metrics)
    assert (table["verdict"] == "untested").all()
    assert table["reason"].tolist() == list(reasons)


def test_a_task_with_options_is_the_claims_task_too():
    metrics = run_of(task="imdb:corpus=x", a=draws(0.7), b=draws(0.5, seed=1))
    assert verdict_of(claim(), metrics)["verdict"] == "supported"


def test_equal_estimators_are_not_distinguishable():
    row = verdict_of(claim(), run_of(a=draws(0.5), b=draws(0.5)))
    assert row["verdict"] == "not distinguishable"
    assert row["p_value"] == 1 and row["measured"] == 0 and row["seeds_needed"] == math.inf


def test_a_claim_at_its_bound_is_decided_no_more_often_than_stated(verdicts_alone):
    """2,000 nulls at level 0.05; a rate of 0.08 would be seen with probability 0.99."""
    one, false = claim(at_least=0.1), 0
    for seed in range(2000):
        verdict = decided(one, draws(0.6, 7, seed=seed), draws(0.5, 7, seed=9999 + seed))
        false += verdict in ("supported", "contradicted")
    assert false <= scipy.stats.binom.isf(ALPHA, 2000, statistics.ALPHA)
    assert scipy.stats.binom.sf(scipy.stats.binom.isf(ALPHA, 2000, statistics.ALPHA), 2000, 0.08) > 0.99


@pytest.fixture
def detectable():
    """In standard deviations, by 12 seeds; asked for before anything is replaced."""
    return power.detectable_at(12, 1)


@pytest.mark.parametrize("form", ["difference", "ratio"])
def test_the_power_that_is_printed_is_that_of_simulated_runs(detectable, verdicts_alone, form):
    """Seeds of known spread, so that what is printed of each run is the same: 500 runs at the detectable distance.

    The binomial error is 0.018; the t test's power stands for the sign-flip test's within 0.03 at 12 seeds.
    """
    n, spread = 12, 0.01 * math.sqrt(2)
    distance = detectable * spread
    one = claim() if form == "difference" else claim(form="ratio", at_least=1.0)
    seen = 0
    for seed in range(500):
        seen += decided(one, draws(0.5 + distance, n, seed=seed), draws(0.5, n, seed=9999 + seed)) == "supported"
    assert abs(seen / 500 - power.POWER) < 0.03 + 3 * 0.018


def test_power_and_seeds_needed_are_those_of_what_was_measured():
    a, b = draws(0.507, 10), draws(0.5, 10, seed=1)
    row = verdict_of(claim(), run_of(a=a, b=b))
    effect = (a - b).mean() / (a - b).std(ddof=1)
    assert row["verdict"] == "not distinguishable"
    assert row["power"] == power.power_of(10, effect, statistics.ALPHA)
    assert row["seeds_needed"] == power.seeds_for(effect, 1) > 10
    assert row["effect_size"] == statistics.effect_size(a - b)
    assert row["detectable"] == pytest.approx(power.detectable_at(10, 1) * (a - b).std(ddof=1))


def test_where_nothing_could_be_seen_nothing_is_detectable():
    row = verdict_of(claim(), run_of(a=draws(0.7, 4), b=draws(0.5, 4, seed=1)))
    assert (row["verdict"], row["power"], row["detectable"]) == ("underpowered", 0.0, math.inf)
    assert row["seeds_needed"] >= 6


def test_what_is_untested_says_what_would_test_it():
    rows = judge(read_claims(), run_of(rloo=draws(0.7), ppo=draws(0.5)))
    reasons = dict(zip(rows["claim"], rows["reason"], strict=True))
    said = (
        "the run has no task polynomial; this would test it: gradebench run -e reinmax -e st -t polynomial --seeds 0-9"
    )
    assert reasons["reinmax-polynomial-over-st"] == said
    assert reasons["grade-ste-reward-over-ppo"].startswith("the run has no reward of grade-ste; this would test it: ")
    assert reasons["rloo-reward-over-ppo"] == ""


# --- files ------------------------------------------------------------------------------------------------------


def test_the_shipped_claims_are_about_estimators_and_tasks_that_exist():
    for one in read_claims():
        assert [registry.resolve("estimators", side).label for side in one.sides] == one.sides
        assert one.task in registry.entries("tasks")
        assert one.metric in {*schema.METRIC_UNITS, "generalization_gap", "validation_gap"}
        assert any(sign.isdigit() for sign in one.source)


GOOD = '[[claim]]\nid="c"\nsays="s"\nsource="p"\ntask="imdb"\na="a"\nb="b"\nmetric="reward"\nform="ratio"\nat_least=1\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("x = [", "is no TOML"),
        ("", "has no [[claim]]"),
        ("claim = []", "has no [[claim]]"),
        (GOOD + GOOD, "the claim c twice"),
        (GOOD + "at_most=2", "one of at_least and at_most"),
        (GOOD.replace("at_least=1", ""), "one of at_least and at_most"),
        (GOOD.replace("at_least=1", "at_least=nan"), "at_least = nan is no number"),
        (GOOD.replace("at_least=1", "at_least=0"), "above 0"),
        (GOOD.replace("at_least=1", 'at_least="1"'), "is no number"),
        (GOOD.replace('"ratio"', '"quotient"'), "'quotient' is neither"),
        (GOOD.replace('"ratio"', '"value"'), "the value of a has no b"),
        (GOOD.replace('b="b"\n', ""), "a difference and a ratio have one"),
        (GOOD.replace('b="b"', "b=3"), "b = 3 is no text"),
        (GOOD.replace('task="imdb"\n', ""), "lacks task"),
        (GOOD + 'colour="red"', "unknown entry 'colour'"),
        (GOOD + "margin=-1", "a margin is 0 or above"),
        (GOOD + "margin=1", "a ratio's bound is above 0"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, content, said):
    (tmp_path / "claims.toml").write_text(content)
    with pytest.raises(InputError) as refusal:
        read_claims(tmp_path / "claims.toml")
    assert said in str(refusal.value)


def test_the_command_prints_and_writes_the_verdicts(command, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    tables.write_parquet(run_of(a=draws(0.7), b=draws(0.5, seed=1)), run / "metrics.parquet")
    (tmp_path / "claims.toml").write_text(GOOD + GOOD.replace('"c"', '"d"').replace('b="b"', 'b="nobody"'))
    status, out, _ = command("claims", run, "--claims", tmp_path / "claims.toml", "--csv", tmp_path / "out.csv")
    assert status == 0
    assert "supported: s" in out and "claimed a / b >= 1, measured 1.4" in out and "untested: s" in out
    assert "from the bound" in out and "power 1.00 if the truth is as measured; a power of 0.8 from" in out
    table = pd.read_csv(tmp_path / "out.csv")
    assert list(table.columns) == claims.COLUMNS
    assert table["verdict"].tolist() == ["supported", "untested"]
    assert command("claims", run)[0] == 0  # the shipped ones: all untested
    assert command("claims", run, "--claims", "nowhere.toml")[0] == 2
