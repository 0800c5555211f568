"""Medians, intervals, verdicts."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcli.benchmarking.statistics import (
    Estimate,
    disturbances,
    drift,
    estimate,
    estimate_ratio,
    interval_rank,
    verdict,
)

samples = st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=60)


def coverage(n: int, rank: int) -> float:
    return 1 - 2 * sum(math.comb(n, k) for k in range(rank)) / 2**n


@pytest.mark.parametrize("n", range(1, 101))
def test_rank_is_the_largest_that_covers(n: int) -> None:
    rank = interval_rank(n)
    assert rank == 0 or coverage(n, rank) >= 0.95
    assert coverage(n, rank + 1) < 0.95


def test_known_ranks() -> None:
    """The tables of Conover's book, exact binomial."""
    assert [interval_rank(n) for n in (5, 6, 8, 9, 15, 20, 25)] == [0, 1, 1, 2, 4, 6, 8]


def test_the_interval_covers_the_true_median() -> None:
    draw = random.Random(0)
    inside = 0
    for _ in range(2000):
        value = estimate([draw.lognormvariate(0.0, 1.0) for _ in range(15)])
        assert value.low is not None
        assert value.high is not None
        inside += value.low <= 1.0 <= value.high
    assert 0.95 <= inside / 2000 <= 0.98  # 0.965 by the binomial law


@given(samples)
def test_estimate_orders_and_ignores_order(values: list[float]) -> None:
    value = estimate(values)
    assert value == estimate(sorted(values, reverse=True))
    assert value.n == len(values)
    if len(values) < 6:
        assert value.low is value.high is None
    else:
        assert value.low is not None
        assert value.high is not None
        assert min(values) <= value.low <= value.median <= value.high <= max(values)


def test_estimate_needs_samples() -> None:
    with pytest.raises(ValueError, match="at least one"):
        estimate([])


@given(st.lists(st.floats(0.5, 2), min_size=6, max_size=30), st.floats(0.1, 10))
def test_paired_ratio_forgets_what_slows_both(speeds: list[float], factor: float) -> None:
    value = estimate_ratio([speed * factor for speed in speeds], speeds)
    assert value.median == pytest.approx(factor)
    assert value.spread == pytest.approx(0, abs=1e-9)


def test_ratio_needs_pairs() -> None:
    with pytest.raises(ValueError, match="2 and 1"):
        estimate_ratio([1.0, 2.0], [1.0])


def test_verdict() -> None:
    value = Estimate(1.5, 1.4, 1.6, 9)
    assert [verdict(value, goal) for goal in (1.4, 1.5, 1.6, 1.61)] == ["met", "inconclusive", "inconclusive", "below"]
    assert verdict(Estimate(9.0, None, None, 3), 1.0) == "inconclusive"


def test_scaled() -> None:
    assert Estimate(2.0, 1.0, 3.0, 7).scaled(10) == Estimate(20.0, 10.0, 30.0, 7)
    assert Estimate(2.0, None, None, 2).scaled(10) == Estimate(20.0, None, None, 2)


def test_quiet_samples_raise_no_doubt() -> None:
    assert disturbances([100.0, 101, 99, 100, 102, 98, 100, 101]) == []


def test_disturbances_are_named() -> None:
    assert "no 95 % interval" in disturbances([100.0, 101])[0]
    assert "wide" in disturbances([100.0, 150] * 6)[0]
    assert drift([100.0] * 6 + [130.0] * 6) == pytest.approx(0.3)
    assert any("slower than the earlier half" in text for text in disturbances([100.0] * 6 + [130.0] * 6))
    assert drift([130.0] * 6 + [100.0] * 6) < 0
