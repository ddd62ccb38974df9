"""Bias against variance over training, by the leaderboard: the whole bias, and beside it that of the direction alone."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from gradebench.measurement.gradient_metrics import Interval
from gradebench.reporting import bias_plot, figure
from gradebench.reporting.bias_plot import Point
from gradebench.reporting.figure import Figure

DIRECTION = "squared bias of direction, 1 - cos²"
_VARIANCE = "gradient_variance_relative"
WITH_ENDS = ("", "_ci_low", "_ci_high")
BAND = "In the band: biases that aren't significantly different from 0, with a line up to the upper limit."
ABOUT_DIRECTION = (
    "The bias that remains after scaling the mean gradient by the best factor, as a learning rate can: 1 - cosine² to the "
    "true gradient."
)


def shown(board: pd.DataFrame, probed: Sequence[Figure]) -> list[Figure]:
    """Bias against variance: over training, with intervals over seeds, and by the probes, with intervals over draws.

    A single seed has no interval, so that the probes are then shown alone where there are any.
    """
    over_training = _over_training(board)
    if not over_training:
        return list(probed)
    if board["gradient_bias_squared_ci_low"].isna().all() and probed:
        return [replace(probed[0], name=over_training[0].name), *probed[1:]]
    return [*over_training, *probed]


def of_direction(cosine: Interval) -> Interval:
    """1 - cos² of a cosine with its interval, which may contain 0."""
    limited = [min(max(end, -1.0), 1.0) for end in (cosine.value, cosine.low, cosine.high)]
    value, *ends = (1 - end * end if math.isfinite(end) else math.nan for end in limited)
    widest = 1.0 if cosine.low < 0 < cosine.high else max(ends)
    return Interval(value, min(ends), widest)


def _over_training(board: pd.DataFrame) -> list[Figure]:
    """By the leaderboard's means over seeds and checkpoints."""
    means = "means over training with 95 % intervals over seeds"
    whole = _points(board, "gradient_bias_squared")
    found = []
    if len(whole) > 1:
        caption = (
            f"Relative variance against relative squared bias of one gradient estimate, {means}. {BAND} Low variance doesn't "
            f"help an estimator whose gradient points elsewhere.{figure.without_number(board, whole)}"
        )
        picture = bias_plot.draw({"": whole}, "relative variance", "relative squared bias")
        rows = board[board["estimator"].isin(whole)]
        columns = ["estimator", *(f"{name}{end}" for name in (_VARIANCE, "gradient_bias_squared") for end in WITH_ENDS)]
        found.append(Figure("bias-against-variance", "Bias against variance", picture, caption, rows, columns))
    cosines = _points(board, "gradient_cosine")
    if found and len(cosines) > 1:
        turned = {name: Point(point.variance, of_direction(point.bias)) for name, point in cosines.items()}
        caption = f"{ABOUT_DIRECTION} The same variances, {means}. {BAND}{figure.without_number(board, turned)}"
        picture = bias_plot.draw({"": turned}, "relative variance", DIRECTION)
        data = pd.DataFrame([row_of(name, point) for name, point in turned.items()])
        title = "Bias of direction against variance"
        found.append(Figure("direction-against-variance", title, picture, caption, data, list(data.columns)))
    return found


def row_of(name: str, point: Point) -> dict[str, object]:
    """A point of a figure of directions as a row of its numbers."""
    row: dict[str, object] = {"estimator": name}
    for base, one in (("variance", point.variance), ("direction_bias", point.bias)):
        row |= {f"{base}{end}": value for end, value in zip(WITH_ENDS, (one.value, one.low, one.high), strict=True)}
    return row


def _points(board: pd.DataFrame, bias: str) -> dict[str, Point]:
    """Those estimators that have a relative variance and this column."""
    points = {}
    columns = [f"{name}{end}" for name in (_VARIANCE, bias) for end in WITH_ENDS]
    for name, *values in board[["estimator", *columns]].itertuples(index=False):
        numbers = [math.nan if pd.isna(value) else float(value) for value in values]
        if numbers[0] > bias_plot.ROUNDING and math.isfinite(numbers[0]) and math.isfinite(numbers[3]):
            points[str(name)] = Point(Interval(*numbers[:3]), Interval(*numbers[3:]))
    return points
