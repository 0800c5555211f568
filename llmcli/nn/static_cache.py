"""The cache of a decoder on a GPU, whose steps are recorded: addresses and shapes stay, and lengths are a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from llmcli.nn.kv_cache import KVCache
from llmcli.ops.attention import attention
from llmcli.ops.cached_attention import BLOCK


class StaticCache(KVCache):
    """A `KVCache` that `llmcli.ops.attention` reads as it lies: a position's key, and beside it its value.

    Attention goes over the whole capacity, of which it reads what a row sees; so a step is the same work on the same
    memory whatever the lengths are, and what one step did, recorded, is the next one. dtype is that of the keys.
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
        super().__init__(n_layers, batch, capacity, n_kv_heads, head_dim, dtype=dtype, device=device)
        # The lengths, where steps find them; of fewer rows they are the first, at the same address each time.
        self._filled = self._most = torch.zeros(batch, dtype=torch.int64, device=device)
        self._step: tuple[Tensor, Tensor] | None = None  # of the step under way: places (B,T) and ends (B,)

    @property
    def address(self) -> tuple[object, ...]:
        """What a recorded step is bound to: it serves as long as this is the same."""
        return self._data.data_ptr(), self._data.shape, self._filled.data_ptr(), self.capacity

    def span(self, n: int) -> int:
        """Keys that a bias for the next n positions covers."""
        return self.capacity

    def positions(self, n: int) -> Tensor:
        """Positions of the next n tokens, (B,n) int64."""
        return self._places(n)[0]

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
        T, D = q.shape[1], q.shape[3]
        self.reserve(T)
        places, ends = self._places(T)
        both = self._data[layer].view(self.dtype).unflatten(-1, (BLOCK, 2, -1)).flatten(2, 3).transpose(1, 2)
        keys, values = (x[:, : self.capacity, :, :D] for x in both.unbind(3))  # each (B,S,G,D)
        rows = torch.arange(len(ends), device=ends.device)[:, None]
        keys[rows, places], values[rows, places] = k, v
        return attention(q, keys, values, scale=scale, cap=cap, causal=True, bias=bias, k_lengths=ends)

    def advance(self, n: int) -> None:
        """Count n new positions in every row, after each layer has been extended by them."""
        self.count(n)
        self._filled += n
        self._step = None

    def count(self, n: int) -> None:
        """Note what `advance` notes outside of the device, where a recorded step has extended the rows."""
        self._lengths = [length + n for length in self._lengths]

    def set_lengths(self, lengths: list[int]) -> None:
        """Forget everything behind these lengths, one per row."""
        self._lengths, found = list(lengths), torch.tensor(lengths, dtype=torch.int64)
        if len(lengths) > len(self._most):
            self._most = found.to(self._data.device)
        self._filled = self._most[: len(lengths)]
        self._filled.copy_(found)
        self._step = None

    def _places(self, n: int) -> tuple[Tensor, Tensor]:
        """Where each row's next n positions are, (B,n), and where they end, (B,): the same tensors for every layer."""
        if self._step is None or self._step[0].shape[1] != n:
            steps = torch.arange(n, device=self._filled.device)
            self._step = self._filled[:, None] + steps, self._filled + n
        return self._step
