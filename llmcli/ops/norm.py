"""Layer norm and RMS norm over the last dimension, with or without the residual add."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmcli.ops.registry import define


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """Layer norm over the last dimension: x (..., C), weight and bias (C,) → (..., C).

    Statistics are float32 whatever the dtype of x; weight and bias may be float32 under a narrower x. Raises
    ValueError when shapes or dtypes do not fit.
    """
    _check(x, weight, bias)
    return _norm(x, weight, bias, eps, False)  # type: ignore[no-any-return]


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    """RMS norm over the last dimension: x (..., C), weight (C,) → (..., C); dtypes and errors as in layer_norm."""
    _check(x, weight, None)
    return _norm(x, weight, None, eps, True)  # type: ignore[no-any-return]


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """(layer_norm(x + residual), x + residual) in one pass over memory: x and residual (..., C).

    Where their dtypes differ, as under autocast, both results have the wider one. Errors as in layer_norm.
    """
    return _add(x, residual, weight, bias, eps, False)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual) in one pass over memory; dtypes and errors as in add_layer_norm."""
    return _add(x, residual, weight, None, eps, True)


def _add(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float, rms: bool
) -> tuple[Tensor, Tensor]:
    if x.dtype != residual.dtype:
        wide = torch.promote_types(x.dtype, residual.dtype)
        x, residual = x.to(wide), residual.to(wide)
    if x.shape != residual.shape:
        raise ValueError(f"norm: expected x and residual alike, got {tuple(x.shape)} and {tuple(residual.shape)}")
    _check(x, weight, bias)
    y, total = _add_norm(x, residual, weight, bias, eps, rms)
    return y, total


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if x.shape[-1:] != weight.shape or (bias is not None and bias.shape != weight.shape):
        shapes = [tuple(t.shape) for t in (x, weight, bias) if t is not None]
        raise ValueError(f"norm: expected x (..., C), weight (C,) and bias (C,), got {', '.join(map(str, shapes))}")
    if weight.dtype not in (x.dtype, torch.float32) or (bias is not None and bias.dtype != weight.dtype):
        raise ValueError(f"norm: expected weight and bias of float32 or {x.dtype}, got {weight.dtype}")


def _fallback(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, rms: bool) -> Tensor:
    _, v = _normalise(x, eps, rms)
    y = v * weight
    return (y if bias is None else y + bias).to(x.dtype).contiguous()


def _fallback_add(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float, rms: bool
) -> tuple[Tensor, Tensor]:
    total = (x + residual).contiguous()
    return _fallback(total, weight, bias, eps, rms), total


def _fallback_backward(
    grad: Tensor, x: Tensor, weight: Tensor, extra: Tensor | None, has_bias: bool, eps: float, rms: bool
) -> tuple[Tensor, Tensor, Tensor]:
    inverse, v = _normalise(x, eps, rms)
    g = grad.to(v.dtype)
    h = g * weight
    dx = h - v * (h * v).mean(-1, keepdim=True)
    if not rms:
        dx = dx - h.mean(-1, keepdim=True)
    dx = dx * inverse
    if extra is not None:
        dx = dx + extra
    rows = tuple(range(x.dim() - 1))
    dbias = g.sum(rows) if has_bias else g.new_empty(0)
    return dx.to(x.dtype).contiguous(), (g * v).sum(rows).to(weight.dtype), dbias.to(weight.dtype)


def _normalise(x: Tensor, eps: float, rms: bool) -> tuple[Tensor, Tensor]:
    """(1 / deviation (..., 1), normalised x), at least in float32."""
    v = x.to(torch.promote_types(x.dtype, torch.float32))
    if not rms:
        v = v - v.mean(-1, keepdim=True)
    inverse = torch.rsqrt(v.square().mean(-1, keepdim=True) + eps)
    return inverse, v * inverse


def _fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_backward(
    grad: Tensor, x: Tensor, weight: Tensor, extra: Tensor | None, has_bias: bool, eps: float, rms: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake(x), torch.empty_like(weight), weight.new_empty(weight.shape if has_bias else (0,))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.eps, ctx.rms = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    dx, dweight, dbias = norm_backward(grad, x, weight, None, ctx.has_bias, ctx.eps, ctx.rms)
    return dx, dweight, dbias if ctx.has_bias else None, None, None


def _save_add(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, weight, bias, ctx.eps, ctx.rms = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(output[1], weight)


def _backward_add(ctx: Any, grad: Tensor, grad_total: Tensor) -> tuple[Tensor | None, ...]:
    total, weight = ctx.saved_tensors
    dx, dweight, dbias = norm_backward(grad, total, weight, grad_total, ctx.has_bias, ctx.eps, ctx.rms)
    return dx, dx, dweight, dbias if ctx.has_bias else None, None, None


norm_backward = define(
    "norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor? extra, bool has_bias, float eps, bool rms)"
    " -> (Tensor, Tensor, Tensor)",
    _fallback_backward,
    fake=_fake_backward,
)
_norm = define(
    "norm(Tensor x, Tensor weight, Tensor? bias, float eps, bool rms) -> Tensor",
    _fallback,
    fake=_fake,
    backward=_backward,
    save=_save,
)
_add_norm = define(
    "add_norm(Tensor x, Tensor residual, Tensor weight, Tensor? bias, float eps, bool rms) -> (Tensor, Tensor)",
    _fallback_add,
    fake=lambda x, *_: (_fake(x), _fake(x)),
    backward=_backward_add,
    save=_save_add,
)
