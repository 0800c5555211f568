"""Numbers kept within a cap, smoothly: what Gemma 2 makes of its logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmcli.ops.registry import define


def softcap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap): x (...) → (...), contiguous.

    The bits of an element depend on the element alone. Raises ValueError for a cap that is not above 0.
    """
    if not cap > 0:
        raise ValueError(f"softcap: expected a cap above 0, got {cap}")
    return _softcap(x, cap)  # type: ignore[no-any-return]


def _fallback(x: Tensor, cap: float) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return (cap * torch.tanh(x.to(wide) / cap)).to(x.dtype).contiguous()


def _fallback_backward(grad: Tensor, x: Tensor, cap: float) -> Tensor:
    t = torch.tanh(x.to(torch.promote_types(x.dtype, torch.float32)) / cap)
    return (grad * (1 - t * t)).to(x.dtype).contiguous()


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.cap = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _softcap_backward(grad, *ctx.saved_tensors, ctx.cap), None


_softcap_backward = define(
    "softcap_backward(Tensor grad, Tensor x, float cap) -> Tensor",
    _fallback_backward,
    fake=lambda grad, x, cap: x.new_empty(x.shape),
)
_softcap = define(
    "softcap(Tensor x, float cap) -> Tensor",
    _fallback,
    fake=lambda x, cap: x.new_empty(x.shape),
    backward=_backward,
    save=_save,
)
