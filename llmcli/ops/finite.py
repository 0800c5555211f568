"""Whether numbers are finite, at the speed of memory: what weights are asked before a model runs on them."""

from __future__ import annotations

import torch
from torch import Tensor

from llmcli.ops.registry import define


def finite(x: Tensor) -> Tensor:
    """Whether x holds neither NaN nor infinity: x (...) → bool ()."""
    # A transposed matrix is read as it lies, where the kernel would copy it first.
    return _finite(x.t() if x.dim() == 2 and not x.is_contiguous() else x)  # type: ignore[no-any-return]


def _fallback(x: Tensor) -> Tensor:
    return torch.isfinite(x).all()


_finite = define(
    "finite(Tensor x) -> Tensor", _fallback, fake=lambda x: x.new_empty((), dtype=torch.bool), devices=("cpu",)
)
