"""The parameters of an RMS norm, which torch's own module would fill."""

from __future__ import annotations

import torch
from torch import nn


class RMSNorm(nn.Module):
    """The scale of an RMS norm over `size` elements."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.empty(size)), eps
