"""Rotary position embedding: pairs of a head's elements turn by an angle that grows with the position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmcli.ops.registry import define


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + R/2]), i < R/2, by angles: x (B,T,H,D), cos and sin (1 or B,T,R/2) → (B,T,H,D).

    Elements from R <= D on stay as they are; cos and sin are float32 (float64 under a float64 x) and get no gradient.
    Su et al. 2021, RoFormer, with halves paired as in GPT-NeoX and Llama. Raises ValueError when shapes do not fit.
    """
    if (
        x.dim() != 4
        or cos.dim() != 3
        or cos.shape != sin.shape
        or cos.shape[0] not in (1, x.shape[0])
        or cos.shape[1] != x.shape[1]
        or 2 * cos.shape[2] > x.shape[3]
    ):
        raise ValueError(
            "rotary: expected x (B,T,H,D), cos and sin (1 or B,T,R/2) with R <= D, "
            f"got {tuple(x.shape)}, {tuple(cos.shape)}, {tuple(sin.shape)}"
        )
    return _rotary(x, cos.contiguous(), sin.contiguous())  # type: ignore[no-any-return]


def _fallback(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    u, v, rest = wide.split([half, half, x.shape[-1] - 2 * half], -1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return torch.cat([u * cos - v * sin, v * cos + u * sin, rest], -1).to(x.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    cos, sin = ctx.saved_tensors
    return _rotary(grad, cos, -sin), None, None  # turning back


_rotary = define(
    "rotary(Tensor x, Tensor cos, Tensor sin) -> Tensor",
    _fallback,
    fake=lambda x, cos, sin: torch.empty_like(x, memory_format=torch.contiguous_format),
    backward=_backward,
    save=_save,
)
