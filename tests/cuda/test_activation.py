"""llmcli.ops.activation on the CUDA kernels."""

from __future__ import annotations

import pytest
import torch

from llmcli.ops import gelu, silu_gate
from tests.ops.samples import normal
from tests.ops.test_activation import (
    test_gelu_backward_close_to_float64,
    test_gelu_close_to_float64,
    test_gelu_over_its_whole_range,
    test_halves_of_a_projection_are_read_in_place,
    test_silu_gate_backward_close_to_float64,
    test_silu_gate_close_to_float64,
)

__all__ = [
    "test_gelu_backward_close_to_float64",
    "test_gelu_close_to_float64",
    "test_gelu_over_its_whole_range",
    "test_halves_of_a_projection_are_read_in_place",
    "test_silu_gate_backward_close_to_float64",
    "test_silu_gate_close_to_float64",
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_of_a_row_do_not_depend_on_its_company(isa: str, dtype: torch.dtype) -> None:
    x, up, bias = normal(70, 37, dtype=dtype), normal(70, 37, seed=1, dtype=dtype), normal(37, seed=2)
    leaf = x.clone().requires_grad_()
    whole = (gelu(x, bias), silu_gate(x, up, bias, bias))
    gradient = torch.autograd.grad(gelu(leaf, bias) + silu_gate(leaf, up, bias, bias), leaf, up)[0]
    for row in (0, 33, 69):
        one, other = x[row:].clone().requires_grad_(), up[row:]
        alone = (gelu(one, bias), silu_gate(one, other, bias, bias))
        for ours, all_rows in zip(alone, whole, strict=True):
            assert torch.equal(ours[0], all_rows[row])
        assert torch.equal(torch.autograd.grad(alone[0] + alone[1], one, other)[0][0], gradient[row])
