"""The table of angles: as long as asked for, with the same bits however it grew."""

from __future__ import annotations

from functools import partial

import torch

from llmcli.nn.rotations import BLOCK, Rotations


def rates(n: int) -> torch.Tensor:
    return 10000.0 ** (-torch.arange(n, dtype=torch.float64) / n)


def test_the_same_bits_however_it_grew() -> None:
    ids = torch.zeros(1, 3 * BLOCK + 7, dtype=torch.int64)
    grown = Rotations(partial(rates, 5))
    first = [table.clone() for table in grown.at(ids[:, :10], None)]
    long = grown.at(ids, None)
    for table, once, short in zip(long, Rotations(partial(rates, 5)).at(ids, None), first, strict=True):
        assert table.shape == (1, ids.shape[1], 5)
        assert torch.equal(table, once)
        assert torch.equal(table[:, :10], short)
    angle = torch.arange(ids.shape[1], dtype=torch.float64)[:, None] * rates(5)
    assert torch.allclose(long[0][0], angle.cos().float(), atol=1e-7, rtol=0)
    assert torch.allclose(long[1][0], angle.sin().float(), atol=1e-7, rtol=0)


def test_a_huge_context_costs_nothing_until_it_is_used() -> None:
    table = Rotations(partial(rates, 64))
    table.at(torch.zeros(1, 3, dtype=torch.int64), None)
    assert table._table is not None
    assert len(table._table[0]) == BLOCK
