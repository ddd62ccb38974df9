"""The contract of an estimator, executable: what `gradebench check` runs, on problems small enough to be exact.

The statistical checks of one run share a false-alarm rate of FALSE_ALARM. Each looks along up to
eight directions: the gradient, the deviation that a pilot found, which is where a bias would show, and others at random.
It draws as much as it takes to see a bias of MARGIN of the gradient's norm that lies within their span with probability
0.999, and of a bias outside of it nothing is promised. A promise counts as kept only if, besides, the intervals along
these directions exclude a bias of EQUIVALENCE. The problems are fixed: V = 3, T = 3, a policy that heeds its prefix, a reward that is neither additive nor
quadratic; fewer positions or a simpler reward would hide a wrong detach or prefix.
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
}


def check(make: Make, seed: int = 0, only: Sequence[str] = ()) -> list[Finding]:
    """The findings on the estimator that `make` builds, in the order of the checks; `only` some of them, by name."""
    try:
        subject = Subject(make, seed)
    except Exception as error:  # noqa: BLE001 - an author's code may raise anything; that is the finding
        return [Finding("can be built", "fail", _line(error), "the constructor, with its default options")]
    findings: list[Finding] = []
    for name, function in CHECKS.items():
        if only and name not in only:
            continue
        findings += _found(name, function, subject)
        if function is behaviour.shape and findings[-1].status == "fail":
            return findings  # nothing else could be read
    return findings


def report(spec: str, seed: int) -> dict[str, Any]:
    """What `gradebench check --json` prints. Raises InputError for a spec that stands for no estimator."""
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
    """The findings of one check; whatever the estimator raises is one."""
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
