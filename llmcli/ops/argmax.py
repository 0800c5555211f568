"""The highest number of each row and where it stands: greedy choice."""

from __future__ import annotations

import torch
from torch import Tensor

from llmcli.ops.registry import define


def argmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., V) → index of the highest, (...) int64, and the highest itself, (...) in float32 or wider.

    Of equals the first; NaN is higher than all. No gradient is recorded. Raises ValueError for rows without a number.
    """
    if x.shape[-1] == 0:
        raise ValueError(f"argmax: expected rows of at least one number, got {tuple(x.shape)}")
    return _argmax(x)  # type: ignore[no-any-return]


def _fallback(x: Tensor) -> tuple[Tensor, Tensor]:
    highest, index = x.max(-1)
    return index, highest.to(torch.promote_types(x.dtype, torch.float32))


def _fake(x: Tensor) -> tuple[Tensor, Tensor]:
    sizes = x.shape[:-1]
    return x.new_empty(sizes, dtype=torch.int64), x.new_empty(sizes, dtype=torch.float32)


_argmax = define("argmax(Tensor x) -> (Tensor, Tensor)", _fallback, fake=_fake)
