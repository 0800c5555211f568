"""llmcli.ops.norm on the CUDA kernels."""

from __future__ import annotations

import pytest
import torch

from llmcli.ops import add_layer_norm, layer_norm, rms_norm
from tests.ops.samples import DTYPES, normal
from tests.ops.test_norm import (
    test_backward_close_to_float64,
    test_close_to_float64,
    test_constant_rows_infinities_and_nan,
    test_large_mean_costs_no_precision,
    test_residual_add_is_the_same_in_one_pass,
    test_residual_of_a_wider_dtype,
    test_strides_change_nothing,
    theirs,
)
from tests.ops.tolerance import assert_within_budget

__all__ = [
    "test_backward_close_to_float64",
    "test_close_to_float64",
    "test_constant_rows_infinities_and_nan",
    "test_large_mean_costs_no_precision",
    "test_residual_add_is_the_same_in_one_pass",
    "test_residual_of_a_wider_dtype",
    "test_strides_change_nothing",
]


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1999, 4099, 8209])  # of a block's registers, of few, of none
def test_long_rows_and_their_gradients(isa: str, size: int, dtype: torch.dtype, rms: bool) -> None:
    x, weight, grad = normal(34, size, dtype=dtype)[::17], normal(size, seed=1), normal(2, size, seed=2, dtype=dtype)
    results = []
    for kind in (dtype, torch.float64):
        leaves = [x.to(kind).requires_grad_(), weight.to(kind if kind is torch.float64 else weight.dtype)]
        leaves[1].requires_grad_()
        y = rms_norm(*leaves) if rms else layer_norm(*leaves)
        results.append((y, *torch.autograd.grad(y, leaves, grad.to(kind))))
    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    y = theirs(leaves[0], leaves[1], None, 1e-6 if rms else 1e-5, rms)
    torchs = (y, *torch.autograd.grad(y, leaves, grad))
    for ours, peer, exact in zip(results[0], torchs, results[1], strict=True):
        assert_within_budget(ours.detach(), peer.detach(), exact.detach())


@pytest.mark.parametrize("size", [100, 1100])
def test_bits_of_a_row_do_not_depend_on_its_company(isa: str, size: int) -> None:
    x, residual = normal(70, size, dtype=torch.bfloat16), normal(70, size, seed=1, dtype=torch.bfloat16)
    weight, bias = normal(size, seed=2), normal(size, seed=3)
    whole = add_layer_norm(x, residual, weight, bias)[0]
    for row in (0, 33, 69):
        assert torch.equal(add_layer_norm(x[row:], residual[row:], weight, bias)[0][0], whole[row])
        leaf, alone = (t.clone().requires_grad_() for t in (x, x[row:]))
        gradients = [torch.autograd.grad(layer_norm(t, weight), t, residual[-len(t) :])[0][-1] for t in (leaf, alone)]
        assert torch.equal(*gradients)
