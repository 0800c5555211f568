"""Every way of reading the same ids must give the same logits, bit for bit: whole, in chunks, one by one, padded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from llmcli.generation.rows import Generates
from llmcli.verification.determinism import read


class Reads(Generates, Protocol):
    """A model that also gives the logits (B,T,V) of all positions at once, without a cache."""

    def __call__(self, ids: Tensor) -> Tensor: ...


@dataclass
class Way:
    """One way of reading beside the full prefill: rows of logits compared, and how they differ."""

    name: str
    compared: int = 0
    differing: int = 0
    largest: float = 0.0  # absolute difference of two logits
    first: tuple[int, int] | None = None  # prompt and position of the first row that differs

    def compare(self, got: Tensor, expected: Tensor, prompt: int, position: int) -> None:
        """Count one row (V,); NaN in the same place is the same."""
        self.compared += 1
        if torch.equal(got.view(torch.uint8), expected.view(torch.uint8)):
            return
        self.differing += 1
        self.largest = max(self.largest, float((got.double() - expected.double()).abs().nan_to_num(torch.inf).max()))
        self.first = self.first or (prompt, position)


@torch.inference_mode()
def verify(
    model: Reads, prompts: Sequence[Sequence[int]], chunks: Sequence[int], device: torch.device | str = "cpu"
) -> Iterator[Way]:
    """Compare each way with the full prefill of each prompt alone; prompts of different lengths, at least 4 tokens."""
    rows = [torch.tensor([prompt], device=device) for prompt in prompts]
    whole = [model(ids)[0].contiguous() for ids in rows]
    capacity = max(map(len, prompts))
    for chunk in chunks:
        way = Way("token by token" if chunk == 1 else f"chunks of {chunk}")
        for n, ids in enumerate(rows):
            ends = [*range(chunk, ids.shape[1], chunk), ids.shape[1]]
            logits, state = model.start(ids[:, : ends[0]], capacity=capacity)
            way.compare(logits[0], whole[n][ends[0] - 1], n, ends[0] - 1)
            for begin, end in pairwise(ends):
                logits = model.step(ids[:, begin:end], state)
                way.compare(logits[0], whole[n][end - 1], n, end - 1)
        yield way
    yield padded(model, rows, whole, capacity)
    yield reordered(model, rows, whole, capacity)


def padded(model: Reads, rows: Sequence[Tensor], whole: Sequence[Tensor], capacity: int) -> Way:
    """All prompts but their last two tokens as one right-padded batch, then two steps together."""
    way, lengths = Way("padded batch"), [ids.shape[1] - 2 for ids in rows]
    batch = rows[0].new_zeros(len(rows), max(lengths))
    for n, ids in enumerate(rows):
        batch[n, : lengths[n]] = ids[0, : lengths[n]]
    logits, state = model.start(batch, torch.tensor(lengths, device=batch.device), capacity=capacity)
    for step in range(3):
        for n, length in enumerate(lengths):
            way.compare(logits[n], whole[n][length - 1 + step], n, length - 1 + step)
        if step < 2:
            tokens = [int(ids[0, length + step]) for ids, length in zip(rows, lengths, strict=True)]
            logits = model.step(torch.tensor(tokens, device=batch.device)[:, None], state)
    return way


def reordered(model: Reads, rows: Sequence[Tensor], whole: Sequence[Tensor], capacity: int) -> Way:
    """A prompt's state repeated three times, then thinned out to one: neighbours must not show."""
    way = Way("rows repeated and dropped")
    for n, ids in enumerate(rows):
        _, state = read(model, ids[:, :-2], 0, capacity)
        for position, kept in ((ids.shape[1] - 2, [0, 0, 0]), (ids.shape[1] - 1, [2])):
            state.select(torch.tensor(kept, device=ids.device))
            logits = model.step(ids[:, position : position + 1].expand(len(kept), 1), state)
            for row in logits:
                way.compare(row, whole[n][position], n, position)
    return way
