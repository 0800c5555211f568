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
