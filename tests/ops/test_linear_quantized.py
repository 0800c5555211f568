"""llmcli.ops.linear_quantized against float64, on every instruction set: one result, bit for bit, for all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, library

from llmcli.nn.quantized import dequantize
from llmcli.ops import linear_quantized, linear_quantized_pack
from llmcli.ops.linear_quantized import GROUPS, _linear_fallback, _pack_fallback
from tests.marks import kernels_only
from tests.ops.samples import normal

SHAPES = [
    (1, 1, 1), (1, 64, 128), (7, 65, 63), (6, 63, 257), (49, 130, 300), (2, 66, 36), (0, 8, 8), (3, 8, 0), (3, 0, 5),
]  # fmt: skip
NARROW = [(5, 70, 150, torch.bfloat16), (5, 70, 150, torch.float16)]

both = pytest.mark.parametrize("bits", [8, 4])


def integers(N: int, K: int, bits: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Any integers that a checkpoint may hold, and scales of both signs."""
    g = torch.Generator().manual_seed(seed)
    columns, dtype = (K, torch.int8) if bits == 8 else (-(-K // 2), torch.uint8)
    info = torch.iinfo(dtype)
    q = torch.randint(info.min, info.max + 1, (N, columns), generator=g).to(dtype)
    return q, (torch.randn(N, -(-K // GROUPS[bits]), generator=g) / 100).bfloat16()


def rounded(x: Tensor, bits: int) -> Tensor:
    """The rows of x (M,K) as the layer sees them: each group on 255 steps, in float64."""
    groups = []
    for part in x.double().split(GROUPS[bits], 1):
        scale = part.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
        groups.append((part / scale).round() * scale)
    return torch.cat(groups, 1)


@both
@pytest.mark.parametrize(("M", "N", "K", "dtype"), [*((*shape, torch.float32) for shape in SHAPES), *NARROW])
def test_the_same_bits_everywhere(isa: str, M: int, N: int, K: int, dtype: torch.dtype, bits: int) -> None:
    """Integers sum exactly and floats in one order, so that kernels and fallback agree to the last bit."""
    packed = linear_quantized_pack(*integers(N, K, bits), K)
    x, bias = normal(M, K, seed=K, dtype=dtype), normal(N, seed=N, dtype=dtype)
    for b in (bias, None):
        assert torch.equal(linear_quantized(x, packed, b, N, bits), _linear_fallback(x, packed, b, N, bits))


@both
@pytest.mark.parametrize("K", [8, 60, 64, 72, 128, 192, 200, 332])
def test_any_number_of_rows(isa: str, K: int, bits: int) -> None:
    """Around the edges of register tiles, matrix tiles and blocks of rows, and of the depths that they take."""
    packed, x = linear_quantized_pack(*integers(70, K, bits), K), normal(113, K, seed=K)
    expected = _linear_fallback(x, packed, None, 70, bits)
    for M in (1, 2, 3, 4, 7, 15, 16, 17, 31, 32, 33, 47, 48, 49, 51, 63, 64, 65, 97, 113):
        assert torch.equal(linear_quantized(x[:M], packed, None, 70, bits), expected[:M]), M


@both
@pytest.mark.parametrize(("M", "N", "K"), SHAPES[:6])
def test_close_to_float64(isa: str, M: int, N: int, K: int, bits: int) -> None:
    q, scale = integers(N, K, bits)
    x, bias = normal(M, K, seed=K), normal(N, seed=N)
    ours = linear_quantized(x, linear_quantized_pack(q, scale, K), bias, N, bits).double()
    weight = dequantize(q, scale, K).double()
    # A value half way between two steps may go either way: some of them, each half a step of a weight's product.
    slack = x.abs().amax().item() / 127 * weight.abs().amax().item() * 2
    exact = rounded(x, bits) @ weight.T + bias
    assert (ours - exact).abs().max() <= 1e-5 * exact.abs().max() + slack
    unrounded = x.double() @ weight.T + bias
    assert (ours - unrounded).norm() <= 0.02 * unrounded.norm() + slack


@both
@pytest.mark.parametrize("sign", [1, -1])
def test_extremes_do_not_saturate(isa: str, bits: int, sign: int) -> None:
    """The largest sums that can occur: every weight and every input at the end of its range, all of one sign."""
    N, K = 70, 3 * GROUPS[bits] + 5
    low, high = (-128, 127) if bits == 8 else (0x00, 0xFF)
    q = torch.full((N, K if bits == 8 else -(-K // 2)), high, dtype=torch.int8 if bits == 8 else torch.uint8)
    q[1::2] = low
    scale = torch.ones(N, 4, dtype=torch.bfloat16)
    x = torch.full((7, K), 127.0 * sign)
    x[1] = 127.0 * (1 - 2 * (torch.arange(K) % 2))
    y = linear_quantized(x, linear_quantized_pack(q, scale, K), None, N, bits)
    assert torch.equal(y.double(), x.double() @ dequantize(q, scale, K).double().T)


@both
@kernels_only
def test_rows_do_not_depend_on_company_or_threads(isa: str, bits: int) -> None:
    packed, x, bias = linear_quantized_pack(*integers(200, 600, bits), 600), normal(101, 600), normal(200)
    whole = linear_quantized(x, packed, bias, 200, bits)
    for begin, end in ((0, 1), (17, 18), (3, 8), (50, 101), (0, 48), *((0, n) for n in range(2, 8))):
        assert torch.equal(linear_quantized(x[begin:end], packed, bias, 200, bits), whole[begin:end])
    assert torch.equal(linear_quantized(x.view(1, 101, 600).transpose(0, 1), packed, bias, 200, bits)[:, 0], whole)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(before, 2))
        assert torch.equal(linear_quantized(x, packed, bias, 200, bits), whole)
    finally:
        torch.set_num_threads(before)


@both
@pytest.mark.parametrize("K", [1, 63, 65, 400])
def test_packing_is_the_documented_layout(bits: int, K: int) -> None:
    q, scale = integers(70, K, bits)
    assert torch.equal(linear_quantized_pack(q, scale, K), _pack_fallback(q, scale, K))
    turned = q.t().contiguous().t()
    assert torch.equal(linear_quantized_pack(turned, scale.t().contiguous().t(), K), _pack_fallback(q, scale, K))


@both
def test_what_is_not_finite_stays_in_its_row(isa: str, bits: int) -> None:
    packed, x = linear_quantized_pack(*integers(30, 300, bits), 300), normal(5, 300)
    x[1, 3], x[2, 299], x[3] = torch.inf, torch.nan, 0.0
    y = linear_quantized(x, packed, None, 30, bits)
    assert torch.isfinite(y[[0, 4]]).all()
    assert torch.isnan(y[[1, 2]]).all()
    assert torch.equal(y[3], torch.zeros(30))


@both
def test_tiny_and_huge_rows(isa: str, bits: int) -> None:
    packed, x = linear_quantized_pack(*integers(30, 300, bits), 300), normal(3, 300)
    y = linear_quantized(x, packed, None, 30, bits)
    for factor in (2.0**-60, 2.0**60):  # powers of two change no rounding
        assert torch.equal(linear_quantized(x * factor, packed, None, 30, bits), y * factor)
    assert torch.equal(linear_quantized(x * 1e-38, packed, None, 30, bits), torch.zeros(3, 30))


@both
def test_opcheck(bits: int) -> None:
    q, scale = integers(70, 9, bits)
    packed = linear_quantized_pack(q, scale, 9)
    library.opcheck(torch.ops.llmcli.linear_quantized_pack.default, (q, scale, 9))
    x, bias = normal(3, 9, dtype=torch.bfloat16), normal(70, dtype=torch.bfloat16)
    library.opcheck(torch.ops.llmcli.linear_quantized.default, (x, packed, bias, 70, bits))


@both
def test_float64_runs_through_torch(bits: int) -> None:
    packed, x = linear_quantized_pack(*integers(70, 40, bits), 40), normal(3, 40)
    exact = linear_quantized(x.double(), packed, None, 70, bits)
    assert exact.dtype == torch.float64
    assert torch.equal(exact.float(), linear_quantized(x, packed, None, 70, bits))


@kernels_only
def test_foreign_packing_is_refused() -> None:
    packed, x = linear_quantized_pack(*integers(70, 40, 8), 40), normal(3, 40)
    for arguments in ((packed[:-1], None, 70, 8), (packed, None, 70, 4), (packed, None, 7, 8), (packed, x[0], 70, 8)):
        with pytest.raises(RuntimeError, match=r"do not belong|expected a contiguous bias"):
            linear_quantized(x, *arguments)
    with pytest.raises(RuntimeError, match="expected scale"):
        linear_quantized_pack(*integers(70, 300, 4)[:1], integers(70, 300, 8)[1], 300)
