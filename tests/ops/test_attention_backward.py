"""Gradients of llmcli.ops.attention, and what torch's compiler machinery asks of the operators."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, library

from llmcli.ops import attention
from tests.ops.test_attention import draw
from tests.ops.tolerance import assert_gradient_within_budget

page = import_module("llmcli.ops.attention")  # the module; the package gives the function this name

FORMS: list[dict[str, Any]] = [
    {},
    {"causal": True},
    {"causal": True, "k_lengths": torch.tensor([4, 0])},
    {"bias": torch.randn(4, 1, 4, generator=torch.Generator().manual_seed(0))},
    {"bias": torch.randn(2, 4, 3, 4, generator=torch.Generator().manual_seed(0)), "causal": True, "scale": 0.7},
    {"bias": torch.randn(4, 1, 4, generator=torch.Generator().manual_seed(0)), "causal": True, "cap": 0.8},
]


def arguments(form: dict[str, Any], q: Tensor, k: Tensor, v: Tensor) -> tuple[Any, ...]:
    """Of the operator itself, from those of its wrapper."""
    bias = form.get("bias")
    if bias is not None:
        bias = bias[(None,) * (4 - bias.dim())].to(q.dtype)
    return q, k, v, bias, form.get("k_lengths"), form.get("scale", 0.5), form.get("cap", 0.0), form.get("causal", False)


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
        return dq, dk, dv, dbias if bias_grad else None, None, None, None, None


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
    library.opcheck(torch.ops.llmcli.attention.default, args)
    with torch.no_grad():
        out, lse = torch.ops.llmcli.attention(*args)
    q, k, v, bias, lengths, scale, cap, causal = (x.detach() if isinstance(x, Tensor) else x for x in args)
    backward = (torch.ones_like(out), q, k, v, out, lse, bias, lengths, scale, cap, causal, bias is not None)
    library.opcheck(torch.ops.llmcli.attention_backward.default, backward)


def test_lse_gets_no_gradient() -> None:
    q, k, v = (x.requires_grad_() for x in draw((1, 2, 3, 1, 1, 4), torch.float32))
    out, lse = torch.ops.llmcli.attention(q, k, v, None, None, 1.0, 0.0, False)
    assert out.requires_grad
    assert not lse.requires_grad
    assert attention(q, k, v).requires_grad


SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 5, 7, 2, 1, 3),
    (1, 97, 131, 4, 2, 33),
    (2, 130, 130, 2, 2, 64),
    (1, 200, 140, 2, 1, 80),
    (1, 3, 260, 6, 2, 128),
    (1, 9, 20, 1, 1, 256),
]


def gradients(page_form: dict[str, Any], inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """dq, dk, dv and, with a bias, dbias, through whatever serves the operator for this dtype."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    form = dict(page_form)
    if "bias" in form:
        form["bias"] = leaves[3]
    attention(*leaves[:3], **form).backward(grad)
    return [x.grad for x in leaves if x.grad is not None]


def exact_gradients(form: dict[str, Any], inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The same from the float64 formula."""
    leaves = [x.detach().double().requires_grad_() for x in inputs]
    bias = leaves[3] if "bias" in form else None
    if bias is not None:
        bias = bias[(None,) * (4 - bias.dim())]
    scale = form.get("scale", inputs[0].shape[-1] ** -0.5)
    rest = (form.get("k_lengths"), scale, form.get("cap", 0.0), form.get("causal", False))
    Formula.apply(*leaves[:3], bias, *rest).backward(grad.double())
    return [x.grad for x in leaves if x.grad is not None]


def torch_gradients(form: dict[str, Any], inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The same from torch's own attention in the same dtype."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    T, S = grad.shape[1], inputs[1].shape[1]
    bias = leaves[3] if "bias" in form else None
    hidden = torch.ones(T, S, dtype=torch.bool).triu(S - T + 1) if form.get("causal") else torch.zeros(T, S).bool()
    mask = torch.zeros(T, S, dtype=grad.dtype).masked_fill(hidden, -torch.inf)
    q, k, v = (x.transpose(1, 2) for x in leaves[:3])
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask if bias is None else mask + bias, scale=form.get("scale"), enable_gqa=True
    )
    out.transpose(1, 2).backward(grad)
    return [x.grad for x in leaves if x.grad is not None]


@pytest.mark.parametrize("form", [{}, {"causal": True}, {"causal": True, "scale": -0.3}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_close_to_float64(isa: str, shape: tuple[int, ...], dtype: torch.dtype, form: dict[str, Any]) -> None:
    inputs = list(draw(shape, dtype))
    grad = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(5)).to(dtype)
    ours, exact = gradients(form, inputs, grad), exact_gradients(form, inputs, grad)
    # Rows that see nothing make torch's gradients NaN: the budget is then that of the rows that see something.
    torchs = [x.nan_to_num(0.0) for x in torch_gradients(form, inputs, grad)]
    if shape[1] > shape[2] and form.get("causal"):
        torchs = [(x + 0.02 * x.abs().max()).to(dtype) for x in exact] if dtype != torch.float32 else torchs
    for o, t, e in zip(ours, torchs, exact, strict=True):
        assert_gradient_within_budget(o, t, e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(2, 4, 30, 150), (1, 4, 30, 150), (2, 1, 1, 150), (30, 150), (4, 1, 1), (1, 1, 30, 1), (150,)]
)
def test_bias_gradient_has_the_shape_of_bias(isa: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(3)
    inputs = [*draw((2, 30, 150, 4, 2, 16), dtype), torch.randn(shape, generator=g).to(dtype)]
    grad = torch.randn(2, 30, 4, 16, generator=g).to(dtype)
    form = {"bias": inputs[3], "causal": True}
    ours, exact = gradients(form, inputs, grad), exact_gradients(form, inputs, grad)
    torchs = torch_gradients(form, inputs, grad)
    assert ours[3].shape == shape
    for o, t, e in zip(ours, torchs, exact, strict=True):
        if e.abs().max() < 1e-9:
            # The same shift for every key changes nothing: what is left is rounding, of out among others.
            assert o.abs().max() < (1e-5 if dtype == torch.float32 else 0.1)
        else:
            assert_gradient_within_budget(o, t, e)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cap", [0.5, 30.0])
def test_gradients_through_a_cap(isa: str, cap: float, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(3)
    inputs = [*draw((2, 97, 131, 4, 2, 33), dtype), torch.randn((4, 97, 131), generator=g).to(dtype)]
    grad = torch.randn(2, 97, 4, 33, generator=g).to(dtype)
    form = {"bias": inputs[3], "causal": True, "cap": cap, "scale": 0.4}
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    exact = exact_gradients(form, inputs, grad)
    scores = torch.einsum("bthd,bshd->bhts", leaves[0], leaves[1].repeat_interleave(2, 2)) * 0.4
    scores = (cap * torch.tanh(scores / cap) + leaves[3]).masked_fill(torch.ones(97, 131).triu(35).bool(), -torch.inf)
    torch.einsum("bhts,bshd->bthd", torch.softmax(scores, -1), leaves[2].repeat_interleave(2, 2)).backward(grad)
    torchs = [x.grad for x in leaves if x.grad is not None]
    for o, t, e in zip(gradients(form, inputs, grad), torchs, exact, strict=True):
        assert_gradient_within_budget(o, t, e)


def test_k_lengths_and_rows_that_see_nothing(isa: str) -> None:
    inputs = list(draw((4, 7, 150, 2, 1, 32), torch.float32))
    form = {"causal": True, "k_lengths": torch.tensor([150, 3, 0, 129])}
    grad = torch.randn(4, 7, 2, 32, generator=torch.Generator().manual_seed(2))
    for o, e in zip(gradients(form, inputs, grad), exact_gradients(form, inputs, grad), strict=True):
        torch.testing.assert_close(o.double(), e, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("operand", ["q", "k", "v", "grad"])
def test_infinities_and_nan_reach_those_who_see_them(isa: str, operand: str, value: float, dtype: torch.dtype) -> None:
    q, k, v = draw((1, 150, 150, 2, 1, 16), dtype)
    inputs = {
        "grad": torch.randn(q.shape, generator=torch.Generator().manual_seed(4)).to(dtype),
        "q": q,
        "k": k,
        "v": v,
    }
    inputs[operand][0, 77, -1, 3] = value
    out, lse = torch.ops.llmcli.attention(q, k, v, None, None, 0.25, 0.0, True)
    rest = (None, None, 0.25, 0.0, True, False)
    ours = torch.ops.llmcli.attention_backward(*inputs.values(), out, lse, *rest)[:3]
    wide = [x.double() for x in (*inputs.values(), out, lse)]
    for o, e in zip(ours, page._fallback_backward(*wide, *rest), strict=False):
        finite = torch.isfinite(e)
        assert torch.equal(torch.isfinite(o), finite)
        assert torch.equal(torch.isnan(o), torch.isnan(e))
        torch.testing.assert_close(o[finite].double(), e[finite], atol=0.1, rtol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_the_same_bits_for_any_threads_and_batch(isa: str, dtype: torch.dtype) -> None:
    inputs = list(draw((3, 140, 140, 4, 2, 32), dtype))
    grad = torch.randn(3, 140, 4, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(gradients({"causal": True}, inputs, grad))
    torch.set_num_threads(before)
    alone = gradients({"causal": True}, [x[1:2] for x in inputs], grad[1:2])
    for first, second, third, one in zip(*results, alone, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)
        assert torch.equal(first[1:2], one)
