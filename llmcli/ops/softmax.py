"""Softmax over the last dimension, with scale and mask fused in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmcli.ops.registry import define


def softmax(
    x: Tensor, *, scale: float = 1.0, mask: Tensor | None = None, log: bool = False, out: Tensor | None = None
) -> Tensor:
    """Softmax, or its logarithm, of scale * x + mask over the last dimension: x (..., V) → (..., V).

    mask broadcasts to x: bool (False hides an element) or additive in x's dtype; it gets no gradient. A row with
    nothing left to see gives zeros (log: -inf). With `out`, whose rows are contiguous, writes there, returns it, and
    records no gradient.
    Raises ValueError when shapes or dtypes do not fit.
    """
    if mask is not None:
        if mask.dtype not in (torch.bool, x.dtype):
            raise ValueError(f"softmax: expected mask of bool or {x.dtype}, got {mask.dtype}")
        mask = mask.expand(x.shape)
    if out is None:
        return _softmax(x, mask, scale, log)  # type: ignore[no-any-return]
    if out.shape != x.shape or out.dtype != x.dtype:
        raise ValueError(f"softmax: expected out {tuple(x.shape)} {x.dtype}, got {tuple(out.shape)} {out.dtype}")
    _softmax_out(x, mask, scale, log, out=out)
    return out


def _fallback(x: Tensor, mask: Tensor | None, scale: float, log: bool) -> Tensor:
    scores = x.to(torch.promote_types(x.dtype, torch.float32)) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    hidden = (scores == float("-inf")).all(-1, keepdim=True)
    if log:
        y = torch.log_softmax(scores, -1).masked_fill(hidden, float("-inf"))
    else:
        y = torch.softmax(scores, -1).masked_fill(hidden, 0.0)
    return y.to(x.dtype).contiguous()


def _fallback_out(x: Tensor, mask: Tensor | None, scale: float, log: bool, out: Tensor) -> None:
    out.copy_(_fallback(x, mask, scale, log))


def _fallback_backward(grad: Tensor, y: Tensor, scale: float, log: bool) -> Tensor:
    wide = torch.promote_types(y.dtype, torch.float32)
    g, p = grad.to(wide), y.to(wide)
    if log:
        hidden = p == float("-inf")
        g = g.masked_fill(hidden, 0.0)
        dx = g - p.exp() * g.sum(-1, keepdim=True)
    else:
        dx = p * (g - (g * p).sum(-1, keepdim=True))
    return (dx * scale).to(y.dtype).contiguous()


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, ctx.scale, ctx.log = inputs
    ctx.save_for_backward(output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    (y,) = ctx.saved_tensors
    return _softmax_backward(grad, y, ctx.scale, ctx.log), None, None, None


def _fake(x: Tensor, mask: Tensor | None, scale: float, log: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_softmax_backward = define(
    "softmax_backward(Tensor grad, Tensor y, float scale, bool log) -> Tensor",
    _fallback_backward,
    fake=lambda grad, y, scale, log: torch.empty_like(y, memory_format=torch.contiguous_format),
)
_softmax = define(
    "softmax(Tensor x, Tensor? mask, float scale, bool log) -> Tensor",
    _fallback,
    fake=_fake,
    backward=_backward,
    save=_save,
)
_softmax_out = define(
    "softmax_out(Tensor x, Tensor? mask, float scale, bool log, *, Tensor(a!) out) -> ()",
    lambda x, mask, scale, log, *, out: _fallback_out(x, mask, scale, log, out),
    fake=lambda x, mask, scale, log, *, out: None,
)
