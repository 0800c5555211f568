"""Rotary positions against complex multiplication in float64, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, library

from llmcli.ops import rotary
from tests.ops.samples import DTYPES, normal
from tests.ops.tolerance import assert_within_budget

# B, T, H, D, R: one pair, odd halves, part of a head, nothing turned, a whole wide head, no rows.
SHAPES = [(1, 1, 1, 2, 2), (2, 5, 3, 14, 14), (1, 7, 2, 33, 10), (2, 3, 4, 8, 0), (1, 17, 2, 128, 128), (0, 3, 2, 8, 8)]


def angles(B: int, T: int, half: int) -> tuple[Tensor, Tensor]:
    angle = normal(B, T, half, seed=9, size=3)
    return angle.cos(), angle.sin()


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The definition: pairs as complex numbers, times cos + i sin."""
    half, x = cos.shape[-1], x.double()
    z = torch.complex(x[..., :half], x[..., half : 2 * half])
    z = z * torch.complex(cos.double(), sin.double())[:, :, None]
    return torch.cat([z.real, z.imag, x[..., 2 * half :]], -1)


def by_torch(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As transformers writes it: everything in the dtype of x."""
    half = cos.shape[-1]
    c, s = (torch.cat([a, a], -1)[:, :, None].to(x.dtype) for a in (cos, sin))
    u, v, rest = x.split([half, half, x.shape[-1] - 2 * half], -1)
    return torch.cat([torch.cat([u, v], -1) * c + torch.cat([-v, u], -1) * s, rest], -1)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_close_to_float64(isa: str, shape: tuple[int, ...], dtype: torch.dtype, batched: bool) -> None:
    B, T, H, D, R = shape
    x = normal(B, T, H, D, dtype=dtype)
    cos, sin = angles(B if batched else 1, T, R // 2)
    assert_within_budget(rotary(x, cos, sin), by_torch(x, cos, sin), turned(x, cos, sin))


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_views_and_companions_change_no_bit(isa: str, dtype: torch.dtype) -> None:
    qkv = normal(3, 7, 6, 20, dtype=dtype)
    cos, sin = angles(3, 7, 10)
    whole = rotary(qkv.contiguous(), cos, sin)
    assert torch.equal(rotary(qkv[:, :, 1:3], cos, sin), whole[:, :, 1:3])
    assert torch.equal(rotary(qkv[1:2, 3:5], cos[1:2, 3:5], sin[1:2, 3:5]), whole[1:2, 3:5])
    last = qkv.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(rotary(last, cos, sin), whole)


def test_scores_depend_on_distance_alone() -> None:
    q, k = normal(1, 1, 1, 16), normal(1, 1, 1, 16, seed=1)
    rate = 10000.0 ** (-torch.arange(8) / 8)

    def at(x: Tensor, position: int) -> Tensor:
        angle = (position * rate).view(1, 1, 8)
        return rotary(x, angle.cos(), angle.sin())

    near, far = (at(q, p + 5) * at(k, p) for p in (0, 90))
    torch.testing.assert_close(near.sum(), far.sum(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    x = normal(2, 3, 2, 9, dtype=dtype).requires_grad_()
    library.opcheck(torch.ops.llmcli.rotary.default, (x, *angles(1, 3, 4)))


def test_gradcheck() -> None:
    x = normal(2, 3, 2, 9).double().requires_grad_()
    cos, sin = (a.double() for a in angles(2, 3, 4))
    assert torch.autograd.gradcheck(lambda x: rotary(x, cos, sin), x)


@pytest.mark.parametrize("change", [(1, 2, 4), (3, 3, 4), (1, 3, 5)])
def test_shapes_that_do_not_fit(change: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="rotary: expected"):
        rotary(normal(2, 3, 2, 9), *angles(*change))
