"""Gradients of llmcli.ops.attention on the CUDA kernels: the operator's tests, on cases that reach every variant."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ops import test_attention_backward as operator
from tests.ops.test_attention import draw

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
CAUSAL = {"causal": True}


@pytest.mark.parametrize(
    ("shape", "dtype", "form"),  # B, T, S, H, G, D: every size of tile, in 16 bytes and one by one
    [
        ((2, 5, 7, 2, 1, 3), F32, CAUSAL),
        ((1, 9, 130, 14, 2, 128), F32, {}),
        ((1, 20, 50, 1, 1, 255), F32, {**CAUSAL, "scale": -0.3}),
        ((1, 97, 97, 1, 1, 64), BF16, CAUSAL),
        ((1, 96, 128, 2, 2, 80), BF16, {}),
        ((1, 9, 130, 14, 2, 128), BF16, CAUSAL),
        ((1, 5, 140, 2, 1, 256), BF16, CAUSAL),
        ((2, 60, 17, 2, 2, 8), F16, CAUSAL),
        ((1, 95, 127, 3, 1, 33), F16, {**CAUSAL, "scale": -0.3}),
        ((1, 70, 150, 1, 1, 96), F16, CAUSAL),
        ((1, 20, 50, 1, 1, 255), F16, {}),
    ],
)
def test_close_to_float64(isa: str, shape: tuple[int, ...], dtype: torch.dtype, form: dict[str, Any]) -> None:
    operator.test_gradients_close_to_float64(isa, shape, dtype, form)


@pytest.mark.parametrize(("shape", "dtype"), [((2, 4, 30, 150), BF16), ((4, 1, 1), F32), ((1, 1, 30, 1), F32)])
def test_bias(isa: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    operator.test_bias_gradient_has_the_shape_of_bias(isa, shape, dtype)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_cap(isa: str, dtype: torch.dtype) -> None:
    operator.test_gradients_through_a_cap(isa, 0.5, dtype)


def test_k_lengths(isa: str) -> None:
    operator.test_k_lengths_and_rows_that_see_nothing(isa)


@pytest.mark.parametrize(("dtype", "value"), [(F32, torch.inf), (BF16, torch.inf), (BF16, torch.nan)])
@pytest.mark.parametrize("operand", ["q", "k", "v", "grad"])
def test_infinities(isa: str, operand: str, dtype: torch.dtype, value: float) -> None:
    operator.test_infinities_and_nan_reach_those_who_see_them(isa, operand, value, dtype)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_bits_of_a_batch_row_do_not_depend_on_its_company(isa: str, dtype: torch.dtype) -> None:
    inputs = list(draw((2, 70, 70, 2, 1, 32), dtype))
    grad = torch.randn(2, 70, 2, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    whole = operator.gradients(CAUSAL, inputs, grad)
    for one, x in zip(operator.gradients(CAUSAL, [x[1:] for x in inputs], grad[1:]), whole, strict=True):
        assert torch.equal(one, x[1:])


@pytest.mark.parametrize("sizes", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty(isa: str, sizes: tuple[int, int, int]) -> None:
    B, T, S = sizes
    q, k, v = (torch.randn(B, n, 2, 16, requires_grad=True) for n in (T, S, S))
    operator.attention(q, k, v).sum().backward()
    for x in (q, k, v):
        assert x.grad is not None
        assert x.grad.shape == x.shape
        assert not x.grad.any()
