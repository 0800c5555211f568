"""llmcli.ops.linear_logprobs: against float64 on every instruction set; the same bits in any company."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, library

from llmcli.nn.quantized import quantize
from llmcli.ops import linear_logprobs, linear_pack, linear_quantized, linear_quantized_pack
from tests.marks import kernels_only
from tests.ops.samples import DTYPES, normal
from tests.ops.tolerance import assert_within_budget

# rows, C, V: one of each, primes, around the edges of blocks of rows, of panels and of parts of the vocabulary.
SHAPES = [(1, 1, 1), (7, 17, 31), (3, 40, 64), (49, 33, 257), (97, 24, 511), (5, 513, 2100), (0, 8, 8)]
FORMATS = ["float32", "int8", "int4"]


def make(rows: int, C: int, V: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """x (rows,C), weight (V,C), targets (rows,)."""
    targets = torch.randint(V, (rows,), generator=torch.Generator().manual_seed(2))
    return normal(rows, C, dtype=dtype, size=2), normal(V, C, seed=1, dtype=dtype), targets


def packed_as(weight: Tensor, format: str) -> Tensor:
    if format == "float32":
        return linear_pack(weight)
    return linear_quantized_pack(*quantize(weight, int(format[3:]), "weight"), weight.shape[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_close_to_float64(isa: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x, weight, targets = make(*shape, dtype)
    ours, best = linear_logprobs(x, linear_pack(weight), targets, shape[2])
    exact = x.double() @ weight.double().T
    expected = exact.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    # Of 16-bit numbers too, the logits are those of float32.
    peer = (x.float() @ weight.float().T).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert_within_budget(ours, peer, expected, 4.0)
    highest = exact.gather(1, best[:, None])[:, 0]
    torch.testing.assert_close(highest, exact.amax(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", FORMATS[1:])
@pytest.mark.parametrize("rows", [1, 2, 50])
def test_quantised_heads(isa: str, rows: int, format: str, dtype: torch.dtype) -> None:
    """Against the log-softmax of float32 logits, which are the same bits everywhere."""
    x, weight, targets = make(rows, 200, 700, dtype)
    bits = int(format[3:])
    packed = packed_as(weight.float(), format)
    logits = linear_quantized(x.float(), packed, None, 700, bits)
    ours, best = linear_logprobs(x, packed, targets, 700)
    torch.testing.assert_close(ours, logits.double().log_softmax(-1).gather(1, targets[:, None])[:, 0].float())
    assert torch.equal(best, logits.argmax(-1))


@kernels_only
@pytest.mark.parametrize("format", FORMATS)
def test_rows_do_not_depend_on_company_or_threads(isa: str, format: str) -> None:
    x, weight, targets = make(101, 160, 900)
    packed = packed_as(weight, format)
    whole = linear_logprobs(x, packed, targets, 900)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for part in (slice(0, 1), slice(17, 18), slice(3, 8), slice(50, 101), slice(None)):
                for mine, its in zip(linear_logprobs(x[part], packed, targets[part], 900), whole, strict=True):
                    assert torch.equal(mine, its[part])
    finally:
        torch.set_num_threads(before)


def test_a_cap_bounds_the_logits(isa: str) -> None:
    x, weight, targets = make(50, 40, 700)
    ours, best = linear_logprobs(x, linear_pack(weight), targets, 700, cap=5.0)
    exact = 5 * torch.tanh(x.double() @ weight.double().T / 5)
    peer = 5 * torch.tanh(x @ weight.T / 5)
    expected, theirs = (a.log_softmax(-1).gather(1, targets[:, None])[:, 0] for a in (exact, peer))
    assert_within_budget(ours, theirs, expected)
    torch.testing.assert_close(exact.gather(1, best[:, None])[:, 0], exact.amax(1), rtol=1e-6, atol=0)


def given_logits(logits: Tensor) -> tuple[Tensor, Tensor]:
    """x and packed weights whose product is the logits (rows,V), to the bit: zeros add nothing."""
    return torch.eye(len(logits)), linear_pack(logits.T.contiguous())


def test_a_sure_token_keeps_its_digits(isa: str) -> None:
    """log p of nearly 1 is a small number of full precision, also where logits are large."""
    logits = torch.full((2, 600), -20.0)
    logits[0, 511], logits[1, 3] = 0.0, 60.0
    ours, best = linear_logprobs(*given_logits(logits), torch.tensor([511, 3]), 600)
    assert ours[0].item() == pytest.approx(-599 * math.exp(-20.0), rel=0.1)
    assert ours[1].item() == 0.0
    assert best.tolist() == [511, 3]


def test_ties_infinities_and_nan(isa: str) -> None:
    V = 800
    logits = torch.zeros(7, V)
    logits[0, [300, 301, 799]] = 1.0
    logits[1, [255, 256]] = 1.0
    logits[2] = -5.0
    logits[3, 1:] = torch.finfo(torch.float32).min
    logits[4, 790] = 2.0
    x, packed = given_logits(logits)
    _, best = linear_logprobs(x, packed, torch.zeros(7, dtype=torch.int64), V)
    assert best.tolist() == [300, 255, 0, 0, 790, 0, 0]
    x[5, 5], x[6, 6] = torch.nan, torch.inf
    ours, _ = linear_logprobs(x, packed, torch.zeros(7, dtype=torch.int64), V)
    assert torch.isfinite(ours[:5]).all()
    assert torch.isnan(ours[5:]).all()


def test_leading_dimensions_and_strides(isa: str) -> None:
    x, weight, targets = make(12, 20, 300)
    packed = linear_pack(weight)
    flat = linear_logprobs(x, packed, targets, 300)
    for given in ((x.view(3, 4, 20), targets.view(3, 4)), (x.T.contiguous().T, targets)):
        for mine, its in zip(linear_logprobs(given[0], packed, given[1], 300), flat, strict=True):
            torch.testing.assert_close(mine.flatten(), its)
    every_second = linear_logprobs(x[:, None].expand(12, 2, 20)[:, :1], packed, targets[:, None], 300)[0]
    torch.testing.assert_close(every_second[:, 0], flat[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype) -> None:
    x, weight, targets = make(5, 9, 300, dtype)
    library.opcheck(torch.ops.llmcli.linear_logprobs.default, (x, linear_pack(weight), targets, 300, 2.0))


def test_errors_name_what_came() -> None:
    x, weight, targets = make(9, 5, 11)
    packed = linear_pack(weight)
    with pytest.raises(ValueError, match=r"got \(9, 5\), \(8,\) torch.int64, 11"):
        linear_logprobs(x, packed, targets[:8], 11)
    for wrong in (11, -1):
        with pytest.raises(RuntimeError, match=f"targets from 0 to 10, got {wrong}"):
            linear_logprobs(x, packed, torch.full_like(targets, wrong), 11)
    with pytest.raises(RuntimeError, match="do not belong"):
        linear_logprobs(x, packed, targets, 200)
