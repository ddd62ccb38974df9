"""Every built-in estimator passes `gradebench check`, and every wrong twin of one fails the check that is meant for it.

A twin counts as caught only if it is caught with every one of SEEDS seeds. True estimators pass with TRUE_SEEDS seeds
here; one that is right fails with probability 1e-3 a seed. benchmarks/check_study.py runs all of both with 20 seeds
(results/check). twins.py has the lists.
"""

from pathlib import Path

import pytest

from gradebench import registry
from gradebench.conformance import check

SEEDS = range(3)
TRUE_SEEDS = range(1)
TRUE, MUTANTS = (
    registry.load_file(str(Path(__file__).parent / "twins.py"), name).factory for name in ("TRUE", "MUTANTS")
)


@pytest.mark.parametrize("seed", TRUE_SEEDS)
@pytest.mark.parametrize("name", TRUE)
def test_built_in_estimator_keeps_its_contract(name, seed):
    assert [finding for finding in check(TRUE[name], seed) if finding.status == "fail"] == []


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_twin_is_caught_on_every_seed(name):
    make, meant = MUTANTS[name]
    for seed in SEEDS:
        statuses = [finding.status for finding in check(make, seed, only=[meant])]
        assert "fail" in statuses, f"seed {seed}: {statuses}"
