"""Softmax over the last dimension (interim: the torch fallback only, final signature)."""

from __future__ import annotations

import torch
from torch import Tensor


def softmax(
    x: Tensor, *, scale: float = 1.0, mask: Tensor | None = None, log: bool = False, out: Tensor | None = None
) -> Tensor:
    """Softmax or log-softmax of scale * x + mask over the last dimension: x (..., V), mask broadcasts to x."""
    scores = x.float() * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    y = (torch.log_softmax if log else torch.softmax)(scores, -1).to(x.dtype)
    return y if out is None else out.copy_(y)
