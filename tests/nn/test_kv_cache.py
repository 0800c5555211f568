"""The cache of keys and values by itself; tests/models covers it under attention."""

from __future__ import annotations

import pytest
import torch

from llmcli.nn.kv_cache import KVCache


def cache(batch: int = 2, capacity: int = 8) -> KVCache:
    return KVCache(3, batch, capacity, 2, 4, dtype=torch.float32, device=torch.device("cpu"))


def tokens(n: int, start: float, batch: int = 2) -> torch.Tensor:
    values = torch.arange(float(start), start + n).view(1, n, 1, 1) + 100 * torch.arange(batch).view(batch, 1, 1, 1)
    return values.expand(batch, n, 2, 4)


def test_equal_rows_are_views_without_lengths() -> None:
    state = cache()
    for layer in range(3):
        k, v, k_lengths = state.extend(layer, tokens(3, 0), tokens(3, 10))
        assert k_lengths is None
        assert k[1, :, 0, 0].tolist() == [100, 101, 102]
        assert v[0, :, 1, 3].tolist() == [10, 11, 12]
    state.advance(3)
    first, _, _ = state.extend(0, tokens(1, 3), tokens(1, 13))
    second, _, _ = state.extend(0, tokens(1, 3), tokens(1, 13))
    assert first.data_ptr() == second.data_ptr()  # allocated once
    assert first.shape == (2, 4, 2, 4)


def test_unequal_rows_are_written_at_their_own_ends() -> None:
    state = cache()
    state.extend(0, tokens(4, 0), tokens(4, 0))
    state.set_lengths([1, 4])
    assert state.positions(2).tolist() == [[1, 2], [4, 5]]
    k, _, k_lengths = state.extend(0, tokens(2, 50), tokens(2, 50))
    assert k_lengths.tolist() == [3, 6]
    assert k[0, :3, 0, 0].tolist() == [0, 50, 51]
    assert k[1, :6, 0, 0].tolist() == [100, 101, 102, 103, 150, 151]
    state.advance(2)
    assert (state.max_length, state.lengths.tolist()) == (6, [3, 6])
    state.select(torch.tensor([0, 0]))
    assert state.positions(1) == slice(3, 4)


def test_what_was_never_written_is_zero() -> None:
    state = cache()
    state.extend(0, tokens(4, 1), tokens(4, 1))
    state.set_lengths([1, 4])
    k, _, _ = state.extend(0, tokens(3, 1), tokens(3, 1))
    assert k[0, 4:].eq(0).all()


def test_overflow() -> None:
    state = cache(capacity=4)
    with pytest.raises(ValueError, match="the cache holds 4 positions; 5 are needed"):
        state.extend(0, tokens(5, 0), tokens(5, 0))
    with pytest.raises(ValueError, match="the cache holds 4 positions; 5 are needed"):
        state.reserve(5)
