"""Sums over rows on the CUDA kernel, by way of the gradient of a bias."""

from __future__ import annotations

import pytest
import torch

from llmcli.ops import gelu
from tests.ops.samples import DTYPES, normal
from tests.ops.tolerance import assert_within_budget


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(33, 3), (1100, 33)])  # more blocks of rows than a block has warps
def test_gradient_of_a_bias_of_many_rows(isa: str, rows: int, columns: int, dtype: torch.dtype) -> None:
    x, grad, bias = normal(rows, columns, dtype=dtype), normal(rows, columns, seed=1, dtype=dtype), torch.zeros(columns)

    def gradient(kind: torch.dtype) -> torch.Tensor:
        leaf = bias.to(kind).requires_grad_()
        return torch.autograd.grad(gelu(x.to(kind), leaf), leaf, grad.to(kind))[0]

    leaf = bias.to(dtype).requires_grad_()
    torchs = torch.autograd.grad(torch.nn.functional.gelu(x + leaf), leaf, grad)[0]
    assert_within_budget(gradient(dtype), torchs, gradient(torch.float64))
