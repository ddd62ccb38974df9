"""Rankings that group names that aren't significantly different: tiers, and a compact letter display."""

from collections.abc import Callable, Collection, Sequence


def tiers(ranked: Sequence[str], supported: Callable[[str, str], bool] | Collection[tuple[str, str]]) -> dict[str, int]:
    """The tier of every name, from 1; `ranked` is best first. A tier is its first name and those below that aren't
    significantly different from it.

    Walks down the ranking. The first name leads tier 1; a new tier opens at the first name whose difference from the
    leader of the current tier is supported, and that name leads the new tier. Two names in different tiers need not
    differ, and two in one tier may: `letters` shows every pair.

    `supported` is called with (leader, name); a collection of pairs holds (higher, lower).

    Raises        ValueError if a name comes twice.
    """
    if len(set(ranked)) != len(ranked):
        raise ValueError(f"names must be distinct, got {list(ranked)}")
    is_supported = supported if callable(supported) else lambda leader, name: (leader, name) in supported
    tier_of: dict[str, int] = {}
    tier, leader = 0, None
    for name in ranked:
        if leader is None or is_supported(leader, name):
            tier, leader = tier + 1, name
        tier_of[name] = tier
    return tier_of


def letters(ranked: Sequence[str], different: Collection[tuple[str, str]]) -> dict[str, str]:
    """A compact letter display: two names share a letter exactly if they aren't significantly different.

    `ranked` is best first, and the best has the letter a; `different` holds pairs in either order. After z come a2, b2.

    With          each letter a maximal set of names without a different pair. Sets are added until every pair that
                  isn't different is in one; then sets whose pairs are all in others are removed
    Raises        ValueError if a name comes twice.
    Source        Piepho 2004, for the display; Gramm et al. 2007, for covering by cliques.
    """
    if len(set(ranked)) != len(ranked):
        raise ValueError(f"names must be distinct, got {list(ranked)}")
    apart = {frozenset(pair) for pair in different}

    def alike(*pair: str) -> bool:
        return frozenset(pair) not in apart

    groups: list[set[str]] = []
    for position, name in enumerate(ranked):
        for other in ranked[position:]:  # first the pair of a name with itself: each name needs a letter
            if alike(name, other) and not any(name in group and other in group for group in groups):
                group = {name, other}
                for further in ranked:
                    if further not in group and all(alike(further, member) for member in group):
                        group.add(further)
                groups.append(group)
    for group in groups[::-1]:
        others = [each for each in groups if each is not group]
        if all(any(a in each and b in each for each in others) for a in group for b in group):
            groups = others
    groups.sort(key=lambda group: sorted(map(ranked.index, group)))
    return {name: "".join(_letter(i) for i, group in enumerate(groups) if name in group) for name in ranked}


def _letter(place: int) -> str:
    """a to z, then a2 to z2."""
    return chr(ord("a") + place % 26) + (str(place // 26 + 1) if place >= 26 else "")
