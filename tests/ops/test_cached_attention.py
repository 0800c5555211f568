"""llmcli.ops.cached_attention: the bits of `attention` where the cache holds q's type, exact rounding where not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, library

from llmcli.ops import attention, cached_attention
from llmcli.ops.cached_attention import BLOCK, cache_bytes, read, write
from tests.marks import kernels_only
from tests.ops.test_attention import DTYPES, draw

SHAPES = [((2, 2), 64), ((4, 2), 33), ((9, 1), 80)]  # (H, G), D
HELD = [torch.float32, torch.bfloat16, torch.float16, torch.int8]


def empty(batch: int, heads: int, D: int, dtype: torch.dtype, capacity: int = 400) -> Tensor:
    return torch.zeros(batch, heads, -(-capacity // BLOCK), cache_bytes(dtype, D), dtype=torch.uint8)


def in_chunks(
    q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype, sizes: list[int], cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """What the operator gives for consecutive chunks of these sizes, and the cache."""
    cache = empty(k.shape[0], k.shape[2], k.shape[3], dtype, k.shape[1])
    out, begin = [], 0
    for size in sizes:
        part = slice(begin, begin + size)
        new = q[:, part], k[:, part], v[:, part]
        out.append(cached_attention(*new, cache, [begin] * len(q), dtype=dtype, cap=cap))
        begin += size
    return torch.cat(out, 1), cache


def same(a: Tensor, b: Tensor) -> bool:
    """The same bits, but for those of NaN."""
    a, b = (x.masked_fill(x.isnan(), -6e4).contiguous().view(torch.uint8) for x in (a, b))
    return torch.equal(a, b)


@kernels_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "D"), SHAPES)
def test_own_type_has_the_bits_of_attention(isa: str, heads: tuple[int, int], D: int, dtype: torch.dtype) -> None:
    q, k, v = draw((2, 180, 180, *heads, D), dtype)
    k[0, 160, 0, 1], v[0, 150, 0, 1], v[1, 151, 0, 0] = torch.inf, torch.nan, torch.inf
    whole = attention(q, k, v, causal=True)
    for sizes in ([180], [1, 126, 1, 1, 20, 1, 1, 1, 28], [60, 120]):
        assert same(in_chunks(q, k, v, dtype, sizes)[0], whole)


@kernels_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("held", "heads", "D"), [(held, *SHAPES[n % 3]) for n, held in enumerate([*HELD, torch.int8])])
def test_prefill_and_steps_have_the_same_bits(
    isa: str, held: torch.dtype, heads: tuple[int, int], D: int, dtype: torch.dtype
) -> None:
    q, k, v = draw((2, 150, 150, *heads, D), dtype)
    v[0, 137, 0, 1], k[1, 120, 0, 0] = torch.nan, torch.inf
    whole, cache = in_chunks(q, k, v, held, [150])
    for sizes in ([1, 2, 60, 65, 1, 1, 7, 1, 12], [100, 50]):
        parts, other = in_chunks(q, k, v, held, sizes)
        assert same(parts, whole)
        assert torch.equal(other, cache)


@kernels_only
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("held", HELD)
def test_capped_scores(isa: str, held: torch.dtype, dtype: torch.dtype) -> None:
    q, k, v = draw((2, 150, 150, 4, 2, 40), dtype)
    whole, _ = in_chunks(q, k, v, held, [150], cap=0.9)
    assert same(in_chunks(q, k, v, held, [1, 2, 60, 65, 1, 21], cap=0.9)[0], whole)
    if held == dtype:
        assert same(attention(q, k, v, causal=True, cap=0.9), whole)
    assert torch.allclose(whole, attention(q, k, v, causal=True, cap=0.9), atol=0.05)
    assert not torch.allclose(whole, attention(q, k, v, causal=True), atol=0.05)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("held", HELD)
def test_close_to_attention_over_what_the_cache_holds(isa: str, held: torch.dtype, dtype: torch.dtype) -> None:
    q, k, v = draw((1, 130, 130, 4, 2, 40), dtype)
    got, cache = in_chunks(q, k, v, held, [129, 1])
    expected = empty(1, 2, 40, held, 130)
    write(expected, k, v, [0], held)
    assert torch.equal(cache, expected)
    exact = [x.double() for x in read(cache, 130, held, 40)]
    wanted = attention(q.double(), *exact, causal=True)
    unit = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    assert (got.double() - wanted).abs().max() < 4 * unit


def test_int8_is_within_half_a_step_and_keeps_faults_to_their_position(isa: str) -> None:
    _, k, v = draw((1, 1, 5, 1, 2, 40), torch.float32)
    k[0, 1], k[0, 2, 0, 3], k[0, 3] = 0.0, torch.nan, 1e-35
    cache = empty(1, 2, 40, torch.int8, 5)
    cached_attention(k, k, v, cache, [0], dtype=torch.int8)
    held, values = read(cache, 5, torch.int8, 40)
    assert held[0, 2, 0].isnan().all()
    assert held[0, 2, 1].isfinite().all()
    assert held[0, 1].eq(0).all()
    assert held[0, 3].eq(0).all()
    step = v.abs().amax(-1, keepdim=True) / 127
    assert ((values - v).abs() <= 0.501 * step).all()


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@kernels_only
@pytest.mark.parametrize("held", HELD)
def test_threads_company_and_what_lies_behind(isa: str, threads: None, held: torch.dtype) -> None:
    lengths = [600, 3, 260]
    q, k, v = draw((3, 2, 700, 2, 1, 64), torch.float32)
    cache = empty(3, 1, 64, held, 700)
    write(cache, k, v, [0, 0, 0], held)  # rows go on where another text has been
    results = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        results.append(cached_attention(q, k[:, :2], v[:, :2], cache, lengths, dtype=held))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    for row, length in enumerate(lengths):
        part = slice(row, row + 1)
        alone = empty(1, 1, 64, held, 700)
        write(alone, k[part, :length], v[part, :length], [0], held)
        got = cached_attention(q[part], k[part, :2], v[part, :2], alone, [length], dtype=held)
        assert torch.equal(got, results[0][part])


@pytest.mark.parametrize("held", HELD)
def test_bias(isa: str, held: torch.dtype) -> None:
    q, k, v = draw((2, 3, 3, 4, 2, 16), torch.float32)
    bias = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(1))
    got = cached_attention(q, k, v, empty(2, 2, 16, held), [0, 0], dtype=held, bias=bias)
    assert torch.allclose(got, attention(q, k, v, causal=True, bias=bias), atol=0.05)


def test_opcheck() -> None:
    q, k, v = draw((2, 2, 2, 4, 2, 16), torch.float32)
    for kind, held in enumerate(HELD):
        given = (q, k, v, empty(2, 2, 16, held), [3, 130], None, kind, 0.25, 0.0)
        library.opcheck(torch.ops.llmcli.cached_attention.default, given)


@kernels_only
@pytest.mark.parametrize(
    ("lengths", "held", "message"),
    [
        ([511], torch.float32, "holds 512 positions; 513 are needed"),
        ([1, 2], torch.float32, "differ from x in batch"),
        ([0], torch.int8, "blocks of 5120 contiguous bytes"),
    ],
)
def test_refuses_what_does_not_fit(lengths: list[int], held: torch.dtype, message: str) -> None:
    q, k, v = draw((1, 2, 2, 2, 2, 16), torch.float32)
    with pytest.raises(RuntimeError, match=message):
        cached_attention(q, k, v, empty(1, 2, 16, torch.float32), lengths, dtype=held)


def test_refuses_a_type_that_no_cache_has() -> None:
    q, k, v = draw((1, 2, 2, 2, 2, 16), torch.float32)
    with pytest.raises(ValueError, match=r"expected a cache of one of .*; got torch\.int16"):
        cached_attention(q, k, v, empty(1, 2, 16, torch.float32), [0], dtype=torch.int16)
