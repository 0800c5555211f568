"""The next tokens from logits without the host: temperature, top-k, top-p, min-p and a draw, in one kernel on a GPU.

The CPU has no kernel for it: `llmcli.generation.sampling` composes the same choice of smaller parts there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmcli.ops.registry import define

UNIT = 2.0**40  # the likeliest token weighs this much, in whole numbers


def sample(
    logits: Tensor,
    uniforms: Tensor,
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Tensor:
    """Tokens (N,) of logits (N,V) for uniforms (N,) float64 in [0, 1); -1 where the highest logit is not finite.

    A token is the first id whose cumulative weight exceeds the row's uniform number times the sum, over what top-k (0
    for all), then top-p, then min-p leave; of equals lower ids stay. Weights are whole numbers, so that sums have no
    order; they differ from `softmax` by roundings, which move a token where a uniform number falls between the two.
    Raises ValueError when shapes, dtypes or a setting do not fit.
    """
    if logits.dim() != 2 or logits.shape[1] == 0 or uniforms.shape != logits.shape[:1]:
        raise ValueError(
            f"sample: expected logits (N,V) and uniforms (N,), got {tuple(logits.shape)} and {tuple(uniforms.shape)}"
        )
    if uniforms.dtype != torch.float64:
        raise ValueError(f"sample: expected uniforms of torch.float64, got {uniforms.dtype}")
    if not (temperature > 0 and top_k >= 0 and 0 < top_p <= 1 and 0 <= min_p <= 1):
        raise ValueError(
            "sample: expected temperature above 0, top_k of at least 0, top_p in (0, 1], min_p in [0, 1], got "
            f"{temperature}, {top_k}, {top_p}, {min_p}"
        )
    return _sample(logits, uniforms, temperature, top_k, top_p, min_p)  # type: ignore[no-any-return]


def _fallback(logits: Tensor, uniforms: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    logits = logits.float()
    highest = logits.amax(-1, keepdim=True)
    scaled = (logits - highest) / max(temperature, torch.finfo(torch.float32).tiny)
    ordered, ids = scaled.sort(stable=True, dim=-1, descending=True)
    weights = (ordered.exp() * UNIT).nan_to_num(0.0).long()
    if 0 < top_k < logits.shape[1]:
        weights[:, top_k:] = 0
    if top_p < 1:
        limit = torch.ceil(top_p * weights.sum(-1, keepdim=True).double()).long()
        weights = weights.where(weights.cumsum(-1) - weights < limit, 0)
    if min_p > 0:
        weights = weights.where(ordered >= math.log(min_p), 0)
    cumulative = torch.zeros_like(weights).scatter(1, ids, weights).cumsum(-1)
    total = cumulative[:, -1]
    target = torch.minimum((uniforms * total.double()).long() + 1, total)
    tokens = torch.searchsorted(cumulative, target[:, None])[:, 0]
    return tokens.where(highest[:, 0].isfinite(), -1)


_sample = define(
    "sample(Tensor logits, Tensor uniforms, float temperature, int top_k, float top_p, float min_p) -> Tensor",
    _fallback,
    fake=lambda logits, uniforms, temperature, top_k, top_p, min_p: logits.new_empty(
        logits.shape[:1], dtype=torch.int64
    ),
    devices=("cuda",),
)
