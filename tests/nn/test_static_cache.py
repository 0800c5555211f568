"""The cache of recorded steps beside the other one."""

from __future__ import annotations

import pytest
import torch

from llmcli.nn.kv_cache import KVCache
from llmcli.nn.static_cache import StaticCache


def pair(batch: int, capacity: int = 300) -> tuple[StaticCache, KVCache]:
    sizes = (2, batch, capacity, 2, 5)
    of: dict[str, object] = {"dtype": torch.float32, "device": torch.device("cpu")}
    return StaticCache(*sizes, **of), KVCache(*sizes, **of)  # type: ignore[arg-type]


def feed(caches: tuple[KVCache, ...], n: int, seed: int) -> None:
    """The next n positions of every layer: both caches give the same attention."""
    g = torch.Generator().manual_seed(seed)
    batch = len(caches[0].lengths)
    for layer in range(2):
        q, k, v = (torch.randn(batch, n, heads, 5, generator=g) for heads in (4, 2, 2))
        one, other = (cache.attend(layer, q, k, v, scale=0.4) for cache in caches)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for cache in caches:
        cache.advance(n)


def test_the_same_attention_through_all_that_happens_to_a_cache() -> None:
    caches = pair(2)
    feed(caches, 130, 0)
    for cache in caches:
        cache.set_lengths([130, 7])
    feed(caches, 1, 1)
    feed(caches, 3, 2)
    assert caches[0].positions(2).tolist() == [[134, 135], [11, 12]]
    more = pair(1, 20)
    feed(more, 9, 3)
    for cache, other in zip(caches, more, strict=True):
        cache.append(other)
        cache.select(torch.tensor([2, 0]))
        cache.grow(400)
    feed(caches, 2, 4)
    assert caches[0].lengths.tolist() == caches[1].lengths.tolist() == [11, 136]
    assert caches[0].span(1) == 400
    static, other = pair(2)
    static.restore(caches[0].dump(), [11, 136])
    other.restore(caches[1].dump(), [11, 136])
    feed((static, other), 1, 5)


def test_the_address_changes_with_the_memory_and_not_with_the_lengths() -> None:
    cache, _ = pair(2)
    first = cache.address
    cache.advance(3)
    cache.set_lengths([1, 2])
    cache.count(1)
    assert cache.address == first
    assert cache.lengths.tolist() == [2, 3]
    for change in (lambda: cache.grow(900), lambda: cache.append(pair(1)[0]), lambda: cache.select(torch.tensor([0]))):
        before = cache.address
        change()
        assert cache.address != before
    with pytest.raises(ValueError, match="the cache holds"):
        cache.attend(0, *[torch.zeros(1, 901, 2, 5)] * 3)
