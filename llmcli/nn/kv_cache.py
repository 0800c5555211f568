"""The keys and values that a decoder keeps between steps: allocated once, one length per batch row."""

from __future__ import annotations

import torch
from torch import Tensor

from llmcli.ops.cached_attention import BLOCK, cache_bytes, cached_attention


class KVCache:
    """Keys and values of every layer; right-padded rows, each with its own length.

    A step is `attend` once per layer, or `reserve`, then `advance` once. Rows of equal length (the usual case) need no
    index tensors. What a position takes is fixed by dtype: float32, bfloat16, float16, or int8 with a scale per
    position and head.
    """

    def __init__(
        self,
        n_layers: int,
        batch: int,
        capacity: int,
        n_kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.capacity, self.head_dim, self.dtype = capacity, head_dim, dtype
        blocks = -(-capacity // BLOCK)
        # Zeros, because a masked key still meets a zero probability, and 0 * NaN would leave garbage in the output.
        self._data = self._storage = torch.zeros(
            n_layers, batch, n_kv_heads, blocks, cache_bytes(dtype, head_dim), dtype=torch.uint8, device=device
        )
        self._lengths = [0] * batch
        self._unequal: Tensor | None = None  # the lengths as a tensor, only while they differ

    @property
    def max_length(self) -> int:
        """Length of the longest row."""
        return max(self._lengths, default=0)

    @property
    def lengths(self) -> Tensor:
        """Filled positions of each row, (B,) int64."""
        return torch.tensor(self._lengths, dtype=torch.int64, device=self._data.device)

    def span(self, n: int) -> int:
        """Keys that a bias for the next n positions covers: all of the longest row."""
        return self.max_length + n

    def positions(self, n: int) -> slice | Tensor:
        """Positions of the next n tokens: a slice when all rows agree, else (B, n) int64."""
        if self._unequal is None:
            start = self.max_length
            return slice(start, start + n)
        return self._unequal[:, None] + torch.arange(n, device=self._data.device)

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        cap: float | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Take in the next k and v (B,T,G,D) of one layer → attention of q (B,T,H,D) over all so far, (B,T,H,D)."""
        data, lengths = self.reserve(q.shape[1])
        return cached_attention(q, k, v, data[layer], lengths, dtype=self.dtype, scale=scale, cap=cap, bias=bias)

    def reserve(self, n: int) -> tuple[Tensor, list[int]]:
        """All layers as `llmcli.ops.decoder` takes them, with room for n more positions; the lengths so far."""
        end = self.max_length + n
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions; {end} are needed")
        return self._data, self._lengths

    def advance(self, n: int) -> None:
        """Count n new positions in every row, after each layer has been extended by them."""
        self.set_lengths([length + n for length in self._lengths])

    def set_lengths(self, lengths: list[int]) -> None:
        """Forget everything behind these lengths, one per row (the padding of a right-padded batch)."""
        self._lengths = lengths
        self._unequal = self.lengths if len(set(lengths)) > 1 else None

    def select(self, rows: Tensor) -> None:
        """Keep, reorder or repeat batch rows: rows (N,) int64. Copies only the filled part, and nothing that stays."""
        chosen = rows.tolist()
        filled = self._data[:, :, :, : -(-self.max_length // BLOCK)]
        if len(chosen) <= self._data.shape[1]:
            moved = [i for i, row in enumerate(chosen) if row != i]
            if moved:
                filled[:, moved] = filled[:, [chosen[i] for i in moved]]
            self._data = self._data[:, : len(chosen)]
        else:
            layers, _, *rest = self._data.shape
            data = self._data.new_zeros((layers, len(chosen), *rest))
            data[:, :, :, : filled.shape[3]] = filled[:, chosen]
            self._data = self._storage = data
        self.set_lengths([self._lengths[row] for row in chosen])

    def append(self, other: KVCache) -> None:
        """Put another cache's rows behind these, where rows have left if there is room; the larger capacity holds."""
        kept, filled = len(self._lengths), -(-other.max_length // BLOCK)
        self._make_room(kept + len(other._lengths), other._storage.shape[3])
        self._data[:, kept:, :, :filled] = other._data[:, :, :, :filled]
        self.capacity = max(self.capacity, other.capacity)
        self.set_lengths(self._lengths + other._lengths)

    def grow(self, capacity: int) -> None:
        """Hold at least this many positions."""
        self._make_room(len(self._lengths), -(-capacity // BLOCK))
        self.capacity = max(self.capacity, capacity)

    def dump(self) -> Tensor:
        """The blocks that hold something: uint8 (layers,B,G,blocks,bytes)."""
        return self._data[:, :, :, : -(-self.max_length // BLOCK)]

    def restore(self, data: Tensor, lengths: list[int]) -> None:
        """Take over what `dump` gave of a cache of the same sizes. Raises ValueError for another shape."""
        filled = self._data[:, :, :, : -(-max(lengths) // BLOCK)]
        if data.dtype != filled.dtype or data.shape != filled.shape:
            raise ValueError(f"expected {tuple(filled.shape)} bytes, got {tuple(data.shape)} of {data.dtype}")
        filled.copy_(data)
        self.set_lengths(lengths)

    def _make_room(self, batch: int, blocks: int) -> None:
        """Let `_data` have `batch` rows of at least so many blocks, the rows that are there first."""
        kept, used = len(self._lengths), -(-self.max_length // BLOCK)
        layers, rows, heads, there, size = self._storage.shape
        if batch > rows or blocks > there:
            storage = self._storage.new_zeros((layers, max(batch, rows), heads, max(blocks, there), size))
            storage[:, :kept, :, :used] = self._data[:, :, :, :used]
            self._storage = storage
        self._data = self._storage[:, :batch]
