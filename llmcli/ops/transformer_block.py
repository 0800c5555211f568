"""A pre-norm block of a decoder in training as one operator: nothing of Python lies between its parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmcli.ops.activation import gelu, gelu_backward
from llmcli.ops.attention import attention_backward, attention_with_lse
from llmcli.ops.matmul import product
from llmcli.ops.norm import add_layer_norm, norm_backward
from llmcli.ops.registry import define

# Weights of a block, in this order; matrices lie as a linear layer has them, (outputs, inputs).
WEIGHTS = (
    *("norm_1", "norm_1_bias", "qkv", "qkv_bias", "out", "out_bias"),
    *("norm_2", "norm_2_bias", "up", "up_bias", "down", "down_bias"),
)
# What the backward needs of them, and of what the forward leaves behind its two results.
NEEDED = ("norm_1", "qkv", "out", "norm_2", "up", "up_bias", "down")
KEPT = ("stream_1", "normed_1", "projected", "mixed", "lse", "normed_2", "hidden", "active")


def transformer_block(
    x: Tensor, update: Tensor, *weights: Tensor, heads: int, scale: float, eps: float, approximate: str = "none"
) -> tuple[Tensor, Tensor]:
    """Causal attention, then an MLP with GELU, each on the layer norm of the residual stream x + update (B,T,C).

    weights: WEIGHTS, all in x's dtype. scale multiplies the scores, approximate is GELU's. Gives the stream and the
    update that leave the block, the latter not yet added; all gradients are computed, whichever are asked for. The
    bits are those of the operators one by one. Raises ValueError when shapes or dtypes do not fit.
    """
    inner, C = weights[WEIGHTS.index("up")].shape[0], x.shape[-1]
    matrices = {"qkv": (3 * C, C), "out": (C, C), "up": (inner, C), "down": (C, inner)}
    vectors = {"qkv_bias": (3 * C,), "up_bias": (inner,)}
    shapes = [matrices.get(name, vectors.get(name, (C,))) for name in WEIGHTS]
    if x.dim() != 3 or C % heads or update.shape != x.shape or [tuple(part.shape) for part in weights] != shapes:
        raise ValueError(
            f"transformer_block: expected x and update (B,T,C), C a multiple of {heads} heads, and weights {shapes}, "
            f"got {', '.join(str(tuple(part.shape)) for part in (x, update, *weights))}"
        )
    if any(part.dtype != x.dtype for part in (update, *weights)):
        raise ValueError(f"transformer_block: expected {x.dtype} as x's, got {[part.dtype for part in weights]}")
    if approximate not in ("none", "tanh"):
        raise ValueError(f"transformer_block: expected approximate 'none' or 'tanh', got {approximate!r}")
    stream, left, *_ = _transformer_block(x, update, *weights, heads, scale, eps, approximate == "tanh")
    return stream, left


def _fallback(x: Tensor, update: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    w, (heads, scale, eps, tanh) = dict(zip(WEIGHTS, rest, strict=False)), rest[len(WEIGHTS) :]
    normed_1, stream_1 = add_layer_norm(update, x, w["norm_1"], w["norm_1_bias"], eps=eps)
    projected = product(normed_1, w["qkv"], w["qkv_bias"])
    mixed, lse = attention_with_lse(*_heads(projected, heads), None, None, scale, 0.0, True)
    attended = product(mixed.flatten(2), w["out"], w["out_bias"])
    normed_2, stream_2 = add_layer_norm(attended, stream_1, w["norm_2"], w["norm_2_bias"], eps=eps)
    hidden = product(normed_2, w["up"])
    active = gelu(hidden, w["up_bias"], approximate="tanh" if tanh else "none")
    left = product(active, w["down"], w["down_bias"])
    return stream_2, left, stream_1, normed_1, projected, mixed, lse, normed_2, hidden, active


def _fallback_backward(grad_stream: Tensor, grad_update: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    names = (*NEEDED, "stream_2", *KEPT)
    w, (heads, scale, eps, tanh) = dict(zip(names, rest, strict=False)), rest[len(names) :]
    d_active, d_down, d_down_bias = _linear_backward(grad_update, w["active"], w["down"])
    d_hidden, d_up_bias = gelu_backward(d_active, w["hidden"], w["up_bias"], tanh)
    d_normed_2, d_up, _ = _linear_backward(d_hidden, w["normed_2"], w["up"])
    d_stream, *d_norm_2 = norm_backward(d_normed_2, w["stream_2"], w["norm_2"], grad_stream, True, eps, False)
    d_mixed, d_out, d_out_bias = _linear_backward(d_stream, w["mixed"].flatten(2), w["out"])
    q, k, v = _heads(w["projected"], heads)
    found = attention_backward(
        d_mixed.view(q.shape), q, k, v, w["mixed"], w["lse"], None, None, scale, 0.0, True, False
    )
    d_projected = torch.stack(found[:3], 2).flatten(2)
    d_normed_1, d_qkv, d_qkv_bias = _linear_backward(d_projected, w["normed_1"], w["qkv"])
    dx, *d_norm_1 = norm_backward(d_normed_1, w["stream_1"], w["norm_1"], d_stream, True, eps, False)
    return dx, *d_norm_1, d_qkv, d_qkv_bias, d_out, d_out_bias, *d_norm_2, d_up, d_up_bias, d_down, d_down_bias


def _heads(projected: Tensor, heads: int) -> tuple[Tensor, ...]:
    """(B,T,3C) → q, k and v, each (B,T,H,D)."""
    B, T, width = projected.shape
    return projected.view(B, T, 3, heads, width // 3 // heads).unbind(2)


def _linear_backward(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    rows, inputs = grad.flatten(0, 1), x.flatten(0, 1)
    return product(grad, weight.t()), product(rows.t(), inputs.t()), grad.sum((0, 1))


def _fake(x: Tensor, update: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    (B, T, C), inner, heads = x.shape, rest[WEIGHTS.index("up")].shape[0], rest[len(WEIGHTS)]
    lse = x.new_empty((B, heads, T), dtype=torch.promote_types(x.dtype, torch.float32))

    def rows(width: int) -> Tensor:
        return x.new_empty((B, T, width))

    mixed = x.new_empty((B, T, heads, C // heads))
    return *(rows(C) for _ in range(4)), rows(3 * C), mixed, lse, rows(C), rows(inner), rows(inner)


def _fake_backward(grad_stream: Tensor, grad_update: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    w, C = dict(zip(NEEDED, rest, strict=False)), grad_stream.shape[-1]
    inner = w["up"].shape[0]
    sizes = [(C,), (C,), (3 * C, C), (3 * C,), (C, C), (C,), (C,), (C,), (inner, C), (inner,), (C, inner), (C,)]
    return grad_stream.new_empty(grad_stream.shape), *(grad_stream.new_empty(size) for size in sizes)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    weights, ctx.constants = inputs[2 : 2 + len(WEIGHTS)], inputs[2 + len(WEIGHTS) :]
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)  # or each of these would get zeros for a gradient
    needed = [weight for name, weight in zip(WEIGHTS, weights, strict=True) if name in NEEDED]
    ctx.save_for_backward(*needed, output[0], *output[2:])


def _backward(ctx: Any, grad_stream: Tensor | None, grad_update: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: activation checkpointing gives them only once
    grads = [torch.zeros_like(saved[len(NEEDED)]) if grad is None else grad for grad in (grad_stream, grad_update)]
    dx, *weights = _transformer_block_backward(*grads, *saved, *ctx.constants)
    return dx, dx, *weights, *[None] * len(ctx.constants)


def _schema(name: str, tensors: tuple[str, ...], results: int) -> str:
    arguments = ", ".join(f"Tensor {tensor}" for tensor in tensors)
    given = ", ".join(["Tensor"] * results)
    return f"{name}({arguments}, int heads, float scale, float eps, bool tanh) -> ({given})"


_transformer_block_backward = define(
    _schema(
        "transformer_block_backward",
        ("grad_stream", "grad_update", *NEEDED, "stream_2", *KEPT),
        1 + len(WEIGHTS),
    ),
    _fallback_backward,
    fake=_fake_backward,
    devices=("cpu",),
)
_transformer_block = define(
    _schema("transformer_block", ("x", "update", *WEIGHTS), 2 + len(KEPT)),
    _fallback,
    fake=_fake,
    backward=_backward,
    save=_save,
    devices=("cpu",),
)
