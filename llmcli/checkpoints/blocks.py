"""ggml's number formats: blocks of 32 or 256 weights with their scales, to float32 and back.

Each row of a matrix is a whole number of blocks. Layouts and arithmetic are those of ggml's reference
(ggml-quants.c), so that every value comes out with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmcli.checkpoints.gguf import SIZES

CHUNK = 3 << 13  # weights that are unpacked at a time: in the cache, and too few for torch to wake other threads


def read(data: Tensor, kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The blocks of a whole tensor, (bytes,) uint8 → the tensor, rounded to dtype."""
    unpack, size, weights = UNPACK[kind], SIZES[kind].bytes, SIZES[kind].weights
    result = torch.empty(shape, dtype=dtype)
    parts, rows = result.view(-1, weights), CHUNK // weights
    for part, blocks in zip(parts.split(rows), data.view(-1, size).split(rows), strict=True):
        part.copy_(unpack(blocks))
    return result


def write(tensor: Tensor, kind: str) -> Tensor:
    """A tensor of any floating-point type → its blocks, (bytes,) uint8."""
    weights = SIZES[kind].weights
    groups = tensor.reshape(-1, weights).split(CHUNK // weights)
    return torch.cat([PACK[kind](group.float()) for group in groups]).view(-1)


def _half(blocks: Tensor, begin: int) -> Tensor:
    """A float16 at a byte of each block, (n, 1) float32."""
    return blocks[:, begin : begin + 2].contiguous().view(torch.float16).float()


def _fields(packed: Tensor, bits: int) -> Tensor:
    """Bytes (n, m, k) → their fields of so many bits, lowest first, (n, m * 8 / bits, k)."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)[:, None]
    return ((packed.unsqueeze(2) >> shifts) & ((1 << bits) - 1)).flatten(1, 2)


def _nibbles(blocks: Tensor) -> Tensor:
    """The low halves of the last 16 bytes, then the high ones: (n, 32)."""
    return _fields(blocks[:, None, -16:], 4).flatten(1)


def _fifth_bits(blocks: Tensor, begin: int) -> Tensor:
    """The bits of four bytes, each worth 16: (n, 32)."""
    bits = blocks[:, begin : begin + 4, None] >> torch.arange(8, dtype=torch.uint8)
    return (bits.flatten(1) & 1) << 4


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _nibbles(blocks).float() + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * ((_nibbles(blocks) | _fifth_bits(blocks, 2)).float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks) | _fifth_bits(blocks, 4)).float() + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8) * _half(blocks, 0)


def _scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and offset of the eight groups of a Q4_K or Q5_K block, each (n, 8, 1): six bits each, times a float16."""
    low, offset, rest = blocks[:, 4:16].view(-1, 3, 4).unbind(1)
    scale = torch.cat([low & 63, (rest & 15) | ((low >> 2) & 48)], 1)
    offset = torch.cat([offset & 63, (rest >> 4) | ((offset >> 2) & 48)], 1)
    return (_half(blocks, 0) * scale.float())[..., None], (_half(blocks, 2) * offset.float())[..., None]


def _q4_k(blocks: Tensor) -> Tensor:
    scale, offset = _scales(blocks)
    return (scale * _fields(blocks[:, 16:].view(-1, 4, 32), 4).float() - offset).flatten(1)


def _q5_k(blocks: Tensor) -> Tensor:
    scale, offset = _scales(blocks)
    high = _fields(blocks[:, None, 16:48], 1) << 4
    return (scale * (_fields(blocks[:, 48:].view(-1, 4, 32), 4) | high).float() - offset).flatten(1)


def _q6_k(blocks: Tensor) -> Tensor:
    low = _fields(blocks[:, :128].view(-1, 2, 64), 4).view(-1, 8, 32)
    high = _fields(blocks[:, 128:192].view(-1, 2, 32), 2) << 4
    scale = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()
    return (scale[..., None] * ((low | high).float() - 32).view(-1, 16, 16)).flatten(1)


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


UNPACK: dict[str, Callable[[Tensor], Tensor]] = {  # (n, bytes) uint8 → (n, weights) float32
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
PACK: dict[str, Callable[[Tensor], Tensor]] = {"Q8_0": _to_q8_0, "Q4_0": _to_q4_0}
