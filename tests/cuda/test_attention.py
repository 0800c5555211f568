"""llmcli.ops.attention on the CUDA kernels."""

from __future__ import annotations

import ctypes

import pytest
import torch

from llmcli.ops import attention
from tests import reference
from tests.ops.test_attention import (
    draw,
    sdpa,
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
from tests.ops.tolerance import assert_within_budget

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


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 150, 420, 3, 1, 64), torch.bfloat16), ((1, 270, 270, 1, 1, 128), torch.float16)]
)
def test_many_tiles_of_many_blocks(isa: str, shape: tuple[int, ...], dtype: torch.dtype, causal: bool) -> None:
    q, k, v = draw(shape, dtype)
    exact, _ = reference.attention(q, k, v, causal=causal)
    assert_within_budget(attention(q, k, v, causal=causal), sdpa(q, k, v, causal=causal), exact)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_what_lengths_hide_reaches_nobody(isa: str, head_dim: int, causal: bool) -> None:
    """In blocks of keys that lie behind a length or around it, and in a cache with room behind the last key."""
    q, k, v = draw((3, 70, 300, 2, 1, head_dim), torch.bfloat16)
    lengths = torch.tensor([300, 130, 0])
    ours = attention(q, k, v, causal=causal, k_lengths=lengths)
    cache = [torch.full((3, 400, 1, head_dim), torch.nan, dtype=torch.bfloat16) for _ in (k, v)]
    for b, n in enumerate(lengths.tolist()):
        for room, x in zip(cache, (k, v), strict=True):
            room[b, :n] = x[b, :n]
    hidden = attention(q, cache[0][:, :300], cache[1][:, :300], causal=causal, k_lengths=lengths)
    assert torch.equal(hidden, ours)
    exact, _ = reference.attention(q, k, v, causal=causal, k_lengths=lengths)
    torch.testing.assert_close(ours.double(), exact, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("shape", "dtype", "cap", "threads"),
    [
        ((1, 17, 40, 1, 1, 64), torch.bfloat16, None, 384),
        ((1, 17, 40, 1, 1, 128), torch.float16, None, 384),
        ((1, 17, 40, 1, 1, 104), torch.bfloat16, None, 384),
        ((1, 17, 40, 1, 1, 96), torch.bfloat16, None, 128),
        ((1, 17, 40, 1, 1, 60), torch.bfloat16, None, 128),
        ((1, 17, 40, 1, 1, 64), torch.bfloat16, 5.0, 128),
    ],
)
def test_gpus_of_9_0_have_a_kernel_of_their_own(
    isa: str,
    emulation: ctypes.CDLL | None,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    cap: float | None,
    threads: int,
) -> None:
    """For heads that fit its tiles and rows on 16 bytes, without bias and cap; the results are compared in any case."""
    attention(*draw(shape, dtype), cap=cap)
    assert emulation is None or emulation.emulation_threads() == threads
