"""llmcli.ops.linear_quantized on the CUDA kernels: the bits of the CPU."""

from __future__ import annotations

import pytest
import torch

from llmcli.ops import linear_quantized
from llmcli.ops.linear_quantized import _linear_fallback, _pack_fallback
from tests.ops.samples import normal
from tests.ops.test_linear_quantized import (
    both,
    integers,
    test_extremes_do_not_saturate,
    test_the_same_bits_everywhere,
    test_tiny_and_huge_rows,
    test_what_is_not_finite_stays_in_its_row,
)

__all__ = [
    "test_extremes_do_not_saturate",
    "test_the_same_bits_everywhere",
    "test_tiny_and_huge_rows",
    "test_what_is_not_finite_stays_in_its_row",
]


@both
@pytest.mark.parametrize(
    ("K", "counts"),  # less than a piece, odd ends, more pieces than wait at a time; above 32 rows on tensor cores
    [(1, (1, 3, 33)), (36, (1, 3, 9, 33, 150)), (130, (4, 9, 64)), (2080, (9,)), (4110, (1,))],
)
def test_any_number_of_rows(isa: str, K: int, counts: tuple[int, ...], bits: int) -> None:
    q, scale = integers(20, K, bits)
    packed, x = torch.ops.llmcli.linear_quantized_pack(q, scale, K), normal(max(counts), K, seed=K)
    assert torch.equal(packed, _pack_fallback(q, scale, K))
    expected = _linear_fallback(x, packed, None, 20, bits)
    for M in counts:
        assert torch.equal(linear_quantized(x[:M], packed, None, 20, bits), expected[:M]), M
