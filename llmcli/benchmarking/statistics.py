"""Medians with distribution-free intervals, paired ratios, and the signs of a disturbed run.

The interval comes from order statistics: of n independent samples the k-th smallest and the k-th largest enclose the
median with probability 1 - 2 P(Binomial(n, 1/2) < k), whatever the distribution (Conover, Practical Nonparametric
Statistics, 3.2). Fewer than six samples reach no 95 % interval, and none is reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

LEVEL = 0.95
WIDE = 0.10
DRIFT = 0.10


@dataclass(frozen=True)
class Estimate:
    """A median with its interval; low and high are None when there are too few samples for one."""

    median: float
    low: float | None
    high: float | None
    n: int

    @property
    def spread(self) -> float | None:
        """Width of the interval over the median, or None without an interval."""
        if self.low is None or self.high is None or self.median == 0:
            return None
        return (self.high - self.low) / abs(self.median)

    def scaled(self, factor: float) -> Estimate:
        """The estimate in another unit; factor > 0."""
        low = None if self.low is None else self.low * factor
        high = None if self.high is None else self.high * factor
        return Estimate(self.median * factor, low, high, self.n)


def interval_rank(n: int, level: float = LEVEL) -> int:
    """The largest k for which [k-th smallest, k-th largest] covers the median with at least `level`; 0 if none."""
    tail, rank = 0.0, 0
    while rank < n:
        tail += math.comb(n, rank) * 0.5**n
        if 2 * tail > 1 - level:
            break
        rank += 1
    return rank


def estimate(samples: Sequence[float], level: float = LEVEL) -> Estimate:
    """Median and order-statistics interval of at least one sample."""
    if not samples:
        raise ValueError("estimate needs at least one sample")
    ordered = sorted(samples)
    rank = interval_rank(len(ordered), level)
    low, high = (ordered[rank - 1], ordered[-rank]) if rank else (None, None)
    return Estimate(float(median(ordered)), low, high, len(ordered))


def estimate_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Median and interval of the ratios of samples taken in the same rounds, so that slow spells cancel."""
    if len(numerators) != len(denominators):
        raise ValueError(f"paired samples differ in number: {len(numerators)} and {len(denominators)}")
    return estimate([a / b for a, b in zip(numerators, denominators, strict=True)])


def verdict(value: Estimate, goal: float) -> str:
    """ "met" or "below" when the whole interval lies on one side of the goal, else "inconclusive"."""
    if value.low is None or value.high is None:
        return "inconclusive"
    if value.low >= goal:
        return "met"
    return "below" if value.high < goal else "inconclusive"


def drift(samples: Sequence[float]) -> float:
    """How much slower the later half of the times is than the earlier half: 0.2 is 20 %; 0 below six samples."""
    if len(samples) < 6:
        return 0.0
    half = len(samples) // 2
    return float(median(samples[-half:]) / median(samples[:half]) - 1)


def disturbances(times: Sequence[float]) -> list[str]:
    """What makes these times doubtful, in words; empty when nothing does."""
    found = []
    value = estimate(times)
    if value.spread is None:
        found.append(f"{value.n} samples give no 95 % interval (six or more do)")
    elif value.spread > WIDE:
        found.append(f"the 95 % interval is {value.spread:.0%} of the median wide")
    if drift(times) > DRIFT:
        found.append(f"the later half is {drift(times):.0%} slower than the earlier half (throttling or other load)")
    return found
