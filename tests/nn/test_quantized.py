"""Integers and scales of a matrix: how close they are, and the matrices that have none."""

from __future__ import annotations

import pytest
import torch

from llmcli.errors import ModelError
from llmcli.nn import quantized
from llmcli.nn.quantized import dequantize, quantize
from llmcli.ops.linear_quantized import GROUPS
from tests.ops.samples import normal

both = pytest.mark.parametrize("bits", [8, 4])


@both
@pytest.mark.parametrize("shape", [(1, 1), (40, 200), (3, 128), (5, 129)])
def test_weights_are_close(bits: int, shape: tuple[int, int]) -> None:
    weight = normal(*shape)
    q, scale = quantize(weight, bits, "w")
    assert (tuple(q.shape), tuple(scale.shape)) == quantized.shapes(*shape, q.dtype)
    change = dequantize(q, scale, shape[1]) - weight
    assert change.norm() < (0.008 if bits == 8 else 0.09) * weight.norm()
    step = scale.float().abs().repeat_interleave(GROUPS[bits], 1)[:, : shape[1]]
    assert (change.abs() <= 1.3 * step).all()


@both
def test_a_large_matrix_is_read_in_pieces_whose_pages_go(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, seen = normal(40, 200), []
    whole = quantize(weight, bits, "w", lambda: seen.append("small"))
    monkeypatch.setattr(quantized, "PIECE", 7 * 200 * 4)
    in_pieces = quantize(weight, bits, "w", lambda: seen.append("piece"))
    assert seen == ["piece"] * 6
    assert all(map(torch.equal, whole, in_pieces))
    weight[33, 150] = torch.nan
    with pytest.raises(ModelError, match="of output 33"):
        quantize(weight, bits, "w", lambda: None)


@both
def test_whole_numbers_on_their_own_scale_are_exact(bits: int) -> None:
    limit = 1 << bits - 1
    weight = torch.randint(-limit, limit, (6, 256), generator=torch.Generator().manual_seed(0)).float()
    weight[:, ::16] = -limit
    assert torch.equal(dequantize(*quantize(weight / 64, bits, "w"), 256) * 64, weight)


@both
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.nan, "expected finite weights, got NaN or infinity"),
        (torch.inf, "expected finite weights, got NaN or infinity"),
        (0.0, "expected weights to quantise, got only zeros"),
        (1e-45, "expected weights to quantise, got only zeros"),
    ],
)
def test_a_group_without_a_scale_is_named(bits: int, value: float, message: str) -> None:
    weight = normal(9, 150)
    weight[7, 128:] = value
    with pytest.raises(ModelError, match=rf"h\.3\.mlp: {message} at inputs 128 to 149 of output 7; "):
        quantize(weight, bits, "h.3.mlp")


def test_only_our_own_description_is_known() -> None:
    for kind in quantized.FORMATS:
        assert quantized.described({quantized.KEY: quantized.describe(kind)}) == kind
    for other in (None, {}, "int8", {"quant_method": "gptq"}, {**quantized.describe("int8"), "version": 2}):
        assert quantized.described({quantized.KEY: other}) is None
