"""The tables of docs/gradients.md are those of the committed results."""

import math
import re
from pathlib import Path

import pandas as pd
import pytest

from gradebench.plugins.registry import entries

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "gradients.md").read_text(encoding="utf-8")
VERDICTS = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
SHOWN_OF_CARDS = ("bias", "assumptions", "cost", "references")
UNBIASED = ("exact", "reinforce", "rloo", "carms", "unordered-set", "rebar", "relax", "muprop", "a2c")
SHOWN = {
    "gradient_mse_relative": ".3g",
    "gradient_direction_error": ".2f",
    "gradient_variance_relative": ".3g",
    "gradient_bias_relative": ".2g",
}


def interval(value: float, low: float, high: float, form: str, floor: bool) -> str:
    """A value with its interval; of a bias that can't be told from zero, the most that it may be."""
    if math.isnan(value):
        return "-"
    if math.isnan(low):
        return f"{value:{form}}"
    if floor and low <= 0:
        return f"~0 (< {max(high, 0):{form}})"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def probe_table(probes: pd.DataFrame) -> str:
    """One row an estimator, by its mean squared error at the start; the first and the last checkpoint."""
    overall = probes[probes["group"].isna()].set_index(["estimator", "step", "metric"])[["value", "ci_low", "ci_high"]]
    overall = overall[~overall.index.duplicated()]
    first, last = overall.index.unique("step").min(), overall.index.unique("step").max()
    names = ["MSE", "direction", "variance", "bias²"]
    lines = [f"| | {' | '.join(names)} | {', end | '.join(names)}, end |", "|---|" + "--:|" * 8]
    order = overall.xs(("gradient_mse", first), level=("metric", "step"))["value"].sort_values().index
    for estimator in order:
        cells = [
            interval(*overall.loc[(estimator, step, metric)], form, metric == "gradient_bias_relative")
            for step in (first, last)
            for metric, form in SHOWN.items()
        ]
        lines.append(f"| `{estimator}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def toy_table(toy: pd.DataFrame) -> str:
    lines = [
        "| t | estimator | gradient | ln variance, closed form | measured, 95 % interval |",
        "|--:|---|--:|--:|--:|",
    ]
    for row in toy.to_dict("records"):
        measured = (
            f"{row['ln_variance_measured']:.4f} [{row['ln_variance_ci_low']:.4f}, {row['ln_variance_ci_high']:.4f}]"
        )
        closed = f"{row['ln_variance_closed_form']:.4f}"
        lines.append(f"| {row['t']:g} | `{row['estimator']}` | {row['exact_gradient']:g} | {closed} | {measured} |")
    return "\n".join(lines)


def polynomial_table(polynomial: pd.DataFrame) -> str:
    lines = ["| estimator | p | published | measured | within 0.003 |", "|---|--:|--:|--:|---|"]
    for row in polynomial.sort_values(["estimator", "p"]).to_dict("records"):
        verdict = "yes" if row["within_0.003"] else f"no ({row['gap']:+.4f})"
        lines.append(
            f"| `{row['estimator']}` | {row['p']:g} | {row['published_loss']:g} | {row['loss']:.4f} | {verdict} |"
        )
    return "\n".join(lines)


def study_table(study: pd.DataFrame) -> str:
    lines = ["| | check | passed, of 20 seeds |", "|---|---|--:|"]
    lines += [f"| {row['name']} | {row['check']} | {row['passed']} |" for row in study.to_dict("records")]
    return "\n".join(lines)


def verdict_table(study: pd.DataFrame) -> str:
    """One row a question and number of seeds, one column a law, in percent."""
    laws = ["normal", "skewed", "heavy tails", "two modes"]
    lines = [f"| | seeds | {' | '.join(laws)} |", f"|---|--:|{'--:|' * len(laws)}"]
    for (what, seeds), rows in study.groupby(["what", "seeds"], sort=False):
        found = rows.set_index("law")["found"]
        lines.append(
            f"| {what} | {seeds} | {' | '.join(f'{100 * found[law]:.1f}' if law in found else '-' for law in laws)} |"
        )
    return "\n".join(lines)


def test_the_page_shows_the_study_of_verdicts_and_it_keeps_its_promises():
    """Of all that tests decide: at most what was promised, within four binomial errors.

    Less than promised is no fault: a family of several, Friedman's chi-squared of ten tasks, a law with two modes.
    """
    study = pd.read_csv(ROOT / "results" / "verdicts" / "study.csv").sort_values(["what", "seeds"], kind="stable")
    assert verdict_table(study) in VERDICTS
    decided = study["what"].str.contains("apart|tier|decided|supported|Friedman|interval of a difference")
    tests = study[decided & ~study["what"].str.contains("one side")]
    assert len(tests) == 135 and tests["draws"].min() == 2000
    assert (tests["found"] <= tests["promised"] + 4 * tests["standard_error"]).all()


@pytest.mark.parametrize("run", ["gradients-enumerable-lm", "gradients-imdb-embedded"])
def test_the_page_shows_the_committed_probes(run):
    assert probe_table(pd.read_csv(ROOT / "results" / run / "probes.csv")) in PAGE


@pytest.mark.parametrize(("file", "table"), [("toy", toy_table), ("polynomial", polynomial_table)])
def test_the_page_shows_the_committed_anchors(file, table):
    assert table(pd.read_csv(ROOT / "results" / "anchors" / f"{file}.csv")) in PAGE


def test_anchors_agree_with_closed_forms_and_published_losses():
    toy = pd.read_csv(ROOT / "results" / "anchors" / "toy.csv")
    error = (toy["ln_variance_measured"] - toy["ln_variance_closed_form"]).abs()
    half_width = (toy["ln_variance_ci_high"] - toy["ln_variance_ci_low"]) / 2
    # Two values with probability 1/2 each have the largest variance of all such laws: its estimate is off by 1 / draws
    # at the second order, which no interval of the first order shows.
    assert (error < half_width + 2 / toy["draws"]).all()
    assert pd.read_csv(ROOT / "results" / "anchors" / "polynomial.csv")["within_0.003"].all()


def test_the_study_passed_every_truth_and_caught_every_mutant_on_every_seed():
    study = pd.read_csv(ROOT / "results" / "check" / "study.csv")
    assert study_table(study) in PAGE
    assert (study["seeds"] == 20).all()
    assert (study.loc[study["kind"] == "true", "passed"] == 20).all()
    assert (study.loc[study["kind"] == "mutant", "passed"] == 0).all()


def test_unbiased_estimators_cover_zero_and_biased_ones_show_their_bias():
    """By intervals at 95 % that are too wide near zero; at three checkpoints."""
    probes = pd.read_csv(ROOT / "results" / "gradients-enumerable-lm" / "probes.csv")
    bias = probes[(probes["metric"] == "gradient_bias_relative") & probes["group"].isna()]
    unbiased = bias[bias["estimator"].isin(UNBIASED)]
    assert set(unbiased["estimator"]) == set(UNBIASED)
    assert ((unbiased["ci_low"] <= 0) & (unbiased["ci_high"] >= 0)).all()
    start = bias[bias["step"] == 0].set_index("estimator")
    biased = [
        "grade",
        "grade-ste",
        "st",
        "gumbel-rao",
        "gapped-st",
        "reinmax",
        "decoupled-st",
        "ppo",
        "grpo",
        "dr-grpo",
    ]
    assert (start.loc[biased, "ci_low"] > 0).all()


def catalogue() -> str:
    """docs/estimators.md's tables, one a family, from the cards that the docstrings hold."""
    builtin = [entry for entry in entries("estimators").values() if entry.builtin]
    lines = []
    for family in sorted({entry.card["family"] for entry in builtin}):
        lines += [f"## {family[0].upper()}{family[1:]}", ""]
        lines += ["| | bias | requires | cost | source |", "|---|---|---|---|---|"]
        for entry in builtin:
            if entry.card["family"] == family:
                texts = [entry.card[field].replace("|", "\\|") for field in SHOWN_OF_CARDS]
                lines.append(f"| **`{entry.name}`** {' | '.join([entry.summary, *texts])} |")
        lines.append("")
    return "\n".join(lines)


def test_the_catalogue_page_says_what_the_docstrings_say():
    assert catalogue() in (ROOT / "docs" / "estimators.md").read_text(encoding="utf-8")


# --- the map of the house ---------------------------------------------------------------------------------------

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").glob("*.md")]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_the_package_or_the_tests_that_a_page_names_is_there(page):
    named = re.findall(
        r"`((?:gradebench|estimators|tasks|tests|benchmarks)/[\w/.-]+\.\w+)`", page.read_text(encoding="utf-8")
    )
    assert [name for name in named if name == name.lower() and not (ROOT / name).is_file()] == []


def test_every_room_and_every_module_on_a_cells_way_is_on_the_map():
    rooms = {path.parent.name for path in (ROOT / "gradebench").glob("*/__init__.py")}
    table = ARCHITECTURE.partition("## Rooms")[2].partition("##")[0]
    assert set(re.findall(r"`(\w+)/`", table)) - {"gradebench", "estimators", "tasks"} == rooms
    way = ARCHITECTURE.partition("## The way of one cell")[2].partition("## To add")[0]
    missing = [
        name for name in re.findall(r"`([a-z_]+/[a-z_]+\.py)`", way) if not (ROOT / "gradebench" / name).is_file()
    ]
    assert missing == []


PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "results" / "README.md"]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "benchmarks" / "README.md"], ids=lambda page: page.name)
def test_relative_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    lost = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not lost
