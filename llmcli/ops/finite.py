"""Whether numbers are finite, at the speed of memory: what weights are asked before a model runs on them."""

from __future__ import annotations

import torch
from torch import Tensor

from llmcli.ops.registry import define


def finite(x: Tensor) -> Tensor:
    """Whether x holds neither NaN nor infinity: x (...) → bool ()."""
    return _finite(x)  # type: ignore[no-any-return]


def _fallback(x: Tensor) -> Tensor:
    return torch.isfinite(x).all()


_finite = define(
    "finite(Tensor x) -> Tensor", _fallback, fake=lambda x: x.new_empty((), dtype=torch.bool), devices=("cpu",)
)
