"""Cross-entropy for training: rows of logits in pieces that stay in a core's cache, the gradient in their place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORED = -100  # a target that is not learned and does not count; torch's own default
# Rows of logits handled at once: 128 rows of a few thousand float32 entries stay in a core's cache.
ROWS = 128


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy in float32 over logits of any dtype; the gradient replaces the logits in place.

    torch's own rounds every log-probability of bfloat16 logits to eight bits, and on a float32 copy of them moves four
    times the bytes.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, scale: float, smoothing: float) -> Tensor:
        """Logits (N, V) are overwritten; targets (N,) int64; scale times the sum over rows that are not IGNORED."""
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        for rows, wanted in zip(logits.split(ROWS), targets.split(ROWS), strict=True):
            counts = (wanted != IGNORED).float().unsqueeze(1)
            index = wanted.clamp(min=0).unsqueeze(1)
            log_p = torch.log_softmax(rows.float(), -1)
            nll = log_p.gather(1, index).mul_(counts).sum()
            if smoothing:
                nll = (1 - smoothing) * nll + smoothing * log_p.mean(-1, keepdim=True).mul_(counts).sum()
            total -= nll
            grad = log_p.exp_()
            if smoothing:
                grad.sub_(smoothing / rows.shape[1])
            grad.scatter_add_(1, index, grad.new_full((), smoothing - 1.0).expand_as(index))
            rows.copy_(grad.mul_(counts.mul_(scale)))
        ctx.save_for_backward(logits)
        return (total * scale).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient that forward left; a loss is the root of its graph, so that grads[0] is 1."""
        return ctx.saved_tensors[0], None, None, None


def cross_entropy(logits: Tensor, targets: Tensor, scale: float, smoothing: float = 0.0) -> Tensor:
    """scale times the sum over all rows: logits (…, V), which is consumed, and targets (…) → float32 scalar.

    Targets that are IGNORED add nothing. With smoothing s the wanted distribution is 1 - s on the target and s evenly
    over all V entries (Szegedy et al. 2016, section 7). Only for calling backward on its result itself.
    """
    flat = logits.view(-1, logits.shape[-1])
    loss: Tensor = _CrossEntropy.apply(flat, targets.reshape(-1), scale, smoothing)  # type: ignore[no-untyped-call]
    return loss
