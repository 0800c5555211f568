"""llmcli.ops.quantize: one result, bit for bit, on every instruction set and without kernels."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import library

from llmcli.ops import quantize
from tests.ops.samples import normal

page = import_module("llmcli.ops.quantize")  # the module; the package gives the function this name

SHAPES = [(1, 1), (40, 200), (3, 128), (5, 129), (7, 31), (2, 33), (0, 8), (4, 0)]

both = pytest.mark.parametrize("bits", [8, 4])


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_bits_everywhere(isa: str, shape: tuple[int, int], dtype: torch.dtype, bits: int) -> None:
    weight = normal(*shape, seed=shape[1], dtype=dtype)
    for ours, theirs in zip(quantize(weight, bits), page._fallback(weight, bits), strict=True):
        assert torch.equal(ours, theirs)


@both
def test_groups_without_a_scale(isa: str, bits: int) -> None:
    weight = normal(4, 150)
    weight[0, 128:], weight[1, 5], weight[2, 128], weight[3, 128:] = 0.0, torch.nan, -torch.inf, 1e-45
    integers, scale = quantize(weight, bits)
    last = scale.shape[1] - 1
    assert scale[0, last] == 0
    assert scale[3, last] == 0
    assert (~scale.isfinite()).nonzero().tolist() == [[1, 0], [2, last]]
    others = normal(4, 150)
    same = quantize(others, bits)[0]
    group = 128 if bits == 8 else 32
    assert torch.equal(integers[1, group * bits // 8 : 64], same[1, group * bits // 8 : 64])


@both
def test_rows_do_not_know_each_other(isa: str, bits: int) -> None:
    weight = normal(50, 70).bfloat16()
    whole = quantize(weight, bits)
    padded = normal(50, 90).bfloat16()
    padded[:, :70] = weight
    for rows in (weight[7:8], padded[7:8, :70], weight.T.contiguous().T[7:8]):
        for one, all_rows in zip(quantize(rows, bits), whole, strict=True):
            assert torch.equal(one, all_rows[7:8])


@both
def test_refitting_lowers_the_error_of_four_bits_only(isa: str, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(64, 256)

    def error(q: torch.Tensor, scale: torch.Tensor) -> float:
        values = q.float() if bits == 8 else torch.stack([q & 15, q >> 4], -1).flatten(1).float() - 8
        group = weight.shape[1] // scale.shape[1]
        return float((values * scale.float().repeat_interleave(group, 1) - weight).norm())

    ours = error(*quantize(weight, bits))
    monkeypatch.setitem(page.REFITS, 4, 0)
    once = error(*page._fallback(weight, bits))
    assert ours == pytest.approx(once) if bits == 8 else ours < once


@both
def test_opcheck(bits: int) -> None:
    library.opcheck(torch.ops.llmcli.quantize.default, (normal(5, 70), bits))
