"""llmcli.ops.softmax against float64, on every instruction set."""

from __future__ import annotations

import pytest
import torch

from llmcli.ops import softmax
from tests import reference
from tests.ops.tolerance import assert_within_budget


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (2, 5, 64), (7, 1023), (0, 5)])
def test_close_to_float64(isa: str, shape: tuple[int, ...], dtype: torch.dtype, log: bool) -> None:
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    ours = softmax(x, scale=0.5, log=log)
    torchs = (torch.log_softmax if log else torch.softmax)(x * 0.5, -1)
    assert_within_budget(ours, torchs, reference.softmax(x, 0.5, None, log))
