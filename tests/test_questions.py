"""docs/questions: every table is what its command prints, and what the answers say of them holds."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from gradebench.estimators.policy_gradient import PolicyGradient
from gradebench.measurement.expectation import expectation
from gradebench.measurement.moments import flatten
from gradebench.plugins import registry
from gradebench.problems.enumerable import random_sequence_problem

ROOT = Path(__file__).parent.parent
QUESTIONS = registry.load_file(str(ROOT / "benchmarks" / "questions.py"), "renewed").factory.__globals__
PAGES = sorted((ROOT / "docs" / "questions").glob("*.md"))


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "gradebench enumerate -t" in page.read_text()], ids=lambda page: page.stem
)
def test_a_pages_tables_are_what_its_commands_print(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("\n| estimator |") == text.count("gradebench enumerate -t")
    assert QUESTIONS["renewed"](text) == text


def test_every_page_asks_where_it_is_argued_and_answers():
    pages = [page for page in PAGES if page.stem != "README"]
    assert len(pages) >= 10
    index = (ROOT / "docs" / "questions" / "README.md").read_text(encoding="utf-8")
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "Argued in [" in text and "## Answer" in text and "## When it matters" in text, page.name
        assert f"]({page.name})" in index


def test_the_bias_of_token_weights_grows_with_the_length_and_that_of_sequence_weights_is_none():
    found = pd.read_csv(QUESTIONS["GROWTH"])
    token, sequence = (
        list(found[found["importance"] == name].sort_values("length")["bias_squared"]) for name in ("token", "sequence")
    )
    assert token == sorted(token) and token[0] < 1e-20 and token[1] > 1e-3
    assert max(sequence) < 1e-20
    assert QUESTIONS["bias_at"](2, "token") == pytest.approx(token[1], rel=1e-6)
    assert QUESTIONS["growth_table"]() in (ROOT / "docs" / "questions" / "importance-weights.md").read_text(
        encoding="utf-8"
    )


def test_the_mean_of_each_texts_tokens_follows_another_objective():
    """E[(r - J) / length] with J as a constant; leave-one-out means have the same expectation as J."""
    problem = random_sequence_problem(3, 3, 1, end=True)
    z = problem.support().unsqueeze(1)
    with torch.no_grad():
        p, r = problem.log_prob(z).sum(-1).exp(), problem.raw_reward(z)
        length, value = problem.alive(z).sum(-1), (p * r).sum()
    objective = (problem.log_prob(z).sum(-1).exp() * (r - value) / length).sum()
    expected = flatten(problem.grad(objective))
    found = expectation(PolicyGradient(n=2, aggregate="sequence-mean"), problem).mean
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    true = flatten(problem.exact_gradient())
    assert float(torch.cosine_similarity(found, true, 0)) < 0.9999


def test_the_groups_mean_shortens_the_gradient_by_its_share():
    problem = random_sequence_problem(2, 2, 2, beta=0.1, end=True)
    for n in (2, 3, 4):
        found = expectation(PolicyGradient(n=n, baseline="group", kl="k1"), problem).mean
        torch.testing.assert_close(found, (1 - 1 / n) * flatten(problem.exact_gradient()), rtol=0, atol=1e-12)
