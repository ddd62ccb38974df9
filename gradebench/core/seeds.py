"""Seeds as the command line spells them."""

import re

from gradebench.core.errors import InputError


def parse_seeds(text: str) -> list[int]:
    """ "0-4", "3", "0,2,5-7" to seeds in order. Raises InputError for anything else, and for repeats."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise InputError(f"--seeds {text}: {part.strip() or 'nothing'!r} is no range; write 0-9 or 0,2,5-7")
        if last - first >= 10_000:
            raise InputError(f"--seeds {text}: more than 10,000 seeds")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {text}: a seed stands there twice")
    return seeds
