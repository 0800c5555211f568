"""Softmax attention in tiles, without a T x S matrix in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmcli.ops.registry import define


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    cap: float | None = None,
    causal: bool = False,
    bias: Tensor | None = None,
    k_lengths: Tensor | None = None,
) -> Tensor:
    """Softmax attention: q (B,T,H,D), k and v (B,S,G,D), H % G == 0, D <= 256 → (B,T,H,D).

    Causal is aligned bottom-right: query t sees keys s <= t + (S_b - T), S_b = k_lengths[b] or S. With a cap, scaled
    scores s become cap * tanh(s / cap). bias is added to them and broadcasts to (B,H,T,S); k_lengths (B,) int64 in
    [0, S]. A row that sees nothing gives zeros; a key that a row does not see has no influence on it, whatever it
    holds. scale defaults to 1 / sqrt(D). A row's result depends on nothing but its query and the keys that it sees, bit
    for bit.
    Raises ValueError when shapes or dtypes do not fit.
    """
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape or q.shape[::3] != k.shape[::3] or q.shape[2] % k.shape[2]:
        raise ValueError(
            "attention: expected q (B,T,H,D), k and v (B,S,G,D) with H % G == 0, "
            f"got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"attention: expected one dtype, got {q.dtype}, {k.dtype}, {v.dtype}")
    if bias is not None:
        bias = bias[(None,) * (4 - bias.dim())]
        shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
        if bias.dim() != 4 or any(n not in (1, m) for n, m in zip(bias.shape, shape, strict=True)):
            raise ValueError(f"attention: expected bias that broadcasts to {shape}, got {tuple(bias.shape)}")
    if k_lengths is not None and (k_lengths.shape != q.shape[:1] or k_lengths.dtype != torch.int64):
        raise ValueError(
            f"attention: expected k_lengths ({q.shape[0]},) int64, got {tuple(k_lengths.shape)} {k_lengths.dtype}"
        )
    if cap is not None and not cap > 0:
        raise ValueError(f"attention: expected a cap above 0, got {cap}")
    if scale is None:
        scale = q.shape[3] ** -0.5
    return attention_with_lse(q, k, v, bias, k_lengths, scale, cap or 0.0, causal)[0]  # type: ignore[no-any-return]


def _limits(q: Tensor, k: Tensor, k_lengths: Tensor | None, causal: bool) -> Tensor:
    """How many keys each row sees: (B,1,T,1) or, without k_lengths, (1,1,T,1)."""
    T, S = q.shape[1], k.shape[1]
    limit = torch.tensor([S], device=q.device) if k_lengths is None else k_lengths
    limit = limit.view(-1, 1, 1, 1).expand(-1, 1, T, 1)
    if causal:
        limit = (limit - T + 1 + torch.arange(T, device=q.device).view(T, 1)).clamp(min=0)
    return limit


def _scores(
    q: Tensor, k: Tensor, bias: Tensor | None, k_lengths: Tensor | None, scale: float, cap: float, causal: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scores (B,H,T,S), -inf where hidden, which keys are visible, and the tanh of a cap, in float32 or better."""
    wide = torch.promote_types(q.dtype, torch.float32)
    k = k.to(wide).repeat_interleave(q.shape[2] // k.shape[2], 2)
    scores = torch.einsum("bthd,bshd->bhts", q.to(wide), k) * scale
    capped = torch.tanh(scores / cap) if cap else None
    if capped is not None:
        scores = cap * capped
    if bias is not None:
        scores = scores + bias.to(wide)
    visible = torch.arange(k.shape[1], device=q.device) < _limits(q, k, k_lengths, causal)
    return scores.masked_fill(~visible, float("-inf")), visible, capped


def _weighted_sum(weights: Tensor, x: Tensor, visible: Tensor) -> Tensor:
    """Sum over s of weights (B,H,T,S), zero where not visible, times x (B,S,H,D) → (B,T,H,D).

    Positions with infinities or NaN are added one by one: zero times them would reach rows that do not see them.
    """
    finite = torch.isfinite(x)
    out = torch.einsum("bhts,bshd->bthd", weights, x.masked_fill(~finite, 0.0))
    for s in (~finite).sum((0, 2, 3)).nonzero().flatten().tolist():
        term = weights[..., s, None].transpose(1, 2) * x[:, s, None].masked_fill(finite[:, s, None], 0.0)
        out = out + term.masked_fill(~visible[..., s, None].transpose(1, 2), 0.0)
    return out


def _fallback(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    k_lengths: Tensor | None,
    scale: float,
    cap: float,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    scores, visible, _ = _scores(q, k, bias, k_lengths, scale, cap, causal)
    lse = torch.logsumexp(scores, -1)
    p = torch.exp(scores - lse.masked_fill(lse == float("-inf"), 0.0)[..., None])
    out = _weighted_sum(p, v.to(p.dtype).repeat_interleave(q.shape[2] // v.shape[2], 2), visible)
    return out.to(q.dtype).contiguous(), lse


def _fallback_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    k_lengths: Tensor | None,
    scale: float,
    cap: float,
    causal: bool,
    bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scores, visible, capped = _scores(q, k, bias, k_lengths, scale, cap, causal)
    wide, G = scores.dtype, k.shape[2]
    g, group = grad.to(wide), q.shape[2] // k.shape[2]
    p = torch.exp(scores - lse.to(wide).masked_fill(lse == float("-inf"), 0.0)[..., None]).masked_fill(~visible, 0.0)
    dp = torch.einsum("bthd,bshd->bhts", g, v.to(wide).repeat_interleave(group, 2))
    delta = torch.einsum("bthd,bthd->bht", g, out.to(wide))
    ds = (p * (dp - delta[..., None])).masked_fill(~visible, 0.0)
    dbias = ds.sum_to_size(bias.shape).to(bias.dtype).contiguous() if bias_grad and bias is not None else q.new_empty(0)
    if capped is not None:
        ds = ds * (1 - capped * capped)
    dq = _weighted_sum(ds, k.to(wide).repeat_interleave(group, 2), visible) * scale
    dk = _weighted_sum(ds.mT, q.to(wide), visible.mT).unflatten(2, (G, -1)).sum(3) * scale
    dv = _weighted_sum(p.mT, g, visible.mT).unflatten(2, (G, -1)).sum(3)
    dq, dk, dv = (x.to(q.dtype).contiguous() for x in (dq, dk, dv))
    return dq, dk, dv, dbias


def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    k_lengths: Tensor | None,
    scale: float,
    cap: float,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    B, T, H, _ = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty((B, H, T), dtype=wide)


def _fake_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    bias: Tensor | None,
    k_lengths: Tensor | None,
    scale: float,
    cap: float,
    causal: bool,
    bias_grad: bool,
) -> tuple[Tensor, ...]:
    dbias = bias.new_empty(bias.shape) if bias_grad and bias is not None else q.new_empty(0)
    return (*(x.new_empty(x.shape) for x in (q, k, v)), dbias)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, bias, k_lengths, ctx.scale, ctx.cap, ctx.causal = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)  # or it would get zeros for a gradient
    ctx.save_for_backward(q, k, v, out, lse, bias, k_lengths)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    bias_grad = ctx.needs_input_grad[3]
    dq, dk, dv, dbias = attention_backward(grad, *ctx.saved_tensors, ctx.scale, ctx.cap, ctx.causal, bias_grad)
    return dq, dk, dv, dbias if bias_grad else None, None, None, None, None


attention_backward = define(
    "attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? bias, "
    "Tensor? k_lengths, float scale, float cap, bool causal, bool bias_grad) -> (Tensor, Tensor, Tensor, Tensor)",
    _fallback_backward,
    fake=_fake_backward,
)
attention_with_lse = define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor? k_lengths, float scale, float cap, bool causal) "
    "-> (Tensor, Tensor)",
    _fallback,
    fake=_fake,
    backward=_backward,
    save=_save,
)
