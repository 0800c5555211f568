"""What this machine can do at best: read bandwidth, copy bandwidth, matrix peak per dtype.

Every figure is the best round of the best pattern: a ceiling is what has been reached at least once, in the same
process and with the same number of threads as the results that are compared with it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from llmcli import ops
from llmcli.benchmarking.environment import last_level_cache
from llmcli.benchmarking.timing import Clock, Work, synchronized, time_once
from llmcli.ops import registry
from llmcli.ops.linear_quantized import GROUPS

ROUNDS = 5
MATRIX_SIZE = 2048
LONGEST_CALL_NS = 400_000_000
ROW = 1 << 14
SMALLEST_READ = 1 << 20
SMALLEST_STREAM, LARGEST_STREAM = 256 << 20, 2 << 30


def best_rate(patterns: Mapping[str, Work], amount: float, *, rounds: int, clock: Clock) -> tuple[float, str]:
    """Amount per nanosecond (so: giga per second) of the fastest call, and the pattern that reached it."""
    best, winner = 0.0, ""
    for work in patterns.values():
        work()
    for _ in range(rounds):
        for name, work in patterns.items():
            rate = amount / max(1, time_once(work, clock))
            if rate > best:
                best, winner = rate, name
    return best, winner


def stream_bytes() -> int:
    """Bytes of a buffer that no cache can hold: eight last-level caches, 256 MiB at least, 2 GiB at most."""
    return min(max(SMALLEST_STREAM, 8 * (last_level_cache() or 0)), LARGEST_STREAM)


def read_bytes(working_set: int) -> int:
    """Bytes of the buffer that stands for a working set: the power of two below it, from 1 MiB to `stream_bytes()`.

    Whoever reads 10 MB again and again reads a cache, and is held to the cache's bandwidth.
    """
    if working_set >= stream_bytes():
        return stream_bytes()
    return max(SMALLEST_READ, 1 << max(0, working_set.bit_length() - 1))


def read_patterns(buffer: torch.Tensor) -> tuple[dict[str, Work], float]:
    """Ways to read a buffer (N,) once (which is fastest depends on the machine and on torch), and its bytes.

    N is a multiple of ROW.
    """
    rows = buffer.view(-1, ROW)
    return {
        "sum": buffer.sum,
        "row sums": lambda: rows.sum(1),
        "dot product": lambda: torch.dot(buffer, buffer),
        "row maxima": lambda: rows.amax(1),
    }, buffer.nbytes


def copy_patterns(device: torch.device) -> tuple[dict[str, Work], float]:
    """A copy into memory that is already mapped, and the bytes that it reads and writes."""
    source = torch.ones(stream_bytes() // 8, device=device)
    target = torch.zeros_like(source)
    return {"copy_": lambda: target.copy_(source)}, 2 * source.nbytes


def matrix_patterns(size: int, dtype: torch.dtype, device: torch.device) -> tuple[dict[str, Work], float]:
    """The product of two square matrices, by torch (the second stored by rows or columns) and by us; its operations."""
    if dtype == torch.int8:
        return integer_patterns(size, device)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out, columns = torch.empty_like(a), b.t()
    patterns: dict[str, Work] = {
        "torch.mm": lambda: torch.mm(a, b, out=out),
        "torch.mm transposed": lambda: torch.mm(a, columns, out=out),
    }
    if registry.kernels is not None and device.type == "cpu":
        packed = ops.linear_pack(b)
        patterns["llmcli linear"] = lambda: ops.linear(a, packed, None, size)
    return patterns, 2.0 * size**3


def integer_patterns(size: int, device: torch.device) -> tuple[dict[str, Work], float]:
    """The same of bytes; ours brings the first matrix to bytes on the way."""
    a, b = (torch.randint(-127, 128, (size, size), device=device, dtype=torch.int8) for _ in range(2))
    columns = b.t()
    patterns: dict[str, Work] = {"torch._int_mm": lambda: torch._int_mm(a, columns)}
    if registry.kernels is not None and device.type == "cpu":
        scale = torch.ones(size, -(-size // GROUPS[8]), dtype=torch.bfloat16)
        x, packed = a.float(), ops.linear_quantized_pack(b, scale, size)
        patterns["llmcli linear_quantized"] = lambda: ops.linear_quantized(x, packed, None, size, 8)
    return patterns, 2.0 * size**3


def matrix_size(dtype: torch.dtype, device: torch.device, clock: Clock) -> int:
    """2048, or the largest smaller power of two whose product takes at most 0.4 s.

    Some dtypes have no fast path on some machines.
    """
    size = 256
    while size < MATRIX_SIZE:
        patterns, _ = matrix_patterns(size, dtype, device)
        times = []
        for work in patterns.values():
            work()
            times.append(time_once(synchronized(work, device), clock))
        if 8 * max(times) > LONGEST_CALL_NS:
            break
        size *= 2
    return size


def matrix_rate(dtype: str, device: torch.device) -> float:
    """GFLOP/s of the best product of 1024 × 1024 matrices in a tenth of a second or so: a peak to hold a run to."""
    patterns, amount = matrix_patterns(MATRIX_SIZE // 2, getattr(torch, dtype), device)
    patterns = {name: synchronized(work, device) for name, work in patterns.items()}
    return best_rate(patterns, amount, rounds=2, clock=time.perf_counter_ns)[0]


def register_peak(dtype: str) -> float:
    """GFLOP/s of multiply-adds in registers on all threads at once; 0 where our kernels have no such instruction."""
    if registry.kernels is None or dtype not in ("float32", "bfloat16"):
        return 0.0
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        return float(sum(pool.map(registry.kernels.peak_gflops, [dtype] * threads)))


@dataclass(frozen=True)
class Ceiling:
    """The best rate so far (giga per second), the pattern that reached it, and that pattern to run again."""

    value: float
    pattern: str
    work: Work
    amount: float


class Ceilings:
    """The ceilings of one run, per kind, buffer size and number of threads; each more look can only raise them.

    A kind is "read" or "copy" (GB/s) or the name of a dtype (matrix product, GFLOP/s). A narrow dtype's matrix peak is
    never below float32's, for a kernel may widen its input. Beside each matrix peak stands what the units reach without
    any memory (`register_peaks`), which no product of matrices attains.
    """

    def __init__(self, device: str = "cpu", *, rounds: int = ROUNDS, clock: Clock = time.perf_counter_ns) -> None:
        self.device = torch.device(device)
        self.rounds = rounds
        self.clock = clock
        self.best: dict[tuple[str, int, int], Ceiling] = {}
        self.register_peaks: dict[tuple[str, int], float] = {}

    def get(self, kind: str, working_set: int = LARGEST_STREAM) -> float:
        """The best so far with the present number of threads; measured when there is none."""
        return self.ceiling(kind, working_set).value

    def ceiling(self, kind: str, working_set: int = LARGEST_STREAM) -> Ceiling:
        """The ceiling with its pattern, to run it beside something else."""
        key = self._key(kind, working_set)
        if key not in self.best:
            self._measure(key)
        return self.best[key]

    def measure_again(self) -> None:
        """Look at every ceiling once more: the first look may have met a slow spell."""
        threads = torch.get_num_threads()
        for key in list(self.best):
            torch.set_num_threads(key[2])
            self._measure(key)
        torch.set_num_threads(threads)

    def _key(self, kind: str, working_set: int) -> tuple[str, int, int]:
        return kind, read_bytes(working_set) if kind == "read" else 0, torch.get_num_threads()

    def _measure(self, key: tuple[str, int, int]) -> None:
        kind, nbytes, _ = key
        if kind == "read":
            patterns, amount = read_patterns(torch.ones(nbytes // 4, device=self.device))
        elif kind == "copy":
            patterns, amount = copy_patterns(self.device)
        else:
            dtype = getattr(torch, kind)
            patterns, amount = matrix_patterns(matrix_size(dtype, self.device, self.clock), dtype, self.device)
        patterns = {name: synchronized(work, self.device) for name, work in patterns.items()}
        value, pattern = best_rate(patterns, amount, rounds=self.rounds, clock=self.clock)
        found = [Ceiling(value, pattern, patterns[pattern], amount)]
        if key in self.best:
            found.append(self.best[key])
        if kind not in ("read", "copy", "float32"):
            found.append(self.ceiling("float32"))
        self.best[key] = max(found, key=lambda ceiling: ceiling.value)
        if kind not in ("read", "copy") and self.device.type == "cpu" and (peak := register_peak(kind)):
            known = self.register_peaks.get((kind, key[2]), 0.0)
            self.register_peaks[kind, key[2]] = max(peak, known)

    def to_json(self) -> list[dict[str, Any]]:
        """One object per ceiling: kind, dtype or buffer size, unit, value, the pattern that reached it, threads."""
        registers: list[dict[str, Any]] = [
            {
                "kind": "registers",
                "dtype": dtype,
                "buffer_bytes": None,
                "unit": "GFLOP/s",
                "value": round(value, 2),
                "pattern": "multiply-adds",
                "n_threads": threads,
            }
            for (dtype, threads), value in self.register_peaks.items()
        ]
        return registers + [
            {
                "kind": kind if kind in ("read", "copy") else "matrix",
                "dtype": None if kind in ("read", "copy") else kind,
                "buffer_bytes": nbytes or None,
                "unit": "GB/s" if kind in ("read", "copy") else "GFLOP/s",
                "value": round(ceiling.value, 2),
                "pattern": ceiling.pattern,
                "n_threads": threads,
            }
            for (kind, nbytes, threads), ceiling in self.best.items()
        ]
