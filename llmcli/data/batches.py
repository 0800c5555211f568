"""What a training step sees: windows of a stream, or rows of examples, in an order drawn from the seed.

Ids only, no text.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from llmcli.errors import InputError

IGNORED = -100  # a target that is not learned and does not count; torch's own default
# Tokens of a shard: enough for full speed of the matrix products, few enough that its activations stay near a core.
SHARD_TOKENS = 1024

Shard = tuple[Tensor, Tensor]  # inputs and targets, each (rows, T) int64; a target may be IGNORED


class Batches(Protocol):
    """Endless training rows: a row's place is a number, so that a run continues where it stopped."""

    def batch(self, first: int, size: int) -> Shard:
        """Rows first … first+size-1, at least one target in each."""


@dataclass(frozen=True)
class HeldOut:
    """What a validation scores, and the UTF-8 bytes of the text behind its targets."""

    shards: Sequence[Shard]
    n_bytes: int


class Shards:
    """Streams of ids (n,), one after the other, read as one; what is not asked for is not touched."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self.parts = parts
        self.ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, where: slice) -> Tensor:
        """The ids of a slice with a step of 1."""
        begin, end, _ = where.indices(len(self))
        found, place = [], bisect.bisect_right(self.ends, begin)
        while begin < end:
            first = self.ends[place] - len(self.parts[place])
            found.append(self.parts[place][begin - first : end - first])
            begin, place = self.ends[place], place + 1
        return torch.cat(found) if found else self.parts[0][:0]


class Windows:
    """Random windows of a token stream (N,): every epoch visits each of them once, in an order drawn from the seed.

    An epoch also draws where the first window starts, so that the cuts fall elsewhere each time.
    """

    def __init__(self, stream: Tensor | Shards, length: int, seed: int) -> None:
        self.stream, self.length, self.seed = stream, length, seed
        # The random start may cost one window; each window also needs the token after it as its last target.
        self.per_epoch = (len(stream) - length) // length
        if self.per_epoch < 1:
            raise InputError(
                f"the training text has {len(stream)} tokens, fewer than two windows of {length}: "
                "give more text or a smaller --ctx-size"
            )

    def start(self, index: int) -> int:
        """Where window `index` (0, 1, … over all epochs) begins."""
        epoch, position = divmod(index, self.per_epoch)
        return int(self._order(epoch)[position])

    def batch(self, first: int, size: int) -> Shard:
        """Windows first … first+size-1: inputs and targets, each (size, length) int64."""
        starts = [self.start(index) for index in range(first, first + size)]
        rows = torch.stack([self.stream[start : start + self.length + 1] for start in starts]).long()
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def _order(self, epoch: int) -> Tensor:
        if getattr(self, "_epoch", None) != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            offset = torch.randint(len(self.stream) - self.per_epoch * self.length, (), generator=generator)
            self._starts = offset + self.length * torch.randperm(self.per_epoch, generator=generator)
            self._epoch = epoch
        return self._starts


@dataclass(frozen=True)
class Row:
    """One example: inputs and targets, each (n,) int32; at least one target is not IGNORED."""

    inputs: Tensor
    targets: Tensor


class Rows:
    """Examples, each once in an epoch, in an order drawn from the seed; a batch is padded and sorted by length.

    Each row loses a share of its tokens that is drawn anew in every epoch, `token_dropout`, so that no one of them
    decides ("Deep Unordered Composition Rivals Syntactic Methods for Text Classification", Iyyer et al. 2015, section
    3.1). The first and the last stay.
    """

    def __init__(self, rows: Sequence[Row], seed: int, token_dropout: float = 0.0) -> None:
        if not rows:
            raise InputError("there is no example to learn from")
        self.rows, self.seed, self.token_dropout = rows, seed, token_dropout
        self.per_epoch = len(rows)

    def batch(self, first: int, size: int) -> Shard:
        """Rows first … first+size-1 of all epochs, the shortest first."""
        return padded([self._row(index) for index in range(first, first + size)])

    def _row(self, index: int) -> Row:
        epoch, place = divmod(index, len(self.rows))
        row = self.rows[int(self._order(epoch)[place])]
        if not self.token_dropout:
            return row
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        kept = torch.rand(len(row.inputs), generator=generator) >= self.token_dropout
        kept[0] = kept[-1] = True
        return Row(row.inputs[kept], row.targets[kept])

    def _order(self, epoch: int) -> Tensor:
        if getattr(self, "_epoch", None) != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._permutation = torch.randperm(len(self.rows), generator=generator)
            self._epoch = epoch
        return self._permutation


def padded(rows: Sequence[Row]) -> Shard:
    """Rows as inputs and targets, each (len(rows), T), the shortest first, with zeros and IGNORED on the right."""
    rows = sorted(rows, key=lambda row: len(row.inputs))
    inputs = torch.zeros(len(rows), len(rows[-1].inputs), dtype=torch.int64)
    targets = torch.full_like(inputs, IGNORED)
    for place, row in enumerate(rows):
        inputs[place, : len(row.inputs)] = row.inputs
        targets[place, : len(row.inputs)] = row.targets
    return inputs, targets


def held_out_rows(rows: Sequence[Row], n_bytes: int) -> HeldOut:
    """Examples, those of about one length side by side."""
    rows = sorted(rows, key=lambda row: len(row.inputs))
    shards, together = [], 64
    for first in range(0, len(rows), together):
        shards += cut(*padded(rows[first : first + together]))
    return HeldOut(shards, n_bytes)


def held_out(stream: Tensor | Shards, length: int, n_bytes: int) -> HeldOut:
    """A stream (N,) in windows of `length` side by side; its first token has nothing before it and is not scored."""
    inputs, targets = stream[:-1].long(), stream[1:].long()
    whole = len(inputs) // length * length
    shards = cut(inputs[:whole].view(-1, length), targets[:whole].view(-1, length)) if whole else []
    if whole < len(inputs):
        shards.append((inputs[None, whole:], targets[None, whole:]))
    return HeldOut(shards, n_bytes)


def cut(inputs: Tensor, targets: Tensor, most_rows: int | None = None) -> list[Shard]:
    """Rows as shards of about SHARD_TOKENS tokens, each without the columns after its last target."""
    rows = max(1, SHARD_TOKENS // inputs.shape[1])
    if most_rows is not None:
        rows = min(rows, most_rows)
    shards = []
    for some_inputs, some_targets in zip(inputs.split(rows), targets.split(rows), strict=True):
        end = int((some_targets != IGNORED).any(0).nonzero()[-1]) + 1
        shards.append((some_inputs[:, :end], some_targets[:, :end]))
    return shards
