"""Timing contestants side by side: warm-up, batches long enough for the clock, alternating order.

Times what it is given by the clock it is given; tests pass a simulated one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import torch

Clock = Callable[[], int]
Work = Callable[[], object]

MINIMUM_SAMPLE_NS = 10_000_000


def time_once(work: Work, clock: Clock = time.perf_counter_ns) -> int:
    """Nanoseconds that one call takes."""
    start = clock()
    work()
    return clock() - start


def synchronized(work: Work, device: torch.device) -> Work:
    """The work itself on a CPU; on a GPU, the work and the wait until it is done."""
    if device.type != "cuda":
        return work

    def run() -> object:
        result = work()
        torch.cuda.synchronize(device)
        return result

    return run


def calls_per_sample(work: Work, *, minimum_ns: int = MINIMUM_SAMPLE_NS, clock: Clock = time.perf_counter_ns) -> int:
    """How many calls make one sample of at least `minimum_ns`, from the second of two calls."""
    work()
    return max(1, -(-minimum_ns // max(1, time_once(work, clock))))


class Interleaved:
    """Samples of several contestants, one of each per round, the order reversed in every other round.

    A B, B A, A B …: whatever slows the machine for longer than a round slows all of them alike.
    `samples[name]` holds nanoseconds per call; a round that is broken off leaves no partial sample.
    """

    def __init__(
        self,
        contestants: Mapping[str, Work],
        *,
        minimum_ns: int = MINIMUM_SAMPLE_NS,
        clock: Clock = time.perf_counter_ns,
    ) -> None:
        self.contestants = dict(contestants)
        self.samples: dict[str, list[float]] = {name: [] for name in contestants}
        self.clock = clock
        self.minimum_ns = minimum_ns
        self.calls: dict[str, int] = {}

    def rounds(self, count: int, *, warmup: int = 1) -> Iterator[int]:
        """Measure; yields the number of finished rounds after each, warm-up rounds not counted or kept."""
        for name, work in self.contestants.items():
            self.calls[name] = calls_per_sample(work, minimum_ns=self.minimum_ns, clock=self.clock)
        for round_index in range(-warmup, count):
            order = list(self.contestants)
            if round_index % 2:
                order.reverse()
            taken = {name: self._sample(name) for name in order}
            if round_index >= 0:
                for name, nanoseconds in taken.items():
                    self.samples[name].append(nanoseconds)
                yield round_index + 1

    def _sample(self, name: str) -> float:
        work, calls = self.contestants[name], self.calls[name]
        start = self.clock()
        for _ in range(calls):
            work()
        return (self.clock() - start) / calls
