"""llmcli.ops.linear against float64, on every instruction set; the same bits for any row count and thread count."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import library

from llmcli.ops import linear, linear_pack
from tests.marks import kernels_only
from tests.ops.tolerance import assert_within_budget

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make(M: int, N: int, K: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(M * 7919 + N * 31 + K)
    return tuple(torch.randn(*shape, generator=g).to(dtype) for shape in ((M, K), (N, K), (N,)))  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("M", "N", "K"),
    [(1, 1, 1), (1, 64, 64), (7, 65, 63), (6, 63, 513), (49, 130, 1025), (5, 3, 2), (0, 8, 8), (3, 8, 0)],
)
def test_close_to_float64(isa: str, M: int, N: int, K: int, dtype: torch.dtype) -> None:
    x, w, b = make(M, N, K, dtype)
    ours = linear(x, linear_pack(w), b, N)
    exact = x.double() @ w.double().T + b.double()
    assert_within_budget(ours, F.linear(x, w, b), exact)


@kernels_only
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_depend_on_company_or_threads(isa: str, dtype: torch.dtype) -> None:
    x, w, b = make(101, 200, 600, dtype)
    packed = linear_pack(w)
    whole = linear(x, packed, b, 200)
    for begin, end in ((0, 1), (17, 18), (3, 8), (50, 101), (0, 48)):
        assert torch.equal(linear(x[begin:end], packed, b, 200), whole[begin:end])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(linear(x, packed, b, 200), whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_is_the_documented_layout(dtype: torch.dtype) -> None:
    from llmcli.ops.linear import _pack_fallback

    _, w, _ = make(1, 70, 33, dtype)
    assert torch.equal(linear_pack(w), _pack_fallback(w))
    assert torch.equal(linear_pack(w[:, ::2]), _pack_fallback(w[:, ::2].contiguous()))


def test_strided_input_and_leading_dimensions(isa: str) -> None:
    x, w, b = make(12, 20, 40, torch.float32)
    packed = linear_pack(w)
    flat = linear(x, packed, b, 20)
    assert torch.equal(linear(x.view(3, 4, 40), packed, b, 20), flat.view(3, 4, 20))
    assert torch.equal(linear(x.T.contiguous().T, packed, b, 20), flat)
    assert torch.equal(linear(x[::3], packed, None, 20), linear(x, packed, None, 20)[::3])


def test_infinities_and_nan_stay_in_their_rows(isa: str) -> None:
    x, w, b = make(4, 30, 50, torch.float32)
    x[1, 3], x[2, 49] = torch.inf, torch.nan
    y = linear(x, linear_pack(w), b, 30)
    assert torch.isfinite(y[[0, 3]]).all()
    assert torch.isinf(y[1]).all()
    assert torch.isnan(y[2]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype) -> None:
    x, w, b = make(3, 70, 9, dtype)
    packed = linear_pack(w)
    library.opcheck(torch.ops.llmcli.linear_pack.default, (w,))
    library.opcheck(torch.ops.llmcli.linear.default, (x, packed, b, 70))


def test_foreign_packing_is_refused() -> None:
    x, w, b = make(2, 70, 9, torch.float32)
    with pytest.raises(RuntimeError, match="do not belong"):
        linear(x, linear_pack(w)[:-1], b, 70)
