"""The vocabulary projection and the log-probabilities of wanted tokens in one, without ever holding the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from llmcli.ops.linear import unpack
from llmcli.ops.linear_quantized import linear_packed
from llmcli.ops.registry import define

ROWS = 64  # of the fallback, at once


def linear_logprobs(
    x: Tensor, packed: Tensor, targets: Tensor, out_features: int, *, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """log p of targets under softmax(x Wᵀ), and the likeliest tokens: x (...,C), W (V,C), targets (...) → (...) each.

    packed is `linear_pack` of W, or of its integers; targets and tokens are int64, log-probabilities float32; of
    equals the first is likeliest. Logits are not rounded to x's dtype: parts of the vocabulary are reduced while they
    are in cache; a cap makes `softcap` of them. NaN or +infinity among a row's logits gives NaN, and any token.
    Inference only; the same bits for any company and number of threads. Raises ValueError where shapes do not fit,
    RuntimeError for a target outside of V.
    """
    if targets.shape != x.shape[:-1] or targets.dtype != torch.int64 or out_features < 1:
        raise ValueError(
            "linear_logprobs: expected x (...,C), int64 targets (...) and out_features >= 1, got "
            f"{tuple(x.shape)}, {tuple(targets.shape)} {targets.dtype}, {out_features}"
        )
    rows = x.reshape(targets.numel(), x.shape[-1])
    logprobs, best = _linear_logprobs(rows, packed, targets.reshape(-1), out_features, cap or 0.0)
    return logprobs.view(targets.shape), best.view(targets.shape)


def _fallback(x: Tensor, packed: Tensor, targets: Tensor, out_features: int, cap: float) -> tuple[Tensor, Tensor]:
    for wrong in targets[(targets < 0) | (targets >= out_features)].tolist():
        raise RuntimeError(f"linear_logprobs: expected targets from 0 to {out_features - 1}, got {wrong}")
    wide = torch.promote_types(x.dtype, torch.float32)
    weight = unpack(packed, x.shape[-1], out_features).to(wide) if packed.is_floating_point() else None
    logprobs, best = x.new_empty(len(x), dtype=wide), torch.empty_like(targets)
    for begin in range(0, len(x), ROWS):
        part = slice(begin, begin + ROWS)
        rows = x[part].to(wide)
        logits = linear_packed(rows, packed, None, out_features) if weight is None else rows @ weight.T
        log_p = torch.log_softmax(cap * torch.tanh(logits / cap) if cap else logits, -1)
        logprobs[part] = log_p.gather(1, targets[part, None])[:, 0]
        best[part] = log_p.argmax(-1)
    return logprobs, best


_linear_logprobs = define(
    "linear_logprobs(Tensor x, Tensor packed, Tensor targets, int out_features, float cap) -> (Tensor, Tensor)",
    _fallback,
    fake=lambda x, packed, targets, out_features, cap: (
        x.new_empty(len(x), dtype=torch.promote_types(x.dtype, torch.float32)),
        x.new_empty(len(x), dtype=torch.int64),
    ),
    devices=("cpu",),
)
