"""Float64 references: slow and obvious. Nothing here shares code with the package."""

from __future__ import annotations

import torch
from torch import Tensor


def softmax(x: Tensor, scale: float = 1.0, mask: Tensor | None = None, log: bool = False) -> Tensor:
    """Softmax of scale * x + mask over the last dimension; a fully hidden row gives zeros (log: -inf)."""
    s = x.double() * scale
    if mask is not None:
        s = s.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else s + mask.double()
    if s.shape[-1] == 0:
        return s
    top = s.amax(-1, keepdim=True)
    e = torch.exp(s - top)
    total = e.sum(-1, keepdim=True)
    hidden = top == -torch.inf
    if log:
        return torch.where(hidden, -torch.inf, s - top - torch.log(total))
    return torch.where(hidden, 0.0, e / total)


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
) -> tuple[Tensor, Tensor]:
    """Attention, one row of one head at a time, over the keys that it sees → out (B,T,H,D), lse (B,H,T)."""
    B, T, H, D = q.shape
    S, G = k.shape[1:3]
    scale = D**-0.5 if scale is None else scale
    add = torch.zeros(B, H, T, S).double() if bias is None else bias.double().expand(B, H, T, S)
    q, k, v = q.double(), k.double(), v.double()
    rows, lses = [], []
    for b in range(B):
        length = S if k_lengths is None else int(k_lengths[b])
        for t in range(T):
            n = max(0, min(length, length - T + t + 1)) if causal else length
            for h in range(H):
                g = h // (H // G)
                s = (k[b, :n, g] @ q[b, t, h]) * scale
                if cap is not None:
                    s = cap * torch.tanh(s / cap)
                s = s + add[b, h, t, :n]
                rows.append(softmax(s) @ v[b, :n, g])
                lses.append(torch.logsumexp(s, 0))
    out = torch.stack(rows).view(B, T, H, D) if rows else q.new_zeros(B, T, H, D)
    lse = torch.stack(lses).view(B, T, H).transpose(1, 2) if lses else q.new_zeros(B, H, T)
    return out, lse


def norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-5, rms: bool = False) -> Tensor:
    """Layer norm, or RMS norm, over the last dimension."""
    v = x.double()
    if not rms:
        v = v - v.mean(-1, keepdim=True)
    y = v / torch.sqrt((v * v).mean(-1, keepdim=True) + eps) * weight.double()
    return y if bias is None else y + bias.double()


def gelu(x: Tensor, bias: Tensor | None = None, approximate: str = "none") -> Tensor:
    """x P(Z <= x) for a normal Z, or the tanh approximation of it."""
    z = x.double() if bias is None else x.double() + bias.double()
    if approximate == "tanh":
        return 0.5 * z * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)))
    return 0.5 * z * (1 + torch.erf(z / 2**0.5))


def silu_gate(gate: Tensor, up: Tensor, gate_bias: Tensor | None = None, up_bias: Tensor | None = None) -> Tensor:
    """silu(gate + gate_bias) * (up + up_bias)."""
    z = gate.double() if gate_bias is None else gate.double() + gate_bias.double()
    u = up.double() if up_bias is None else up.double() + up_bias.double()
    return z / (1 + torch.exp(-z)) * u
