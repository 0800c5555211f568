"""A linear layer that inference packs for the kernel, and training leaves as it is."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.ops import linear, linear_pack


class Linear(nn.Linear):
    """nn.Linear without random weights, which a checkpoint or the model brings: x (..., K) → (..., N)."""

    packed: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__(in_features, out_features, bias)
        self.register_buffer("packed", None, persistent=False)

    def reset_parameters(self) -> None:
        """Leave the memory as it is, so that a model on the meta device costs nothing."""

    def pack(self) -> None:
        """Pack the weight, once, and let go of the plain one: from now on the layer only runs forward."""
        if self.packed is not None:
            return
        self.packed = linear_pack(self.weight.detach())
        self.register_parameter("weight", None)

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + bias."""
        return self.project(x, self.bias)

    def project(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x W^T, with a bias or, where the next operator fuses it, without."""
        if self.packed is None:
            return F.linear(x, self.weight, bias)
        return linear(x, self.packed, bias, self.out_features)
