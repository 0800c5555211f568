"""Ceilings: best of several, never lowered, per working set and number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmcli.benchmarking import ceilings as module
from llmcli.benchmarking.ceilings import (
    Ceilings,
    best_rate,
    copy_patterns,
    matrix_patterns,
    matrix_size,
    read_bytes,
    read_patterns,
    register_peak,
    stream_bytes,
)
from tests.benchmarking.clock import SimulatedClock

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small buffers and matrices; the number of threads is put back."""
    monkeypatch.setattr(module, "MATRIX_SIZE", 256)
    monkeypatch.setattr(module, "stream_bytes", lambda: 1 << 20)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_best_round_of_the_best_pattern() -> None:
    clock = SimulatedClock()
    fast = iter([1, 90, 50, 70])  # the first is the warm-up
    patterns = {"slow": clock.work(100), "fast": clock.work(lambda: next(fast))}
    assert best_rate(patterns, 1000.0, rounds=3, clock=clock) == (20.0, "fast")


@given(st.integers(0, 1 << 40))
def test_the_buffer_is_no_larger_than_the_working_set(working_set: int) -> None:
    nbytes = read_bytes(working_set)
    assert 1 << 20 <= nbytes <= stream_bytes()
    assert nbytes <= max(working_set, 1 << 20)
    assert nbytes * 2 > min(working_set, stream_bytes())


def test_patterns_read_and_copy_everything() -> None:
    patterns, nbytes = read_patterns(torch.ones(1 << 18))
    assert nbytes == 1 << 20
    elements = (1 << 20) // 4
    results = {name: work() for name, work in patterns.items()}
    assert results["sum"] == results["dot product"] == results["row sums"].sum() == elements  # type: ignore[attr-defined]
    copies, _ = copy_patterns(CPU)
    assert (copies["copy_"]() == 1).all()  # type: ignore[attr-defined]


def test_matrix_patterns_multiply() -> None:
    patterns, flops = matrix_patterns(64, torch.float32, CPU)
    assert flops == 2 * 64**3
    shapes = {name: work().shape for name, work in patterns.items()}  # type: ignore[attr-defined]
    assert set(shapes.values()) == {(64, 64)}


def test_a_slow_dtype_gets_a_smaller_matrix() -> None:
    clock = SimulatedClock()
    ticks = iter(range(0, 10**12, module.LONGEST_CALL_NS // 8 + 1))
    assert matrix_size(torch.float32, CPU, lambda: next(ticks)) == 256
    assert matrix_size(torch.float32, CPU, clock) == module.MATRIX_SIZE


def test_more_looks_only_raise(small: None) -> None:
    speeds = iter([100, 10, 1000])
    clock = SimulatedClock()
    step = 0

    def slow_clock() -> int:
        clock.now += step
        return clock.now

    ceilings = Ceilings(rounds=1, clock=slow_clock)
    found = []
    for step in speeds:  # noqa: B007 (read by the clock)
        if found:
            ceilings.measure_again()
        found.append(ceilings.get("copy"))
    assert found[1] == pytest.approx(10 * found[0])
    assert found[2] == found[1]


def test_kinds_sizes_and_threads_are_apart(small: None) -> None:
    ceilings = Ceilings(rounds=1)
    torch.set_num_threads(1)
    ceilings.get("read", 5)
    ceilings.get("copy")
    torch.set_num_threads(2)
    ceilings.get("read", 1 << 20)
    ceilings.get("bfloat16")
    ceilings.measure_again()
    assert torch.get_num_threads() == 2
    rows = {
        (row["kind"], row["dtype"], row["buffer_bytes"], row["n_threads"]): row["value"] for row in ceilings.to_json()
    }
    registers = {("registers", dtype, None, 2) for dtype in ("float32", "bfloat16") if register_peak(dtype)}
    assert set(rows) == registers | {
        ("read", None, 1 << 20, 1),
        ("copy", None, None, 1),
        ("read", None, 1 << 20, 2),
        ("matrix", "float32", None, 2),
        ("matrix", "bfloat16", None, 2),
    }
    assert all(value > 0 for value in rows.values())
    assert rows["matrix", "bfloat16", None, 2] >= rows["matrix", "float32", None, 2]
