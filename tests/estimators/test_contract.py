"""Every built-in estimator passes `gradebench check`, and every mutant of one fails the check that is meant for it.

One seed here: a right estimator fails with probability 1e-3 on a new one. benchmarks/check_study.py runs all with 20
seeds (results/check). mutants.py has the lists.
"""

from pathlib import Path

import pytest

from gradebench.checks.conformance import check
from gradebench.plugins import registry

SEED = 0
TRUE, MUTANTS = (
    registry.load_file(str(Path(__file__).parent / "mutants.py"), name).factory for name in ("TRUE", "MUTANTS")
)


@pytest.mark.parametrize("name", TRUE)
def test_built_in_estimator_keeps_its_contract(name):
    assert [finding for finding in check(TRUE[name], SEED) if finding.status == "fail"] == []


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name):
    make, meant = MUTANTS[name]
    assert "fail" in [finding.status for finding in check(make, SEED, only=[meant])]


@pytest.mark.parametrize("name", [name for name, entry in registry.entries("estimators").items() if entry.builtin])
def test_every_built_in_estimator_is_true_here_and_has_two_mutants(name):
    cls = registry.load("estimators", name).factory

    def made(make):
        return isinstance(make(), cls)

    assert any(made(make) for make in TRUE.values())
    if cls.unbiased:
        assert sum(made(make) for make, _ in MUTANTS.values()) >= 2
