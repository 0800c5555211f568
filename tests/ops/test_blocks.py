"""llmcli.ops.blocks: one result, bit for bit, on every instruction set and without kernels."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import library

from llmcli.checkpoints.gguf import SIZES
from llmcli.ops import blocks
from tests.ops.samples import DTYPES

page = import_module("llmcli.ops.blocks")  # the module; the package gives the function this name
KINDS = [*page.KINDS]


def draw(kind: str, n: int) -> torch.Tensor:
    """Any bytes that could be n blocks: scales of all sizes, some infinite or none."""
    return torch.randint(0, 256, (n * page.KINDS[kind][0],), generator=torch.Generator().manual_seed(n)).byte()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_everywhere(isa: str, kind: str, dtype: torch.dtype) -> None:
    for n in (0, 1, 63, 64, 700):
        data = draw(kind, n)
        ours, expected = blocks(data, kind, dtype), page._fallback(data, KINDS.index(kind), dtype)
        assert ours.shape == (n * page.KINDS[kind][1],)
        assert torch.equal(ours.isnan(), expected.isnan())
        bits = torch.int32 if dtype is torch.float32 else torch.int16
        ours, expected = (x.masked_fill(x.isnan(), 0.0).view(bits) for x in (ours, expected))
        assert torch.equal(ours, expected)


def test_large_tensors_go_in_parts_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    data = torch.randint(0, 64, (34 * 40,), dtype=torch.uint8)
    whole = page._fallback(data, KINDS.index("Q8_0"), torch.float32)
    monkeypatch.setattr(page, "CHUNK", 96)
    assert torch.equal(page._fallback(data, KINDS.index("Q8_0"), torch.float32), whole)


def test_sizes_opcheck_and_errors() -> None:
    for kind, (size, weights, _) in page.KINDS.items():
        assert SIZES[kind] == (weights, size)
    for number in range(len(KINDS)):
        library.opcheck(torch.ops.llmcli.blocks.default, (draw(KINDS[number], 3), number, torch.bfloat16))
    with pytest.raises(ValueError, match=r"a multiple of 34, got \(35,\)"):
        blocks(torch.zeros(35, dtype=torch.uint8), "Q8_0", torch.float32)
