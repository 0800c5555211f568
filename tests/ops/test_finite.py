"""llmcli.ops.finite: one number among many, wherever it stands."""

from __future__ import annotations

import pytest
import torch
from torch import library

from llmcli.ops import finite
from tests.ops.samples import DTYPES, normal


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 15, 65, 16384, 16385, 100_003])
def test_finds_one_wherever_it_stands(isa: str, n: int, dtype: torch.dtype) -> None:
    x = normal(n, dtype=dtype, size=100)
    x[::7] = torch.finfo(dtype).max
    assert finite(x)
    for at in {0, n // 2, max(0, n - 2), n - 1} & set(range(n)):
        for value in (torch.nan, torch.inf, -torch.inf):
            bad = x.clone()
            bad[at] = value
            assert not finite(bad)


def test_any_layout_and_float64() -> None:
    x = normal(30, 40)
    x[3, 7] = torch.inf
    assert not finite(x.T)
    assert not finite(x.T[5:])
    assert finite(x.T[8:])
    assert not finite(x.expand(2, 30, 40).transpose(1, 2))
    assert finite(x[:, 8:])
    assert finite(x[4:])
    assert not finite(x.double())
    library.opcheck(torch.ops.llmcli.finite.default, (x,))
