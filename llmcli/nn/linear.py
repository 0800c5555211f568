"""A linear layer that inference packs or quantises for the kernel, and training leaves as it is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmcli.nn.quantized import Release, quantize
from llmcli.ops import linear, linear_pack, linear_quantized, linear_quantized_pack
from llmcli.ops.matmul import product


class Linear(nn.Linear):
    """nn.Linear without random weights, which a checkpoint or the model brings: x (..., K) → (..., N)."""

    packed: Tensor | None
    bits = 0  # of quantised weights
    watch: Callable[[Tensor], None] | None = None  # sees every input

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__(in_features, out_features, bias)
        self.register_buffer("packed", None, persistent=False)

    def reset_parameters(self) -> None:
        """Leave the memory as it is, so that a model on the meta device costs nothing."""

    def pack(self) -> None:
        """Pack the weight, once, and let go of the plain one: from now on the layer only runs forward."""
        if self.packed is None:
            self.set_packed(linear_pack(self.weight.detach()))

    def quantize(self, bits: int, name: str, release: Release = None) -> None:
        """Bring the weight to 8 or 4 bits, once, and let go of the plain one; `name` is for errors, a ModelError."""
        if self.packed is None:
            self.set_quantized(*quantize(self.weight, bits, name, release))

    def set_quantized(self, integers: Tensor, scales: Tensor) -> None:
        """Take what `nn.quantized.quantize` gives in place of a weight."""
        packed = linear_quantized_pack(integers, scales, self.in_features)
        self.set_packed(packed, 8 if integers.dtype == torch.int8 else 4)

    def set_packed(self, packed: Tensor, bits: int = 0) -> None:
        """Take a packed weight in place of the plain one, of 8 or 4 bits where it is quantised."""
        self.packed, self.bits = packed, bits
        self.register_parameter("weight", None)

    @property
    def bytes_read(self) -> int:
        """Bytes of the weights, and of their scales, that one product reads."""
        if self.packed is not None and self.bits:
            return self.packed.nbytes
        element = self.weight if self.packed is None else self.packed
        return self.in_features * self.out_features * element.element_size()

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + bias."""
        return self.project(x, self.bias)

    def project(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x W^T, with a bias or, where the next operator fuses it, without."""
        if self.watch is not None:
            self.watch(x)
        if self.packed is None:
            return product(x, self.weight, bias)
        if self.bits:
            return linear_quantized(x, self.packed, bias, self.out_features, self.bits)
        return linear(x, self.packed, bias, self.out_features)
