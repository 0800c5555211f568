"""llmcli.ops.argmax: what torch.max gives, to the index and the bit, on every instruction set."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, library

from llmcli.ops import argmax
from tests.ops.samples import normal

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [1, 2, 15, 17, 63, 64, 65, 511, 512, 513, 1025, 4096, 50257]


def check(x: Tensor) -> None:
    index, highest = argmax(x)
    wanted = x.max(-1)
    assert torch.equal(index, wanted.indices)
    torch.testing.assert_close(highest, wanted.values.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("V", SIZES)
def test_any_size(isa: str, V: int, dtype: torch.dtype) -> None:
    """In bfloat16 a long row has several highest ones; some rows have theirs at either end, some are all negative."""
    x = normal(6, V, seed=V, dtype=dtype)
    x[1, -1], x[2, 0], x[3] = 9.0, 9.0, -x[3].abs() - 1
    x[4] = x[4].sort().values
    check(x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_infinities_and_nan(isa: str, dtype: torch.dtype) -> None:
    V = 1300
    x = torch.full((12, V), -2.0)
    x[1:3] = -math.inf
    x[2, 700] = torch.finfo(dtype).min
    x[3, [600, 601, 1299]] = 1.0
    x[4, [511, 512]] = 1.0
    x[5, 900] = math.inf
    x[6, [5, 1200]], x[6, 100] = math.nan, math.inf
    x[7, 0], x[7, 1] = math.nan, math.nan
    x[8, 1299] = math.nan
    x[9], x[9, 3] = -0.0, 0.0
    x[10, 650], x[10, 20] = 3.0, -math.inf
    x[11] = math.nan
    check(x.to(dtype))


def test_rows_of_any_layout(isa: str) -> None:
    x = normal(4, 5, 700)
    for view in (x, x[:, ::2], x[..., 3:-4], x.transpose(0, 1), x.transpose(1, 2), x[0, 0], x[:0]):
        check(view)
    whole = argmax(x)[0]
    assert argmax(x[2:3, 4:])[0] == whole[2, 4]


def test_float64_stays_wide() -> None:
    x = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    index, highest = argmax(x)
    assert index.tolist() == [1]
    assert highest.dtype == torch.float64


def test_opcheck_and_errors() -> None:
    library.opcheck(torch.ops.llmcli.argmax.default, (normal(3, 7, dtype=torch.bfloat16),))
    with pytest.raises(ValueError, match=r"at least one number, got \(3, 0\)"):
        argmax(torch.zeros(3, 0))
