"""ggml's number formats: blocks of 32 weights with their scales, made of floating-point numbers.

Each row of a matrix is a whole number of blocks. Layouts and arithmetic are those of ggml's reference
(ggml-quants.c), so that every block has the same bits; `llmcli.ops.blocks` unpacks them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmcli.checkpoints.gguf import SIZES

CHUNK = 3 << 13  # weights that are packed at a time: in the cache, and too few for torch to wake other threads


def write(tensor: Tensor, kind: str) -> Tensor:
    """A tensor of any floating-point type → its blocks, (bytes,) uint8."""
    weights = SIZES[kind].weights
    groups = tensor.reshape(-1, weights).split(CHUNK // weights)
    return torch.cat([PACK[kind](group.float()) for group in groups]).view(-1)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0.0, 1 / scale)


def _to_q8_0(groups: Tensor) -> Tensor:
    scale = groups.abs().amax(1, keepdim=True) / 127
    scaled = groups * _inverse(scale)
    size = scaled.abs().floor()
    rounded = scaled.sign() * (size + (2 * (scaled.abs() - size)).floor())  # halves away from zero
    return torch.cat([scale.half().view(torch.uint8), rounded.to(torch.int8).view(torch.uint8)], 1)


def _to_q4_0(groups: Tensor) -> Tensor:
    scale = groups.gather(1, groups.abs().argmax(1, keepdim=True)) / -8
    q = (groups * _inverse(scale) + 8.5).trunc().to(torch.uint8).clamp(0, 15)
    return torch.cat([scale.half().view(torch.uint8), q[:, :16] | (q[:, 16:] << 4)], 1)


PACK: dict[str, Callable[[Tensor], Tensor]] = {"Q8_0": _to_q8_0, "Q4_0": _to_q4_0}
