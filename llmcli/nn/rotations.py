"""The angles by which rotary positions turn queries and keys, computed as far as positions are asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmcli.nn.kv_cache import KVCache

BLOCK = 1024  # positions; each block is computed by itself, so that its bits depend on nothing else


class Rotations:
    """Cosines and sines as `rotary` takes them; `rates` gives radians per position of each pair, (R/2,) float64."""

    def __init__(self, rates: Callable[[], Tensor]) -> None:
        self._rates = rates
        self._table: tuple[Tensor, Tensor] | None = None  # each (positions,R/2) float32
        self._before: list[tuple[Tensor, Tensor]] = []  # shorter ones, from which steps recorded on a GPU still read

    def at(self, ids: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        """Cosine and sine at the positions of ids (B,T), each (1 or B,T,R/2) float32."""
        T = ids.shape[1]
        positions = slice(0, T) if cache is None else cache.positions(T)
        tables = self._until(T if cache is None else cache.span(T), ids.device)
        cos, sin = (table[positions].view(-1, T, table.shape[1]) for table in tables)
        return cos, sin

    def _until(self, end: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Tables of at least so many positions, at least twice as long as the ones before."""
        found, length = self._table, 0 if self._table is None else len(self._table[0])
        if found is None or found[0].device != device or length < end:
            if found is not None and found[0].is_cuda:
                self._before.append(found)
            with torch.inference_mode(False):  # training may use what an evaluation made
                rate = self._rates()
                starts = range(0, max(end, 2 * length) if length < end else length, BLOCK)
                angles = [torch.arange(at, at + BLOCK, dtype=torch.float64)[:, None] * rate for at in starts]
                cos, sin = torch.cat([a.cos().float() for a in angles]), torch.cat([a.sin().float() for a in angles])
                found = self._table = cos.to(device), sin.to(device)
        return found
