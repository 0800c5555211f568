"""The coder gives every symbol back and takes as many bits as the symbols hold."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcli.compression.range_coder import MAX_TOTAL, Decoder, Encoder

Symbol = tuple[int, int, int]


@st.composite
def symbols(draw: st.DrawFn) -> list[Symbol]:
    rows = []
    for _ in range(draw(st.integers(0, 40))):
        total = draw(st.one_of(st.integers(1, 9), st.integers(1, MAX_TOTAL)))
        start = draw(st.one_of(st.just(0), st.integers(0, total - 1)))
        size = draw(st.one_of(st.just(1), st.just(total - start), st.integers(1, total - start)))
        rows.append((start, size, total))
    return rows


def encoded(rows: list[Symbol]) -> bytes:
    coder = Encoder()
    for row in rows:
        coder.encode(*row)
    return coder.finish()


def check(rows: list[Symbol]) -> bytes:
    data = encoded(rows)
    coder = Decoder(data)
    for start, size, total in rows:
        assert start <= coder.peek(total) < start + size
        coder.take(start, size, total)
    bits = sum(math.log2(total / size) for _, size, total in rows)
    assert 8 * len(data) <= bits + len(rows) * 2**-22 + 16
    return data


@given(symbols())
def test_there_and_back(rows: list[Symbol]) -> None:
    check(rows)


@pytest.mark.parametrize("size", [1, 2, 255, 2**32])
def test_carries_run_through_many_bytes(size: int) -> None:
    """Symbols at the top of the range keep low at 0xFF…, and a last one makes it overflow, or not."""
    top = (MAX_TOTAL - 1, 1, MAX_TOTAL)
    for last in ((0, 1, 3), (1, 1, 3), (2, 1, 3)):
        check([(2**33 - size, size, MAX_TOTAL)] * 30 + [last])
        check([top] * 9 + [last] * 9 + [top] * 9)


def test_size_of_a_long_message() -> None:
    rng = random.Random(0)
    rows = []
    for _ in range(20_000):
        total = rng.randrange(2, MAX_TOTAL)
        size = max(1, int(total * rng.random() ** 3))
        rows.append((rng.randrange(0, total - size + 1), size, total))
    bits = sum(math.log2(total / size) for _, size, total in rows)
    assert abs(8 * len(check(rows)) - bits) < 24


def test_certainty_costs_nothing() -> None:
    assert check([(0, 7, 7)] * 1000) == b""
