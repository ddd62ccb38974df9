"""The checks that `gradebench check` runs on an estimator, on problems small enough for exact gradients.

All statistical checks of one run together raise a false alarm with probability FALSE_ALARM at most. Each tests the mean
gradient along up to eight directions: the exact gradient, the deviation that a pilot sample found, which is where a bias
would show, and random ones. The number of draws is chosen so that a bias of MARGIN of the gradient's norm, within the span
of these directions, is detected with probability 0.999; a bias outside of the span may go unseen. An estimator passes only if
the confidence intervals along these directions also exclude a bias of EQUIVALENCE.

The problems are fixed: V = 3 tokens, T = 3 positions, a policy that depends on its prefix, and a reward that is neither
additive nor quadratic in the tokens. With fewer positions or a simpler reward, a wrong detach or prefix could go unseen.
"""

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from gradebench.checks import behaviour, statistical
from gradebench.checks.statistical import FALSE_ALARM, MARGIN
from gradebench.checks.subject import Failed, Finding, Make, Skipped, Subject
from gradebench.core.global_state import put_back
from gradebench.plugins import registry

CHECKS: dict[str, Callable[[Subject], str | Sequence[Finding]]] = {
    "keeps the shape of its answer": behaviour.shape,
    "deterministic given the generator": behaviour.deterministic,
    "no hidden randomness": behaviour.no_hidden_randomness,
    "leaves the policy alone": behaviour.leaves_alone,
    "frozen by eval()": behaviour.frozen,
    "own loss": behaviour.own_loss,
    "finite at extreme logits": behaviour.extreme,
    "finite under autocast": behaviour.autocast,
    "needs": behaviour.needs,
    "ledger": behaviour.ledger,
    "scale": behaviour.scale,
    "shift": statistical.shift,
    "pathwise": statistical.pathwise,
    "law of the draws": statistical.law,
    "unbiased if": statistical.conditions,
    "unbiased": statistical.unbiased,
    "unbiased off policy": statistical.corrected,
}


def check(make: Make, seed: int = 0, only: Sequence[str] = ()) -> list[Finding]:
    """The findings about the estimator that `make` builds, in the order of CHECKS; with `only`, of the checks it names."""
    try:
        subject = Subject(make, seed)
    except Exception as error:  # noqa: BLE001 - an author's code may raise anything, and that is the finding
        return [Finding("can be built", "fail", _line(error), "the constructor, with its default options")]
    findings: list[Finding] = []
    for name, function in CHECKS.items():
        if only and name not in only:
            continue
        findings += _found(name, function, subject)
        if function is behaviour.shape and findings[-1].status == "fail":
            return findings  # the other checks could not read the estimates
    return findings


def report(spec: str, seed: int) -> dict[str, Any]:
    """What `gradebench check --json` prints. Raises InputError if no estimator has this spec."""
    resolved = registry.resolve("estimators", spec)
    torch.set_num_threads(1)  # the problems are tiny
    findings = check(lambda **options: replace(resolved, params=resolved.params | options).create(), seed)
    return {
        "estimator": resolved.label,
        "params": resolved.params,
        "source": resolved.source,
        "seed": seed,
        "false_alarm_rate": FALSE_ALARM,
        "margin": MARGIN,
        "passed": all(finding.status != "fail" for finding in findings),
        "findings": [asdict(finding) for finding in findings],
    }


def _found(name: str, function: Callable[[Subject], Any], subject: Subject) -> Iterator[Finding]:
    """The findings of one check; an exception of the estimator is a finding too."""
    state = torch.get_rng_state()
    try:
        with put_back("the estimator"):  # for the next check
            answer = function(subject)
        for detail in [answer] if isinstance(answer, str) else answer:
            yield detail if isinstance(detail, Finding) else Finding(name, "pass", detail)
    except Failed as failure:
        yield Finding(name, "fail", str(failure), failure.advice)
    except Skipped as reason:
        yield Finding(name, "skip", str(reason))
    except Exception as error:  # noqa: BLE001
        yield Finding(name, "fail", _line(error), _place(error))
    finally:
        torch.set_rng_state(state)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _place(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(place.filename).name}, line {place.lineno}"
