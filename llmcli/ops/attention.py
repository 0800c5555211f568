"""Attention (interim: the torch fallback only, final signature)."""

from __future__ import annotations

import torch
from torch import Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    bias: Tensor | None = None,
    k_lengths: Tensor | None = None,
) -> Tensor:
    """Softmax attention: q (B,T,H,D), k and v (B,S,G,D), H % G == 0 → (B,T,H,D).

    Causal is aligned bottom-right: query t sees keys s <= t + (S_b - T), S_b = k_lengths[b] or S.
    bias broadcasts to (B,H,T,S); k_lengths (B,) int64. A fully masked row gives zeros.
    """
    T, S = q.shape[1], k.shape[1]
    mask = None
    if causal or k_lengths is not None:
        s = torch.arange(S, device=q.device)
        length = k_lengths.view(-1, 1, 1, 1) if k_lengths is not None else torch.tensor(S, device=q.device)
        limit = length
        if causal:
            limit = torch.minimum(limit, length - T + torch.arange(T, device=q.device).view(T, 1) + 1)
        mask = (
            (s < limit).expand(-1 if k_lengths is None else q.shape[0], -1, T, S)
            if k_lengths is not None
            else (s < limit).expand(T, S)
        )
    add = bias
    if mask is not None:
        add = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, float("-inf"))
        add = add if bias is None else add + bias
    out = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=add, scale=scale, enable_gqa=True
    )
    return out.transpose(1, 2)
