"""The vocabulary projection and its cross-entropy in one, without ever holding the logits of all rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmcli.ops.registry import define

ROWS = 256  # of the fallback, at once


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    scale: float = 1.0,
    smoothing: float = 0.0,
    cap: float | None = None,
) -> Tensor:
    """scale times the summed cross-entropy of x weightᵀ: x (...,C), weight (V,C), targets (...) int64 → float32 ().

    A target below 0 adds nothing. With smoothing s the wanted distribution is 1 - s on the target and s evenly over all
    V (Szegedy et al. 2016, section 7). A cap makes `softcap` of the logits. Logits are rounded to x's dtype, statistics
    are float32, the sum over rows is float64 in their order. The gradients are computed with the loss, where x or
    weight requires one: a piece of rows after another, so that memory grows with N·C and V·C, not with N·V. The same
    bits for any number of threads.
    Raises ValueError when shapes or dtypes do not fit.
    """
    if weight.dim() != 2 or x.shape[-1:] != weight.shape[1:] or targets.shape != x.shape[:-1]:
        raise ValueError(
            "linear_cross_entropy: expected x (...,C), weight (V,C), targets (...), got "
            f"{tuple(x.shape)}, {tuple(weight.shape)}, {tuple(targets.shape)}"
        )
    if x.dtype != weight.dtype or targets.dtype != torch.int64:
        raise ValueError(
            "linear_cross_entropy: expected x and weight of one dtype and targets of torch.int64, got "
            f"{x.dtype}, {weight.dtype}, {targets.dtype}"
        )
    learns = torch.is_grad_enabled()
    loss: Tensor = _linear_cross_entropy(
        x.reshape(-1, x.shape[-1]),
        weight,
        targets.reshape(-1),
        scale,
        smoothing,
        cap or 0.0,
        learns and x.requires_grad,
        learns and weight.requires_grad,
    )[0]
    return loss


def _fallback(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    scale: float,
    smoothing: float,
    cap: float,
    x_grad: bool,
    weight_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    V, wide = weight.shape[0], torch.promote_types(x.dtype, torch.float32)
    if targets.numel() and int(targets.max()) >= V:
        raise RuntimeError(f"linear_cross_entropy: expected targets below {V}, got {int(targets.max())}")
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    dx = torch.empty_like(x) if x_grad else x.new_empty(0)
    dw = torch.zeros_like(weight, dtype=wide) if weight_grad else weight.new_empty(0)
    for begin in range(0, len(x), ROWS):
        rows, wanted = x[begin : begin + ROWS], targets[begin : begin + ROWS]
        counts, index = (wanted >= 0).to(wide).unsqueeze(1), wanted.clamp(min=0).unsqueeze(1)
        logits = (rows @ weight.T).to(wide)
        capped = torch.tanh(logits / cap) if cap else None
        log_p = torch.log_softmax(logits if capped is None else cap * capped, -1)
        nll = (1 - smoothing) * log_p.gather(1, index) + smoothing * log_p.mean(-1, keepdim=True)
        total -= (nll.double() * counts).sum()
        if not (x_grad or weight_grad):
            continue
        grad = log_p.exp_().sub_(smoothing / V)
        grad.scatter_add_(1, index, grad.new_full((), smoothing - 1.0).expand_as(index))
        if capped is not None:
            grad.mul_(1 - capped * capped)
        rounded = grad.mul_(counts.mul_(scale)).to(x.dtype)
        if x_grad:
            dx[begin : begin + ROWS] = rounded @ weight
        if weight_grad:
            dw += rounded.T @ rows
    return (total * scale).to(wide), dx, dw.to(weight.dtype)


def _fake(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    scale: float,
    smoothing: float,
    cap: float,
    x_grad: bool,
    weight_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty((), dtype=torch.promote_types(x.dtype, torch.float32)),
        x.new_empty(x.shape if x_grad else (0,)),
        weight.new_empty(weight.shape if weight_grad else (0,)),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, dx, dw = output
    ctx.mark_non_differentiable(dx, dw)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(dx, dw)


def _backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[:2]
    dx, dw = (
        None if grad is None or not need else _scaled(saved, grad)
        for saved, need in zip(ctx.saved_tensors, needed, strict=True)
    )
    return dx, dw, None, None, None, None, None, None


def _scaled(saved: Tensor, grad: Tensor) -> Tensor:
    # A loss is nearly always the root of its graph: no second copy of the weights' gradient then. A tracer's tensor,
    # which is of another type, has no value to look at.
    if type(grad) is Tensor and grad.device.type == "cpu" and grad.item() == 1.0:
        return saved
    return saved * grad.to(saved.dtype)


_linear_cross_entropy = define(
    "linear_cross_entropy(Tensor x, Tensor weight, Tensor targets, float scale, float smoothing, float cap, "
    "bool x_grad, bool weight_grad) -> (Tensor, Tensor, Tensor)",
    _fallback,
    fake=_fake,
    backward=_backward,
    save=_save,
)
