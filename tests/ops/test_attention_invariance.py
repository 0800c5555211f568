"""A query row of llmcli.ops.attention depends on nothing but itself and its keys, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from llmcli.ops import attention
from tests.marks import kernels_only
from tests.ops.test_attention import DTYPES, draw

pytestmark = kernels_only


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives the number of threads back after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 200, 300, 4, 2, 64), (1, 1, 5000, 6, 3, 64), (3, 7, 700, 4, 4, 40)])
def test_threads(isa: str, threads: None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    q, k, v = draw(shape, dtype)
    torch.set_num_threads(1)
    one = attention(q, k, v, causal=True)
    for n in (2, 3):
        torch.set_num_threads(n)
        assert torch.equal(attention(q, k, v, causal=True), one)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T", [1, 3, 140])
def test_batch_and_position_in_it(isa: str, T: int, dtype: torch.dtype) -> None:
    q, k, v = draw((5, T, 400, 4, 2, 32), dtype)
    lengths = torch.tensor([400, 140, 257, 399, 128])
    together = attention(q, k, v, causal=True, k_lengths=lengths)
    for b, n in enumerate(lengths.tolist()):
        alone = attention(q[b : b + 1], k[b : b + 1, :n], v[b : b + 1, :n], causal=True)
        assert torch.equal(together[b : b + 1], alone)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(3, 3), (8, 2), (5, 1)])
@pytest.mark.parametrize("D", [64, 33])
def test_chunks_and_single_steps(isa: str, D: int, heads: tuple[int, int], dtype: torch.dtype) -> None:
    T = 301
    q, k, v = draw((1, T, T, *heads, D), dtype)
    k[0, 260, 0, 1] = torch.inf  # what a row does not see must not matter, even so
    v[0, 250, 0, 1] = torch.nan
    whole = attention(q, k, v, causal=True)
    for size in (1, 5, 64, 128, 200):
        for begin in range(0, T, size) if size > 1 else (0, 1, 127, 128, 129, 249, 250, 251, 300):
            end = min(begin + size, T)
            chunk = attention(q[:, begin:end], k[:, :end], v[:, :end], causal=True)
            assert torch.equal(chunk.view(torch.uint8), whole[:, begin:end].contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "S"), [(96, 97), (96, 99), (96, 111), (96, 128)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_of_the_next_keys_stay_hidden(isa: str, T: int, S: int, value: float, dtype: torch.dtype) -> None:
    q, k, v = draw((1, T, S, 1, 1, 64), dtype)
    clean = attention(q, k, v, causal=True)
    for first in (48, 47, 17):  # the last row of a tile, and rows inside of one, stand before the key
        poisoned = v.clone()
        poisoned[0, S - T + first :, 0, 3] = value
        rows = attention(q, k, poisoned, causal=True)[:, :first]
        assert torch.equal(rows, clean[:, :first])


@pytest.mark.parametrize("dtype", DTYPES)
def test_capped_scores(isa: str, threads: None, dtype: torch.dtype) -> None:
    q, k, v = draw((2, 150, 700, 4, 2, 40), dtype)
    torch.set_num_threads(1)
    whole = attention(q, k, v, cap=2.0, causal=True)
    for n in (2, 3):
        torch.set_num_threads(n)
        assert torch.equal(attention(q, k, v, cap=2.0, causal=True), whole)
    assert torch.equal(attention(q[1:], k[1:], v[1:], cap=2.0, causal=True), whole[1:])
    for begin, end in ((0, 1), (64, 130), (149, 150)):
        chunk = attention(q[:, begin:end], k[:, : end + 550], v[:, : end + 550], cap=2.0, causal=True)
        assert torch.equal(chunk, whole[:, begin:end])


def test_decoding_split_over_threads_equals_prefill(isa: str, threads: None) -> None:
    torch.set_num_threads(2)
    q, k, v = draw((1, 130, 6000, 4, 2, 64), torch.float32)
    whole = attention(q, k, v, causal=True)
    assert torch.equal(attention(q[:, -1:], k, v, causal=True), whole[:, -1:])
    assert torch.equal(attention(q[:, -9:], k, v, causal=True), whole[:, -9:])
