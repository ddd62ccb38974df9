"""The best learning rate from a few noisy trials, by a smooth fit along its logarithm, and the rates tied with it.

Axis letters: u units (seeds), m rates tried, g points of the fit.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

BANDWIDTH = 1.0  # of the local fit, in mean distances between the logarithms of neighbouring rates
POINTS = 241  # of the fit, evenly spaced in the logarithm
TIE_LEVEL = 0.05  # one-sided


@dataclass(frozen=True)
class Choice:
    """The rate with the highest fitted objective.

    rate                        rounded to two digits
    objective, standard_error   of the fit there, the error over units
    rate_low, rate_high         the rates around it whose fitted objective isn't significantly lower; NaN for one unit
    end                         "low" or "high" if the maximum is at that end of the rates, else ""
    """

    rate: float
    objective: float
    standard_error: float
    rate_low: float
    rate_high: float
    end: str


def fit(rates: ArrayLike, objectives: ArrayLike, at: ArrayLike) -> Floats:
    """Each unit's smooth curve (u, g) through its objectives (u, m) at the `rates` (m,), read `at` rates (g,).

    With          at each point a quadratic in ln rate by weighted least squares. Weights are a Gaussian kernel,
                  BANDWIDTH mean distances wide, divided by the variance between units, which is shrunk by half towards
                  its mean over rates, because few units estimate it poorly
    With fewer than three rates, linear interpolation of the objectives instead.
    """
    x, y, points = (np.asarray(values, dtype=np.float64) for values in (rates, objectives, at))
    x, points = np.log(x), np.log(points)
    order = np.argsort(x)
    x, y = x[order], y[:, order]
    if len(x) < 3:
        return np.stack([np.interp(points, x, unit) for unit in y])
    width = BANDWIDTH * (x[-1] - x[0]) / (len(x) - 1)
    precision = _precision(y)
    distance = (x - points[:, None]) / width  # (g, m)
    root = np.sqrt(np.exp(-0.5 * distance**2) * precision)
    design = np.stack([np.ones_like(distance), distance, distance**2], -1)  # (g, m, 3)
    smoother = np.linalg.pinv(design * root[..., None])[:, 0] * root  # (g, m): the fit's value at each point
    return np.asarray(y @ smoother.T, dtype=np.float64)


def _precision(y: Floats) -> Floats:
    """Weights (m,) from the spread between units; equal if there is no spread."""
    if len(y) < 2:
        return np.ones(y.shape[1])
    variance = y.var(axis=0, ddof=1)
    shrunk = (variance + variance.mean()) / 2
    return shrunk.mean() / shrunk if variance.any() else np.ones(y.shape[1])


def choose(rates: ArrayLike, objectives: ArrayLike) -> Choice:
    """The rate at which the mean over units of the fit is highest, within the `rates` (m,); objectives (u, m), finite.

    Among equal maxima, the smallest rate. Ties come from a paired t-test of the fit's differences over units, which are
    seeds that all rates share.

    Raises        ValueError without rates, and for objectives that aren't finite.
    """
    x, y = np.asarray(rates, dtype=np.float64), np.asarray(objectives, dtype=np.float64)
    if not x.size or y.shape != (len(y), len(x)) or not np.isfinite(y).all():
        raise ValueError(f"a finite objective of each unit at each rate is needed, got {y.shape} for {x.shape}")
    points = np.sort(x) if len(x) < 3 else np.geomspace(x.min(), x.max(), POINTS)
    curve = fit(x, y, points)
    mean = curve.mean(axis=0)
    best = int(np.argmax(mean >= mean.max() - 1e-9 * max(1.0, abs(mean.max()))))
    error, low, high = math.nan, math.nan, math.nan
    if len(curve) > 1:
        error = float(scipy.stats.sem(curve[:, best]))
        behind = curve[:, [best]] - curve
        critical = float(scipy.stats.t.isf(TIE_LEVEL, len(curve) - 1))
        worse = behind.mean(axis=0) > critical * scipy.stats.sem(behind, axis=0) + 1e-12
        below, above = np.flatnonzero(worse[:best]), np.flatnonzero(worse[best:])
        low = float(points[below[-1] + 1 if len(below) else 0])
        high = float(points[best + above[0] - 1 if len(above) else -1])
    end = "" if len(points) == 1 else {0: "low", len(points) - 1: "high"}.get(best, "")
    return Choice(two_digits(points[best]), float(mean[best]), error, two_digits(low), two_digits(high), end)


def two_digits(value: float) -> float:
    return float(f"{value:.1e}")


def even_rates(low: float, high: float, count: int) -> list[float]:
    """`count` rates from low to high, evenly spaced in the logarithm, including both ends; one rate: the middle."""
    rates: Any = np.geomspace(low, high, count) if count > 1 else [math.sqrt(low * high)]
    return [two_digits(rate) for rate in rates]


def extended(rates: ArrayLike, end: str) -> float:
    """The next rate beyond the "low" or "high" end, by the mean factor between neighbours."""
    x = np.sort(np.asarray(rates, dtype=np.float64))
    factor = (x[-1] / x[0]) ** (1 / (len(x) - 1))
    return two_digits(x[-1] * factor if end == "high" else x[0] / factor)
