"""A model small enough to check by hand: the next token depends on the last three, through a fixed random table."""

from __future__ import annotations

import torch
from torch import Tensor


class ToyVocabulary:
    """Token n is one letter; the last is the end of the text, unless texts are endless."""

    def __init__(self, size: int, *, endless: bool = False) -> None:
        self.vocab_size = size
        self.eos_id = None if endless else size - 1

    def token_bytes(self, token: int) -> bytes:
        return bytes([ord("a") + token])


class ToyState:
    def __init__(self, tails: Tensor, lengths: Tensor, capacity: int | None) -> None:
        self.tails, self.lengths, self.capacity = tails, lengths, capacity

    def select(self, rows: Tensor) -> None:
        self.tails, self.lengths = self.tails[rows], self.lengths[rows]

    def append(self, other: ToyState) -> None:
        self.tails, self.lengths = torch.cat([self.tails, other.tails]), torch.cat([self.lengths, other.lengths])
        if self.capacity is not None and other.capacity is not None:
            self.capacity = max(self.capacity, other.capacity)


class Toy:
    """Satisfies the protocol `Generates`; counts the prompts and tokens that it was asked to read."""

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        self.table = torch.randn(3, vocab_size, vocab_size, generator=torch.Generator().manual_seed(seed)) * 2
        self.starts: list[tuple[int, int]] = []
        self.steps: list[int] = []

    def logits(self, tails: Tensor) -> Tensor:
        return sum(self.table[n, tails[:, n]] for n in range(3))  # type: ignore[return-value]

    def start(
        self, ids: Tensor, lengths: Tensor | None = None, *, capacity: int | None = None
    ) -> tuple[Tensor, ToyState]:
        lengths = torch.full((len(ids),), ids.shape[1]) if lengths is None else lengths
        self.starts.append(tuple(ids.shape))
        padded = torch.cat([torch.zeros(len(ids), 3, dtype=torch.long), ids], 1)
        tails = padded.gather(1, lengths[:, None] + torch.arange(3))
        return self.logits(tails), ToyState(tails, lengths, capacity)

    def step(self, ids: Tensor, state: ToyState) -> Tensor:
        self.steps.append(len(ids))
        state.tails = torch.cat([state.tails[:, 1:], ids], 1)
        state.lengths = state.lengths + 1
        assert state.capacity is None or int(state.lengths.max()) <= state.capacity
        return self.logits(state.tails)
