"""llmcli.ops.attention on the CUDA kernels."""

from __future__ import annotations

import pytest
import torch

from llmcli.ops import attention
from tests.ops.test_attention import (
    draw,
    test_any_scale,
    test_bias_broadcasts,
    test_bias_of_any_strides_and_minus_infinity,
    test_capped_scores,
    test_close_to_float64,
    test_empty,
    test_infinities_and_nan_reach_those_who_see_them,
    test_k_lengths_hide_the_keys_behind_them,
    test_lse_is_the_log_of_the_sum_of_exponentials,
    test_strided_views_give_the_same_bits,
)

__all__ = [
    "test_any_scale",
    "test_bias_broadcasts",
    "test_bias_of_any_strides_and_minus_infinity",
    "test_capped_scores",
    "test_close_to_float64",
    "test_empty",
    "test_infinities_and_nan_reach_those_who_see_them",
    "test_k_lengths_hide_the_keys_behind_them",
    "test_lse_is_the_log_of_the_sum_of_exponentials",
    "test_strided_views_give_the_same_bits",
]


@pytest.mark.parametrize(("dtype", "head_dim"), [(torch.float32, 64), (torch.bfloat16, 64), (torch.float16, 136)])
def test_bits_of_a_row_do_not_depend_on_its_company(isa: str, head_dim: int, dtype: torch.dtype) -> None:
    """A prompt in one piece, its end alone, a batch and one of its rows."""
    q, k, v = draw((2, 140, 140, 2, 1, head_dim), dtype)
    whole = attention(q, k, v, causal=True)
    for rows in (1, 8, 20):  # the first two by blocks of keys side by side, but in float32 and heads above 128
        assert torch.equal(attention(q[:, -rows:], k, v, causal=True), whole[:, -rows:])
    assert torch.equal(attention(q[1:], k[1:], v[1:], causal=True), whole[1:])
    assert torch.equal(attention(q[:, :40], k[:, :40], v[:, :40], causal=True), whole[:, :40])
