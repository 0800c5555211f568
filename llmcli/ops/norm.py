"""Layer norm and RMS norm, with or without the residual add (interim: the torch fallback only, final signatures)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """Layer norm over the last dimension: x (..., C), weight and bias (C,) → (..., C)."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    """RMS norm over the last dimension: x (..., C), weight (C,) → (..., C)."""
    return F.rms_norm(x, weight.shape, weight, eps)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """(layer_norm(x + residual), x + residual) in one pass over memory."""
    total = x + residual
    return layer_norm(total, weight, bias, eps=eps), total


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, *, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual) in one pass over memory."""
    total = x + residual
    return rms_norm(total, weight, eps=eps), total
