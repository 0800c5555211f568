"""The interleaving harness, on a simulated clock."""

from __future__ import annotations

import pytest
import torch

from llmcli.benchmarking.timing import Interleaved, calls_per_sample, synchronized, time_once
from tests.benchmarking.clock import SimulatedClock


def test_time_once_is_the_clock() -> None:
    clock = SimulatedClock()
    assert time_once(clock.work(1234), clock) == 1234


@pytest.mark.parametrize(("duration", "calls"), [(0, 1000), (1, 1000), (300, 4), (999, 2), (1000, 1), (5000, 1)])
def test_samples_are_long_enough(duration: int, calls: int) -> None:
    clock = SimulatedClock()
    assert calls_per_sample(clock.work(duration), minimum_ns=1000, clock=clock) == calls


def test_the_first_call_does_not_count() -> None:
    clock = SimulatedClock()
    durations = iter([10**9, 100])
    assert calls_per_sample(clock.work(lambda: next(durations)), minimum_ns=1000, clock=clock) == 10


def test_rounds_alternate_and_divide_by_calls() -> None:
    clock = SimulatedClock()
    run = Interleaved({"a": clock.work(250, "a"), "b": clock.work(2000, "b")}, minimum_ns=1000, clock=clock)
    rounds = run.rounds(3, warmup=1)
    assert next(rounds) == 1
    clock.log.clear()
    assert list(rounds) == [2, 3]
    assert clock.log == ["b", *"aaaa", *"aaaa", "b"]
    assert run.samples == {"a": [250.0] * 3, "b": [2000.0] * 3}


def test_warm_up_leaves_no_sample() -> None:
    clock = SimulatedClock()
    durations = iter([7, 1000, 900, 800, 10, 20])  # two calls for calibration, two rounds of warm-up
    run = Interleaved({"a": clock.work(lambda: next(durations))}, minimum_ns=1000, clock=clock)
    assert list(run.rounds(2, warmup=2)) == [1, 2]
    assert run.samples["a"] == [10.0, 20.0]


def test_a_slow_spell_meets_every_contestant() -> None:
    clock = SimulatedClock()

    def slow(base: int) -> int:
        return base * (3 if clock.now > 50_000 else 1)

    run = Interleaved(
        {"a": clock.work(lambda: slow(1000)), "b": clock.work(lambda: slow(2000))}, minimum_ns=1, clock=clock
    )
    for _ in run.rounds(40):
        pass
    ratios = [b / a for a, b in zip(run.samples["a"], run.samples["b"], strict=True)]
    assert sorted(ratios)[20] == 2.0
    assert {round(ratio) for ratio in ratios} <= {1, 2, 6}  # only the round in which the spell begins is off


def test_an_interrupted_round_leaves_pairs() -> None:
    clock = SimulatedClock()
    calls = 0

    def interrupted() -> int:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return 1000

    run = Interleaved({"a": clock.work(1000), "b": clock.work(interrupted)}, minimum_ns=1, clock=clock)
    with pytest.raises(KeyboardInterrupt):
        list(run.rounds(10, warmup=1))
    assert run.samples == {"a": [1000.0, 1000.0], "b": [1000.0, 1000.0]}


def test_only_a_gpu_waits() -> None:
    work = SimulatedClock().work(1)
    assert synchronized(work, torch.device("cpu")) is work
    assert synchronized(work, torch.device("cuda")) is not work
