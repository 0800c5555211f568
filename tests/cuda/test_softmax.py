"""llmcli.ops.softmax on the CUDA kernels."""

from __future__ import annotations

import pytest
import torch

from llmcli.ops import softmax
from tests import reference
from tests.ops.samples import DTYPES, normal
from tests.ops.test_softmax import (
    test_backward_close_to_float64,
    test_close_to_float64,
    test_hidden_elements_get_no_gradient,
    test_hidden_rows_infinities_and_nan,
    test_mask_broadcasts,
    test_strides_change_nothing,
    torchs,
)
from tests.ops.tolerance import assert_within_budget

__all__ = [
    "test_backward_close_to_float64",
    "test_close_to_float64",
    "test_hidden_elements_get_no_gradient",
    "test_hidden_rows_infinities_and_nan",
    "test_mask_broadcasts",
    "test_strides_change_nothing",
]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [3001, 9001])  # of a block's registers, and of the cache
def test_long_rows_and_their_gradients(isa: str, size: int, dtype: torch.dtype, log: bool) -> None:
    x, grad = normal(2, size, dtype=dtype, size=4).requires_grad_(), normal(2, size, seed=1, dtype=dtype)
    exact = x.detach().double().requires_grad_()
    ours, theirs, expected = softmax(x, log=log), torchs(x, log=log), reference.softmax(exact, log=log)
    assert_within_budget(ours, theirs, expected)
    gradients = [
        torch.autograd.grad(y, leaf, grad.to(y.dtype))[0] for y, leaf in ((ours, x), (theirs, x), (expected, exact))
    ]
    assert_within_budget(*gradients)


@pytest.mark.parametrize("size", [100, 3001])
def test_bits_of_a_row_do_not_depend_on_its_company(isa: str, size: int) -> None:
    x = normal(11, size, dtype=torch.bfloat16, size=3)
    for row in (0, 7, 10):
        assert torch.equal(softmax(x[row:])[0], softmax(x)[row])
