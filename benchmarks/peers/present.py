"""What the machine allows at present: other tenants of a host share its memory, whose bandwidth doubles within minutes.

A look takes some hundredths of a second, so that each engine's every sample stands between two of its own.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.measures import Measure
from llmcli.benchmarking.ceilings import LARGEST_STREAM, ROW, Ceilings, read_patterns, stream_bytes
from llmcli.benchmarking.timing import Work, time_once

LOOK_NS = 20_000_000
IDLE_S, PATIENCE_S = 0.005, 0.5


class Present:
    """The ceilings of a run, measured anew for each look, by the pattern that was the fastest of the run."""

    def __init__(self, ceilings: Ceilings) -> None:
        self.ceilings = ceilings
        self.buffer = torch.ones(stream_bytes() // 4)
        self.found: dict[str, float] = {}

    def look(self, measure: Measure, model: Any) -> float:
        """Tokens per second of a model that the machine allows now."""
        self.found = {}
        return measure.limit(model, self)

    def get(self, kind: str, working_set: int = LARGEST_STREAM) -> float:
        """Giga per second of a kind, as in `Ceilings`; reads take the bytes of the first working set of a look."""
        if kind not in self.found:
            best = self.ceilings.ceiling(kind, working_set)
            if kind == "read":
                rows = min(max(1, working_set // (4 * ROW)), self.buffer.numel() // ROW)
                patterns, amount = read_patterns(self.buffer[: rows * ROW])
                self.found[kind] = fastest(patterns[best.pattern], amount)
            else:
                self.found[kind] = fastest(best.work, best.amount)
        return self.found[kind]


def fastest(work: Work, amount: float) -> float:
    """Amount per nanosecond of the fastest of three calls, or of as many as LOOK_NS hold."""
    times = [time_once(work, time.perf_counter_ns) for _ in range(3)]
    while sum(times) < LOOK_NS:
        times.append(time_once(work, time.perf_counter_ns))
    return amount / max(1, min(times))


def processor_ns(pid: int) -> int:
    """Nanoseconds that the threads of a process have run; 0 where the system does not say."""
    found = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(path.read_text("utf-8").split()[0]) for path in found)


def rest(pid: int) -> None:
    """Wait until a process does nothing: threads of OpenMP spin for up to 0.2 s in wait of more work."""
    end, before = time.perf_counter() + PATIENCE_S, processor_ns(pid)
    while time.perf_counter() < end:
        time.sleep(IDLE_S)
        now = processor_ns(pid)
        if now - before < 1e9 * IDLE_S / 10:
            break
        before = now
