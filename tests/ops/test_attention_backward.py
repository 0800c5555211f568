"""Gradients of llmcli.ops.attention, and what torch's compiler machinery asks of the operators."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from llmcli.ops import attention
from tests.ops.test_attention import draw

page = import_module("llmcli.ops.attention")  # the module; the package gives the function this name

FORMS: list[dict[str, Any]] = [
    {},
    {"causal": True},
    {"causal": True, "k_lengths": torch.tensor([4, 0])},
    {"bias": torch.randn(4, 1, 4, generator=torch.Generator().manual_seed(0))},
    {"bias": torch.randn(2, 4, 3, 4, generator=torch.Generator().manual_seed(0)), "causal": True, "scale": 0.7},
]


def arguments(form: dict[str, Any], q: Tensor, k: Tensor, v: Tensor) -> tuple[Any, ...]:
    """Of the operator itself, from those of its wrapper."""
    bias = form.get("bias")
    if bias is not None:
        bias = bias[(None,) * (4 - bias.dim())].to(q.dtype)
    return q, k, v, bias, form.get("k_lengths"), form.get("scale", 0.5), form.get("causal", False)


class Formula(torch.autograd.Function):
    """The fallback and its backward as one function: float64 is no dtype of the kernels."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        out, lse = page._fallback(q, k, v, bias, *rest)
        ctx.save_for_backward(q, k, v, out, lse, bias)
        ctx.rest = rest
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        bias_grad = ctx.needs_input_grad[3]
        dq, dk, dv, dbias = page._fallback_backward(grad, *ctx.saved_tensors, *ctx.rest, bias_grad)
        return dq, dk, dv, dbias if bias_grad else None, None, None, None


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_of_the_formula(form: dict[str, Any]) -> None:
    q, k, v = draw((2, 3, 4, 4, 2, 5), torch.float64)
    args = [
        x.requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments(form, q, k, v)
    ]
    assert torch.autograd.gradcheck(Formula.apply, args)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(form: dict[str, Any], dtype: torch.dtype) -> None:
    q, k, v = draw((2, 3, 4, 4, 2, 5), dtype)
    args = [
        x.requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments(form, q, k, v)
    ]
    torch.library.opcheck(torch.ops.llmcli.attention.default, args)
    with torch.no_grad():
        out, lse = torch.ops.llmcli.attention(*args)
    q, k, v, bias, lengths, scale, causal = (x.detach() if isinstance(x, Tensor) else x for x in args)
    backward = (torch.ones_like(out), q, k, v, out, lse, bias, lengths, scale, causal, bias is not None)
    torch.library.opcheck(torch.ops.llmcli.attention_backward.default, backward)


def test_lse_gets_no_gradient() -> None:
    q, k, v = (x.requires_grad_() for x in draw((1, 2, 3, 1, 1, 4), torch.float32))
    out, lse = torch.ops.llmcli.attention(q, k, v, None, None, 1.0, False)
    assert out.requires_grad
    assert not lse.requires_grad
    assert attention(q, k, v).requires_grad
