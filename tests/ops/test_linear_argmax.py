"""llmcli.ops.linear_argmax: the bits of `argmax` after `linear`, whatever is left out, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, library

from llmcli.ops import argmax, linear, linear_argmax, linear_pack, linear_quantized, linear_screen, registry
from tests.marks import kernels_only
from tests.ops.samples import DTYPES, normal

# rows, C, V, limit: around the edges of blocks of rows, of groups of inputs and of panels.
SHAPES = [(1, 5, 1, 1), (7, 17, 31, 20), (3, 40, 64, 64), (49, 129, 257, 256), (97, 24, 511, 300), (2, 513, 2100, 2100)]


def check(x: Tensor, weight: Tensor, limit: int | None = None) -> int:
    """Compare with the logits' own highest, to the bit; how many panels were multiplied."""
    V, C = weight.shape
    packed = linear_pack(weight)
    limit = V if limit is None else limit
    index, highest, multiplied = linear_argmax(x, packed, linear_screen(packed, C, V), V, limit)
    expected, its = argmax(linear(x, packed, None, V)[:, :limit])
    assert index.tolist() == expected.tolist()
    assert torch.equal(highest.nan_to_num(nan=7.0), its.nan_to_num(nan=7.0))
    return int(multiplied)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_as_argmax_of_the_logits(isa: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    rows, C, V, limit = shape
    check(normal(rows, C, dtype=dtype, size=2), normal(V, C, seed=1, dtype=dtype), limit)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows(dtype: torch.dtype) -> None:
    check(normal(0, 8, dtype=dtype), normal(70, 8, dtype=dtype))


@kernels_only
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_that_stands_out_is_all_that_is_read(isa: str, dtype: torch.dtype) -> None:
    """One panel for each of three rows, of 40; a bound that is too wide would read them all."""
    weight = normal(2560, 200, seed=1, dtype=dtype)
    assert check(weight[[3, 1000, 2559]], weight) == 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_of_equals_the_first(isa: str, dtype: torch.dtype) -> None:
    """Rows that lie far apart and are equal, or differ in the last bit of a sum, or only before rounding."""
    weight = normal(900, 136, seed=1, dtype=dtype)
    x = weight[500:501] * 2
    weight[[130, 700, 899]] = weight[500].clone()
    check(x, weight)
    close = weight.clone()
    for n, row in enumerate((100, 300, 600, 800)):
        close[row] = weight[500].clone()
        close[row, n] = torch.nextafter(close[row, n], torch.tensor(10.0, dtype=dtype)) if n else close[row, n]
    check(x, close)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hard_to_bring_to_eight_bits(isa: str, dtype: torch.dtype) -> None:
    """A few inputs and weights are a thousand times the others; zeros; numbers near the ends of float32."""
    x, weight = normal(5, 300, dtype=dtype), normal(700, 300, seed=1, dtype=dtype)
    x[:, 7], x[:, 299] = 1000.0, -800.0
    weight[:, 130] *= 100
    check(x, weight)
    weight[128:256], x[4] = 0.0, 0.0
    check(x, weight)
    if dtype != torch.float16:
        for scale in (1e-20, 1e-38, 1e17):
            check(x * scale, weight)
            check(x, weight * scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity(isa: str, dtype: torch.dtype) -> None:
    x, weight = normal(6, 40, dtype=dtype), normal(400, 40, seed=1, dtype=dtype)
    x[1, 3], x[2, 39], x[3, 0] = torch.nan, torch.inf, -torch.inf
    check(x, weight)
    weight[70, 5], weight[333, 1] = torch.nan, torch.inf
    check(x, weight)
    check(torch.full_like(x, torch.finfo(dtype).max), weight[:200])


@kernels_only
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_depend_on_company_or_threads(isa: str, dtype: torch.dtype) -> None:
    x, weight = normal(101, 160, dtype=dtype), normal(900, 160, seed=1, dtype=dtype)
    packed = linear_pack(weight)
    screen = linear_screen(packed, 160, 900)
    whole = linear_argmax(x, packed, screen, 900, 900)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for part in (slice(0, 1), slice(17, 18), slice(3, 8), slice(50, 101), slice(None)):
                for mine, its in zip(linear_argmax(x[part], packed, screen, 900, 900)[:2], whole, strict=False):
                    assert torch.equal(mine, its[part])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("V", "C"), [(70, 5), (64, 128), (130, 300)])
def test_errors_of_the_screen_are_those_of_its_copy(isa: str, V: int, C: int, dtype: torch.dtype) -> None:
    weight = normal(V, C, seed=1, dtype=dtype)
    weight[3] = 0
    copy, errors = linear_screen(linear_pack(weight), C, V)
    near = linear_quantized(torch.eye(C), copy, None, V, 8).T.double()
    lost, kept = (weight.double() - near).norm(dim=1), near.norm(dim=1)
    assert errors.shape[1] % 64 == 0
    for found, exact in zip(errors.double(), (lost, kept), strict=True):
        assert (found[:V] >= exact - 1e-5).all()
        assert (found[:V] <= 1.001 * exact + 1e-5).all()
    assert lost.max() < 0.02 * kept.max()
    expected, its = registry.fallback("linear_screen")(linear_pack(weight), C, V)
    assert torch.equal(copy, expected)
    torch.testing.assert_close(errors, its)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype) -> None:
    packed = linear_pack(normal(200, 9, dtype=dtype))
    library.opcheck(torch.ops.llmcli.linear_screen.default, (packed, 9, 200))
    x, screen = normal(3, 9, dtype=dtype), linear_screen(packed, 9, 200)
    library.opcheck(torch.ops.llmcli.linear_argmax.default, (x, packed, *screen, 200, 150))


@kernels_only
def test_errors_name_what_came() -> None:
    x, packed = normal(3, 9), linear_pack(normal(200, 9))
    screen = linear_screen(packed, 9, 200)
    with pytest.raises(RuntimeError, match="a limit of 1 to 200, got 201"):
        linear_argmax(x, packed, screen, 200, 201)
    with pytest.raises(RuntimeError, match="do not belong"):
        linear_argmax(x[:, :8], packed, screen, 200, 200)
    with pytest.raises(RuntimeError, match="its linear_screen"):
        linear_argmax(x, packed, (screen[0], screen[1][:, :64]), 200, 200)
    with pytest.raises(RuntimeError, match="more than 4 inputs, got 4"):
        linear_screen(linear_pack(normal(200, 4)), 4, 200)
