"""What code of plugins read for the cells of a run beside its source: files, modules and variables of the environment, with
their digests. Runs whose plugins read something else aren't pooled.

An estimator's facts hold it: {name: digest}, as `followed.inputs` names it. What is read isn't told apart by cells of one
process, so that a run may name more than its numbers depend on.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from gradebench.analysis.differences import said
from gradebench.storage.followed import OR

READ = "plugin inputs"  # the item of an estimator's facts
_SHOWN = 3

Part = tuple[Path, Mapping[str, Any]]  # a run, and the facts of its estimators on one task


def united(inputs: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Those of many cells as one; of a name that means several things, all."""
    found: dict[str, set[str]] = {}
    for one in inputs:
        for name, digest in one.items():
            found.setdefault(name, set()).update(digest.split(OR))
    return {name: OR.join(sorted(found[name])) for name in sorted(found)}


def uneven(reads: Iterable[Mapping[str, str | None]]) -> list[str]:
    """Files and variables that cells of one run found otherwise than others did: by full names, what each has `read`."""
    found: dict[str, set[str | None]] = {}
    for read in reads:
        for name, digest in read.items():
            found.setdefault(name, set()).add(digest)
    return sorted(name for name, digests in found.items() if len(digests) > 1)


def of_estimator(facts: Mapping[str, Any]) -> dict[str, str]:
    """An estimator's, of a run's facts; empty where no plugin ran, and of a run that didn't write it down."""
    known = facts.get(READ)
    entries = known.items() if isinstance(known, Mapping) else ()
    return {name: digest for name, digest in entries if isinstance(digest, str)}


def without(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name != READ}


def difference(having: Sequence[Part]) -> str:
    """The first thing that plugins read and found otherwise in two of these runs, in words, else "".

    What two runs have both read has to be the same, whoever read it. Of one estimator, what one run alone read counts if
    the other read something in its place.
    """
    for (folder, mine), (other, theirs) in combinations(having, 2):
        ours, yours = (united(map(of_estimator, one.values())) for one in (mine, theirs))
        for name in sorted(ours.keys() & yours.keys()):
            if ours[name] != yours[name]:
                return f"{name}, which code of plugins read ({folder}: {_short(ours[name])}; {other}: {_short(yours[name])})"
        for estimator in sorted(mine.keys() & theirs.keys()):
            ours, yours = of_estimator(mine[estimator]), of_estimator(theirs[estimator])
            only, others = sorted(ours.keys() - yours.keys()), sorted(yours.keys() - ours.keys())
            if only and others:
                return f"files that plugins read for {estimator} ({folder}: {_few(only)}; {other}: {_few(others)})"
    return ""


def notice(having: Sequence[Part]) -> str:
    """What one run alone has read, in words, else ""."""
    for (folder, mine), (other, theirs) in combinations(having, 2):
        for estimator in sorted(mine.keys() & theirs.keys()):
            ours, yours = of_estimator(mine[estimator]), of_estimator(theirs[estimator])
            for more, fewer, names in ((folder, other, ours.keys() - yours), (other, folder, yours.keys() - ours)):
                if names and ours and yours:
                    return (
                        f"for {estimator}, code of plugins read {_few(sorted(names))} in {more} and not in {fewer}; whether "
                        "its numbers depend on it isn't known"
                    )
    return ""


def _short(digests: str) -> str:
    return OR.join(said(digest, None) for digest in digests.split(OR))


def _few(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
