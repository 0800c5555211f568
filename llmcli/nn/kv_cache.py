"""The keys and values that a decoder keeps between steps: allocated once, one length per batch row."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer, (layers, 2, B, G, capacity, D); right-padded rows, each with its own length.

    A head's keys lie one after the other, which is how decoding reads them.

    A step is `extend` once per layer, or `reserve`, then `advance` once. Rows of equal length (the usual case) need no
    index tensors.
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
        # Zeros, because a masked key still meets a zero probability, and 0 * NaN would leave garbage in the output.
        self._set_data(torch.zeros(n_layers, 2, batch, n_kv_heads, capacity, head_dim, dtype=dtype, device=device))
        self._lengths = [0] * batch
        self._unequal: Tensor | None = None  # the lengths as a tensor, only while they differ

    @property
    def capacity(self) -> int:
        """Positions that a row can hold."""
        return self._data.shape[4]

    @property
    def max_length(self) -> int:
        """Length of the longest row."""
        return max(self._lengths, default=0)

    @property
    def lengths(self) -> Tensor:
        """Filled positions of each row, (B,) int64."""
        return torch.tensor(self._lengths, dtype=torch.int64, device=self._data.device)

    def positions(self, n: int) -> slice | Tensor:
        """Positions of the next n tokens: a slice when all rows agree, else (B, n) int64."""
        if self._unequal is None:
            start = self.max_length
            return slice(start, start + n)
        return self._unequal[:, None] + torch.arange(n, device=self._data.device)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store the next k and v (B,T,G,D) of one layer → all so far (B,S,G,D), and k_lengths (B,) or None."""
        keys, values = self._keys[layer], self._values[layer]
        n = k.shape[1]
        end = self.max_length + n
        if end > keys.shape[1]:
            raise ValueError(f"the cache holds {keys.shape[1]} positions; {end} are needed")
        if self._unequal is None:
            keys[:, end - n : end] = k
            values[:, end - n : end] = v
            return keys[:, :end], values[:, :end], None
        rows = torch.arange(k.shape[0], device=k.device)[:, None]
        positions = self.positions(n)
        keys[rows, positions] = k
        values[rows, positions] = v
        return keys[:, :end], values[:, :end], self._unequal + n

    def reserve(self, n: int) -> tuple[Tensor, list[int]]:
        """All layers at once, for an operator that stores n positions itself: (layers, 2, B, S, G, D), the lengths."""
        end = self.max_length + n
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions; {end} are needed")
        return self._data.transpose(3, 4), self._lengths

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
        filled = self._data[:, :, :, :, : self.max_length]
        batch = self._data.shape[2]
        if len(chosen) <= batch:
            moved = [i for i, row in enumerate(chosen) if row != i]
            if moved:
                filled[:, :, moved] = filled[:, :, [chosen[i] for i in moved]]
            self._set_data(self._data[:, :, : len(chosen)])
        else:
            shape = list(self._data.shape)
            shape[2] = len(chosen)
            data = self._data.new_zeros(shape)
            data[:, :, :, :, : self.max_length] = filled[:, :, chosen]
            self._set_data(data)
        self.set_lengths([self._lengths[row] for row in chosen])

    def _set_data(self, data: Tensor) -> None:
        self._data = data
        keys, values = data.transpose(3, 4).unbind(1)
        self._keys, self._values = keys.unbind(0), values.unbind(0)  # one (B, capacity, G, D) per layer
