"""llmcli.ops.matmul against float64, in every layout, on every instruction set; the same bits whatever the company."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, library

from llmcli.ops.matmul import matmul, product
from tests.marks import kernels_only
from tests.ops.samples import DTYPES, normal
from tests.ops.tolerance import assert_within_budget

# M, K, N: one of each, primes, one off the tile, the panel, the depth and the block of rows; nothing at all.
SHAPES = [(1, 1, 1), (7, 17, 65), (6, 129, 64), (241, 31, 63), (5, 300, 130), (2, 3, 1537), (0, 4, 4), (3, 0, 5)]


def layouts(rows: int, columns: int, seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """One matrix by rows, by columns, and with gaps."""
    x = normal(rows, columns, seed=seed, dtype=dtype)
    gaps = torch.zeros(2 * rows, 3 * columns, dtype=dtype)[::2, ::3]
    return [x, x.t().contiguous().t(), gaps.copy_(x)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_close_to_float64_in_every_layout(isa: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    M, K, N = shape
    results = []
    for a in layouts(M, K, 0, dtype):
        for b in layouts(K, N, 1, dtype):
            results.append(matmul(a, b))
            assert_within_budget(results[-1], a @ b, a.double() @ b.double())
    if dtype is torch.float32 and isa != "torch":
        assert all(torch.equal(one, results[0]) for one in results)


@kernels_only
def test_rows_do_not_depend_on_company_or_threads(isa: str) -> None:
    a, b = normal(300, 260), normal(260, 190, seed=1)
    whole, before = matmul(a, b), torch.get_num_threads()
    for begin, end in ((0, 1), (17, 18), (3, 8), (50, 101)):
        assert torch.equal(matmul(a[begin:end], b), whole[begin:end])
        assert torch.equal(matmul(a, b[:, begin:end]), whole[:, begin:end])
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(matmul(a, b), whole)
    finally:
        torch.set_num_threads(before)


def test_infinities_and_nan_stay_in_their_rows(isa: str) -> None:
    a, b = normal(40, 50), normal(50, 30, seed=1)
    a[1, 3], a[2, 49] = torch.inf, torch.nan
    y = matmul(a, b)
    assert torch.isfinite(y[[0, 3]]).all()
    assert torch.isinf(y[1]).all()
    assert torch.isnan(y[2]).all()


def test_gradients() -> None:
    a, b = normal(5, 4).double().requires_grad_(), normal(3, 4, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: matmul(a, b.t()), (a, b))
    weight = normal(3, 4).requires_grad_()
    matmul(normal(5, 4), weight.t()).sum().backward()
    assert weight.grad is not None
    assert weight.grad.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    a, b = normal(3, 7, dtype=dtype).requires_grad_(), normal(5, 7, seed=1, dtype=dtype).requires_grad_()
    library.opcheck(torch.ops.llmcli.matmul.default, (a, b.t()))


def test_a_layer_is_the_same_for_few_rows_and_many() -> None:
    x, weight, bias = normal(2, 40, 9), normal(11, 9, seed=1), normal(11, seed=2)
    many = product(x, weight, bias)
    torch.testing.assert_close(many, torch.nn.functional.linear(x, weight, bias))
    torch.testing.assert_close(product(x[0, :3], weight, bias), many[0, :3])
