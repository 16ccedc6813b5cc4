"""The statistics that reports need: quantiles, means with confidence intervals, and Jain's index of fairness.

Used by the report and the benches. It needs no numerical library, so that simulations run wherever llmosd does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

# Student's t for a two-sided interval of 95%, by degrees of freedom from 1 on; the last value holds for all above.
STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042, 1.960),
)


class Estimate(NamedTuple):
    """A mean, and half the width of its 95% confidence interval, which is infinite for a single value."""

    mean: float
    half: float

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self.mean + self.half

    def __str__(self) -> str:
        return f"{self.mean:.3g}" if math.isinf(self.half) else f"{self.mean:.3g} ± {self.half:.2g}"


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one or more independent `values`, with its confidence interval by Student's t."""
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, math.inf)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Estimate(mean, STUDENT[min(count - 2, len(STUDENT) - 1)] * math.sqrt(variance / count))


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which a `share` of the sorted values lies, by linear interpolation; nan without values."""
    if not ordered:
        return math.nan
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def jain(shares: Sequence[float]) -> float:
    """Jain's index: 1 if all shares are equal, 1/n if one of n has everything (Jain, Chiu, Hawe, DEC-TR-301, 1984)."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0
