"""A clock that only moves when work says so: harness tests need no time and cannot flicker."""

from __future__ import annotations

from collections.abc import Callable


class SimulatedClock:
    """Nanoseconds since the start; `work(ns)` makes a contestant that takes that long."""

    def __init__(self) -> None:
        self.now = 0
        self.log: list[str] = []

    def __call__(self) -> int:
        return self.now

    def work(self, duration: int | Callable[[], int], name: str = "") -> Callable[[], None]:
        def run() -> None:
            self.now += duration if isinstance(duration, int) else duration()
            self.log.append(name)

        return run
