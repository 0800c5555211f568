"""GELU and SiLU-gate with bias (interim: the torch fallback only, final signatures)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def gelu(x: Tensor, bias: Tensor | None = None, *, approximate: str = "none") -> Tensor:
    """GELU of x + bias: x (..., C), bias (C,) → (..., C); approximate is "none" (erf) or "tanh"."""
    return F.gelu(x if bias is None else x + bias, approximate=approximate)


def silu_gate(gate: Tensor, up: Tensor, gate_bias: Tensor | None = None, up_bias: Tensor | None = None) -> Tensor:
    """silu(gate + gate_bias) * (up + up_bias): gate and up (..., C), biases (C,) → (..., C)."""
    gate = gate if gate_bias is None else gate + gate_bias
    up = up if up_bias is None else up + up_bias
    return F.silu(gate) * up
