"""llmcli.ops.linear_cross_entropy on the CUDA kernels."""

from __future__ import annotations

import pytest
import torch

from llmcli.ops import linear_cross_entropy
from tests.ops.samples import DTYPES
from tests.ops.test_linear_cross_entropy import (
    make,
    peers,
    test_rows_that_do_not_count_have_no_gradient,
    test_what_is_not_finite_shows,
)
from tests.ops.test_linear_cross_entropy import test_close_to_float64 as close_to_float64
from tests.ops.tolerance import assert_gradient_within_budget, assert_within_budget

__all__ = [
    "test_rows_that_do_not_count_have_no_gradient",
    "test_what_is_not_finite_shows",
]


@pytest.mark.parametrize(("smoothing", "cap"), [(0.0, None), (0.1, 2.0)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 17, 31), (13, 24, 2100)])
def test_close_to_float64(
    isa: str, shape: tuple[int, int, int], dtype: torch.dtype, smoothing: float, cap: float | None
) -> None:
    close_to_float64(isa, shape, dtype, smoothing, cap)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8200, 3, 4), (3, 2, 9001)])  # two pieces of rows; rows beyond registers
def test_pieces_and_long_rows(isa: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x, weight, targets = make(*shape, dtype)
    loss = linear_cross_entropy(x, weight, targets, scale=0.1)
    exact, theirs = (peers(t, w, targets, 0.0) for t, w in ((x.double(), weight.double()), (x, weight)))
    assert_within_budget(loss.detach(), theirs[0], exact[0])
    for ours, peer, truth in zip(torch.autograd.grad(loss, (x, weight)), theirs[1:], exact[1:], strict=True):
        assert_gradient_within_budget(ours, peer, truth)


def test_targets_outside_of_the_vocabulary_are_an_error(isa: str) -> None:
    x, weight, targets = make(9, 5, 11)
    with pytest.raises(RuntimeError, match="targets below 11, got 11"):
        linear_cross_entropy(x, weight, targets.clamp(min=11))
