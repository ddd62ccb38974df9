"""How often the crossing of two simulated curves is found, and held by its interval; the table in docs/statistics.md.

    python benchmarks/crossing_study.py

Each seed's curve of differences is the true one plus an offset, a slope and a piecewise linear wander of its own, all
normal, over two decades of budget. The true difference is 0, or a line in log budget that crosses in the middle.
"""

import numpy as np

from gradebench.analysis import crossings

DRAWS, GRID, KNOTS = 400, 65, 8
OFFSET, SLOPE, WANDER = 0.25, 0.25, 0.15  # standard deviations; the line falls from 0.5 to -0.5


def differences(seeds: int, slope: float, rng: np.random.Generator) -> np.ndarray:
    """One draw, (seeds, GRID)."""
    x = np.linspace(0, 1, GRID)
    wander = [np.interp(x, np.linspace(0, 1, KNOTS), w) for w in rng.normal(0, WANDER, (seeds, KNOTS))]
    offset, slopes = rng.normal(0, OFFSET, (seeds, 1)), rng.normal(0, SLOPE, (seeds, 1))
    return slope * (0.5 - x) + np.array(wander) + offset + slopes * (x - 0.5)


def main() -> None:
    budgets, middle = 10.0 ** np.linspace(0, 2, GRID), GRID // 2
    print("seeds  equal: a lead anywhere  crossing: held  supported")
    for seeds in (6, 8, 10, 14, 20):
        rng = np.random.default_rng(1)
        alarms = sum(bool(crossings.supported_leads(differences(seeds, 0.0, rng), rng).any()) for _ in range(DRAWS))
        held = found = 0
        for _ in range(DRAWS):
            drawn = differences(seeds, 1.0, rng)
            leads = crossings.supported_leads(drawn, rng)
            held += leads[middle] == 0  # the true crossing is among the budgets: no lead there is right
            found += crossings.crossing(budgets, drawn, leads).supported
        print(f"{seeds:5}  {alarms / DRAWS:22.1%}  {held / DRAWS:14.1%}  {found / DRAWS:9.1%}")


if __name__ == "__main__":
    main()
