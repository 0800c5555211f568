"""The cache of keys and values by itself; tests/models covers it under attention."""

from __future__ import annotations

import pytest
import torch

from llmcli.nn.kv_cache import KVCache
from llmcli.ops import attention
from llmcli.ops.cached_attention import read


def cache(batch: int = 2, capacity: int = 300) -> KVCache:
    return KVCache(3, batch, capacity, 2, 4, dtype=torch.float32, device=torch.device("cpu"))


def tokens(n: int, start: float, batch: int = 2) -> torch.Tensor:
    values = torch.arange(float(start), start + n).view(1, n, 1, 1) + 1000 * torch.arange(batch).view(batch, 1, 1, 1)
    return values.expand(batch, n, 2, 4)


def keys(state: KVCache, layer: int, n: int) -> torch.Tensor:
    """One number per position, (B,n)."""
    data, _ = state.reserve(0)
    return read(data[layer], n, state.dtype, state.head_dim)[0][:, :, 1, 3]


def test_every_layer_attends_to_all_so_far() -> None:
    state = cache()
    k, v = torch.randn(2, 2, 140, 2, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    for part in (slice(0, 137), slice(137, 140)):
        for layer in range(3):
            got = state.attend(layer, k[:, part], k[:, part] + layer, v[:, part], scale=0.3)
            expected = attention(k, k + layer, v, scale=0.3, causal=True)[:, part]
            assert torch.allclose(got, expected, atol=1e-5)
        state.advance(got.shape[1])
    assert (state.max_length, state.lengths.tolist()) == (140, [140, 140])


def test_unequal_rows_are_written_at_their_own_ends() -> None:
    state = cache()
    state.attend(0, *[tokens(130, 0)] * 3)
    state.set_lengths([1, 130])
    assert state.positions(2).tolist() == [[1, 2], [130, 131]]
    state.attend(0, *[tokens(2, 500)] * 3)
    state.advance(2)
    held = keys(state, 0, 132).tolist()
    assert held[0][:3] == [0, 500, 501]
    assert held[1][128:] == [1128, 1129, 1500, 1501]
    assert (state.max_length, state.lengths.tolist()) == (132, [3, 132])
    state.select(torch.tensor([0, 0]))
    assert state.positions(1) == slice(3, 4)


@pytest.mark.parametrize("rows", [[1], [1, 0], [1, 0, 0]], ids=str)
def test_select(rows: list[int]) -> None:
    state = cache()
    state.attend(2, *[tokens(130, 1)] * 3)
    state.advance(130)
    before = keys(state, 2, 130)
    state.select(torch.tensor(rows))
    assert torch.equal(keys(state, 2, 130), before[rows])
    assert state.lengths.tolist() == [130] * len(rows)


def test_overflow() -> None:
    state = cache(capacity=4)
    with pytest.raises(ValueError, match="the cache holds 4 positions; 5 are needed"):
        state.attend(0, *[tokens(5, 0)] * 3)
    with pytest.raises(ValueError, match="the cache holds 4 positions; 5 are needed"):
        state.reserve(5)
