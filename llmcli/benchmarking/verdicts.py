"""Is B slower than A? Decided while sampling: rounds of A B B A, looks at fixed shares of a time budget, a verdict.

A figure is B's speed over A's: the ratio of the medians of their times, in units of their round's level, so that what
slows a whole round cancels. Its interval is the percentile bootstrap over whole rounds (Efron & Tibshirani 1993, 13).

Knows no model: what is sampled and what tells the time are given, and tests give simulated ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from llmcli.benchmarking.comparison import judge

Floats = npt.NDArray[np.float64]
Test = TypeVar("Test")

# Looking again and again finds a difference where there is none: five looks at times that were fixed before the first
# sample share the risk, each as much of it as of the time since the look before, so that all of them together err in at
# most 5 % of the runs (Bonferroni) and the last, which has the most samples, has half of it.
LOOKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
RISK = 0.05
MINIMUM_ROUNDS = 10  # the bootstrap of fewer is too narrow
RESAMPLES = 2000
METHOD = f"percentile bootstrap, {RESAMPLES} resamples of rounds, {len(LOOKS)} looks share a risk of {RISK:g} by time"
ORDERS = ((0, 1, 1, 0), (1, 0, 0, 1))
SECOND = 1_000_000_000


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians with its interval; low and high are None before MINIMUM_ROUNDS."""

    value: float
    low: float | None
    high: float | None


def ratio_of_medians(
    above: Floats, below: Floats, risk: float, *, tests: int = 1, resamples: int = RESAMPLES, seed: int = 0
) -> Ratio:
    """Median of above over median of below, times (rounds, samples) that were taken in the same rounds.

    Half of the risk is below the low end; above the high end is half of it divided by `tests`: one slow test of several
    is a regression, and it takes all of them to pass.
    """
    rounds = len(above)
    value = float(np.median(above) / np.median(below))
    if rounds < MINIMUM_ROUNDS:
        return Ratio(value, None, None)
    generator = np.random.default_rng(seed)
    together = max(1, (1 << 22) // (rounds * above.shape[1]))  # resamples at once, 32 MiB of them
    drawn: list[Floats] = []
    for begin in range(0, resamples, together):
        rows = generator.integers(0, rounds, (min(together, resamples - begin), rounds))
        drawn.append(_medians(above, rows) / _medians(below, rows))
    low, high = np.quantile(np.concatenate(drawn), [risk / 2, 1 - risk / 2 / tests])
    return Ratio(value, float(low), float(high))


def _medians(samples: Floats, rows: npt.NDArray[np.int64]) -> Floats:
    medians: Floats = np.median(samples[rows].reshape(len(rows), -1), axis=1, overwrite_input=True)
    return medians


@dataclass(frozen=True)
class Judgement(Generic[Test]):
    """What is known of one test: `speed` is B's over A's, `itself` that of A's later samples over its earlier ones."""

    test: Test
    medians_ns: tuple[float, float]
    speed: Ratio
    itself: Ratio
    rounds: int
    looks: int
    level: float  # of the interval of speed
    verdict: str  # as in comparison.judge
    smallest_slowdown: float | None  # 0.03: from the noise of A alone, a B that is 3 % slower would have been found

    def to_json(self) -> dict[str, Any]:
        """The fields of one test, without its name and its samples."""
        smallest = None if self.smallest_slowdown is None else round(100 * self.smallest_slowdown, 3)
        return {
            "first_ns": self.medians_ns[0],
            "second_ns": self.medians_ns[1],
            "ratio": self.speed.value,
            "low": self.speed.low,
            "high": self.speed.high,
            "verdict": self.verdict,
            "rounds": self.rounds,
            "looks": self.looks,
            "level": self.level,
            "noise": {"ratio": self.itself.value, "low": self.itself.low, "high": self.itself.high},
            "smallest_slowdown_pct": smallest,
        }


class Trial(Generic[Test]):
    """Samples both sides of every test that is undecided until all are decided or the budget is spent.

    `sample(side, test)` takes one sample of side 0 (A) or 1 (B) and returns its nanoseconds. `tolerance` is the loss
    that counts as none: 0.025 lets B be 2.5 % slower.
    """

    def __init__(
        self,
        tests: Sequence[Test],
        sample: Callable[[int, Test], float],
        *,
        budget_ns: float,
        tolerance: float,
        clock: Callable[[], float] = time.perf_counter_ns,
        resamples: int = RESAMPLES,
    ) -> None:
        self.tests = list(tests)
        self.sample = sample
        self.budget_ns = budget_ns
        self.tolerance = tolerance
        self.clock = clock
        self.resamples = resamples
        self.looked = 0.0  # the share of the budget at the last look
        self.samples: dict[Test, list[tuple[tuple[float, float], tuple[float, float]]]] = {test: [] for test in tests}
        self.judgements: dict[Test, Judgement[Test]] = {}
        self.looks = 0

    def run(self) -> Iterator[float]:
        """Sample; yields the nanoseconds spent after each round. A round that is broken off leaves nothing."""
        begin, shares, rounds = self.clock(), list(LOOKS), 0
        undecided, spent = list(self.tests), 0.0
        while undecided:
            before = spent
            for test in undecided:
                self.samples[test].append(self._round(test, ORDERS[rounds % 2]))
            rounds += 1
            spent = self.clock() - begin
            ended = spent + (spent - before) > self.budget_ns  # the next round would not fit
            if ended or spent >= shares[0] * self.budget_ns:
                now = 1.0 if ended else shares[0]
                while len(shares) > 1 and spent >= shares[0] * self.budget_ns:
                    now = max(now, shares.pop(0))
                self.look(now)
                undecided = [test for test in undecided if self.judgements[test].verdict == "inconclusive"]
            yield spent
            if ended:
                return

    def _round(self, test: Test, order: Sequence[int]) -> tuple[tuple[float, float], tuple[float, float]]:
        taken: tuple[list[float], list[float]] = ([], [])
        for side in order:
            taken[side].append(self.sample(side, test))
        return (taken[0][0], taken[0][1]), (taken[1][0], taken[1][1])

    def to_json(self, test: Test) -> dict[str, Any]:
        """The judgement and the samples of a test that was looked at."""
        sides = zip(*self.samples[test], strict=True)
        return self.judgements[test].to_json() | {"samples_ns": [list(map(list, side)) for side in sides]}

    def look(self, share: float = 1.0) -> None:
        """Judge every test that is undecided and has a round, at a share of the budget."""
        self.looks += 1
        risk, self.looked = RISK * max(share - self.looked, 0.0), share
        for test, samples in self.samples.items():
            known = self.judgements.get(test)
            if samples and (known is None or known.verdict == "inconclusive"):
                self.judgements[test] = self._judge(test, np.array(samples, dtype=np.float64), risk)

    def _judge(self, test: Test, samples: Floats, risk: float) -> Judgement[Test]:
        """Samples (rounds, sides, 2), at a risk of being wrong."""
        medians = np.median(samples, axis=(0, 2))
        # The geometric mean of the sides' quicker samples: a level that a difference between the sides does not move.
        level = np.sqrt(samples.min(axis=2).prod(axis=1))[:, None]
        first, second = samples[:, 0] / level, samples[:, 1] / level
        several = {"tests": len(self.tests), "resamples": self.resamples}
        speed = ratio_of_medians(first, second, risk, **several)
        itself = ratio_of_medians(first[:, :1], first[:, 1:], risk, **several, seed=1)
        smallest = None
        if itself.low is not None and itself.high is not None:
            # Half the width, of half as many samples as the verdict has.
            width = math.log(itself.high / itself.low) / 2 / math.sqrt(2)
            smallest = 1 - (1 - self.tolerance) * math.exp(-width)
        return Judgement(
            test=test,
            medians_ns=(float(medians[0]), float(medians[1])),
            speed=speed,
            itself=itself,
            rounds=len(samples),
            looks=self.looks,
            level=1 - risk * (1 + 1 / len(self.tests)) / 2,
            verdict=judge(speed.low, speed.high, self.tolerance),
            smallest_slowdown=smallest,
        )
