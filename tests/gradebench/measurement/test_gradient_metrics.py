"""What intervals of gradient metrics owe where the first order shows nothing; the rest is in test_probes."""

import torch

from gradebench import generator
from gradebench.measurement.gradient_metrics import gradient_metrics, summaries
from gradebench.measurement.moments import Moments, Reference


def test_the_interval_of_a_variance_covers_it_also_for_two_equally_likely_values():
    """All draws are equally far from the true mean, so only the noise of their own mean moves the estimate.

    400 sets; the jackknife alone covers in 86 % of them.
    """
    rng, centre, inside = generator("cpu", "two values"), torch.zeros(1, dtype=torch.float64), 0
    for _ in range(400):
        moments = Moments(centre, [1])
        moments.add(2.0 * (torch.rand(40, 1, generator=rng, dtype=torch.float64) < 0.5) - 1.0)
        found = gradient_metrics(summaries(moments, Reference.known(centre, [1]), ["a"])[""])["gradient_variance"]
        inside += found.low <= 1.0 + 1e-12 and found.high >= 1.0 - 1e-12
    assert inside >= 0.92 * 400
