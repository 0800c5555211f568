"""llmcli.ops.transformer_block: the bits of its operators one by one, against float64 on every instruction set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, library

from llmcli.ops import add_layer_norm, attention, gelu, transformer_block
from llmcli.ops.matmul import product
from tests.marks import kernels_only
from tests.ops.samples import DTYPES, normal
from tests.ops.tolerance import assert_gradient_within_budget, assert_within_budget

# B, T, heads, D, inner width: one row, primes, more than one tile and block of keys.
SHAPES = [(1, 1, 1, 4, 3), (2, 19, 2, 17, 40), (2, 150, 2, 8, 31)]
Block = Callable[..., tuple[Tensor, Tensor]]


def make(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, update and the weights of a block."""
    B, T, heads, D, inner = shape
    C = heads * D
    sizes = [(C,), (C,), (3 * C, C), (3 * C,), (C, C), (C,), (C,), (C,), (inner, C), (inner,), (C, inner), (C,)]
    weights = [normal(*size, seed=n + 2, size=size[-1] ** -0.5) + (n in (0, 6)) for n, size in enumerate(sizes)]
    streams = [normal(B, T, C), normal(B, T, C, seed=1)]
    return [tensor.to(dtype).requires_grad_() for tensor in (*streams, *weights)]


def constants(shape: tuple[int, ...], approximate: str = "tanh") -> dict[str, Any]:
    return {"heads": shape[2], "scale": shape[3] ** -0.5, "eps": 1e-5, "approximate": approximate}


def one_by_one(
    x: Tensor, update: Tensor, *weights: Tensor, heads: int, scale: float, eps: float, approximate: str
) -> tuple[Tensor, Tensor]:
    """The block of our other operators."""
    norm_1, norm_1_bias, qkv, qkv_bias, out, out_bias, norm_2, norm_2_bias, up, up_bias, down, down_bias = weights
    normed, x = add_layer_norm(update, x, norm_1, norm_1_bias, eps=eps)
    q, k, v = product(normed, qkv, qkv_bias).view(*x.shape[:2], 3, heads, -1).unbind(2)
    update = product(attention(q, k, v, scale=scale, causal=True).flatten(2), out, out_bias)
    normed, x = add_layer_norm(update, x, norm_2, norm_2_bias, eps=eps)
    return x, product(gelu(product(normed, up), up_bias, approximate=approximate), down, down_bias)


def peers(
    x: Tensor, update: Tensor, *weights: Tensor, heads: int, scale: float, eps: float, approximate: str
) -> tuple[Tensor, Tensor]:
    """The block of torch's operators."""
    norm_1, norm_1_bias, qkv, qkv_bias, out, out_bias, norm_2, norm_2_bias, up, up_bias, down, down_bias = weights
    x = x + update
    normed = F.layer_norm(x, norm_1.shape, norm_1, norm_1_bias, eps)
    q, k, v = F.linear(normed, qkv, qkv_bias).view(*x.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
    scores = (scale * q @ k.mT).masked_fill(torch.ones(x.shape[1], x.shape[1]).triu(1).bool(), float("-inf"))
    x = x + F.linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), out, out_bias)
    normed = F.layer_norm(x, norm_2.shape, norm_2, norm_2_bias, eps)
    return x, F.linear(F.gelu(F.linear(normed, up, up_bias), approximate=approximate), down, down_bias)


def results(block: Block, given: list[Tensor], **rest: Any) -> list[Tensor]:
    """What leaves the block, and the gradients of everything that enters it."""
    outs = block(*given, **rest)
    grads = [normal(*out.shape, seed=30 + n).to(out.dtype) for n, out in enumerate(outs)]
    return [*(out.detach() for out in outs), *torch.autograd.grad(outs, given, grads)]


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_close_to_float64(isa: str, shape: tuple[int, ...], dtype: torch.dtype, approximate: str) -> None:
    given, rest = make(shape, dtype), constants(shape, approximate)
    ours, theirs = results(transformer_block, given, **rest), results(peers, given, **rest)
    exact = results(peers, [tensor.detach().double().requires_grad_() for tensor in given], **rest)
    for place, triple in enumerate(zip(ours, theirs, exact, strict=True)):
        (assert_within_budget if place < 2 else assert_gradient_within_budget)(*triple)


@kernels_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_the_bits_of_the_operators_one_by_one(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    given, rest = make(shape, dtype), constants(shape)
    for mine, its in zip(results(transformer_block, given, **rest), results(one_by_one, given, **rest), strict=True):
        assert torch.equal(mine, its)


@kernels_only
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_same_bits_for_any_number_of_threads(shape: tuple[int, ...]) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(results(transformer_block, make(shape), **constants(shape)))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(mine, its) for mine, its in zip(found[0], other, strict=True))


def test_strides() -> None:
    shape = SHAPES[1]
    given, rest = make(shape), constants(shape)
    turned = [tensor.detach().mT.contiguous().mT.requires_grad_() if tensor.dim() > 1 else tensor for tensor in given]
    for mine, its in zip(
        results(transformer_block, turned, **rest), results(transformer_block, given, **rest), strict=True
    ):
        torch.testing.assert_close(mine, its)


@pytest.mark.parametrize("place", [0, 1])
def test_a_result_that_is_left_alone_has_no_gradient(place: int) -> None:
    given, rest = make(SHAPES[1]), constants(SHAPES[1])
    grad = normal(*given[0].shape, seed=30)
    for mine, its in zip(
        *(
            torch.autograd.grad(block(*given, **rest)[place], given, grad, allow_unused=True)
            for block in (transformer_block, one_by_one)
        ),
        strict=True,
    ):
        torch.testing.assert_close(mine, torch.zeros_like(mine) if its is None else its)


def test_gradcheck() -> None:
    shape = (2, 3, 2, 2, 5)
    given = [tensor.detach().double().requires_grad_() for tensor in make(shape)]
    assert torch.autograd.gradcheck(lambda *tensors: transformer_block(*tensors, **constants(shape)), given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    shape = SHAPES[1]
    library.opcheck(torch.ops.llmcli.transformer_block.default, (*make(shape, dtype), shape[2], 0.3, 1e-5, True))


def test_errors_name_what_came() -> None:
    shape = SHAPES[1]
    given, rest = make(shape), constants(shape)
    with pytest.raises(ValueError, match=r"expected x and update \(B,T,C\)"):
        transformer_block(*given[:-1], given[-1][1:], **rest)
    with pytest.raises(ValueError, match="multiple of 3 heads"):
        transformer_block(*given, **rest | {"heads": 3})
    with pytest.raises(ValueError, match=r"expected torch\.float32"):
        transformer_block(*given[:-1], given[-1].double(), **rest)
    with pytest.raises(ValueError, match="'exact'"):
        transformer_block(*given, **rest | {"approximate": "exact"})
