"""ggml's blocks of 32 or 256 weights with their scales, unpacked.

Layouts and arithmetic are those of ggml's reference (ggml-quants.c), so that every value comes out with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmcli.ops.registry import define

CHUNK = 3 << 13  # weights that the fallback unpacks at a time: in the cache


def blocks(data: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """Whole blocks of one of KINDS, uint8 (bytes,) → their weights, rounded to dtype, (weights,).

    Raises ValueError for bytes that are no whole blocks.
    """
    size = KINDS[kind][0]
    if data.dtype != torch.uint8 or data.dim() != 1 or len(data) % size:
        raise ValueError(f"blocks: expected bytes in one dimension, a multiple of {size}, got {tuple(data.shape)}")
    return _blocks(data, [*KINDS].index(kind), dtype)  # type: ignore[no-any-return]


def _fallback(data: Tensor, kind: int, dtype: torch.dtype) -> Tensor:
    size, weights, unpack = [*KINDS.values()][kind]
    result = torch.empty(len(data) // size * weights, dtype=dtype, device=data.device)
    parts, rows = result.view(-1, weights), CHUNK // weights
    for part, some in zip(parts.split(rows), data.view(-1, size).split(rows), strict=True):
        part.copy_(unpack(some))
    return result


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


# Bytes and weights of a block, and (n, bytes) uint8 → (n, weights) float32; in the kernel's order.
KINDS: dict[str, tuple[int, int, Callable[[Tensor], Tensor]]] = {
    "Q4_0": (18, 32, _q4_0),
    "Q4_1": (20, 32, _q4_1),
    "Q5_0": (22, 32, _q5_0),
    "Q5_1": (24, 32, _q5_1),
    "Q8_0": (34, 32, _q8_0),
    "Q4_K": (144, 256, _q4_k),
    "Q5_K": (176, 256, _q5_k),
    "Q6_K": (210, 256, _q6_k),
}
_blocks = define(
    "blocks(Tensor data, int kind, ScalarType dtype) -> Tensor",
    _fallback,
    fake=lambda data, kind, dtype: data.new_empty(
        data.shape[0] // [*KINDS.values()][kind][0] * [*KINDS.values()][kind][1], dtype=dtype
    ),
    devices=("cpu",),
)
