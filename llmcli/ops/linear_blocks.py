"""ggml's blocks packed for `linear_quantized`, number for number."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from llmcli.ops.blocks import KINDS, _nibbles
from llmcli.ops.linear_quantized import BLOCK, PANEL, packed_bytes, panels
from llmcli.ops.registry import define

BITS = {"Q8_0": 8, "Q4_0": 4}


def linear_blocks_pack(data: Tensor, rows: Tensor, kind: str, in_features: int) -> Tensor:
    """Pack a weight (N,K) whose rows are blocks of one of BITS for `linear_quantized` → int8, one dimension.

    data is uint8 (bytes,), rows int64 (N,): the byte at which each row of K weights begins. The layout is that of
    `linear_quantized_pack` with groups of 32 and their float16 scales. Raises RuntimeError for a row outside of data.
    """
    return _pack(data, rows, BITS[kind], in_features)  # type: ignore[no-any-return]


def scales(packed: Tensor, bits: int) -> Iterator[Tensor]:
    """The float16 scales of packed weights, some groups of 64 columns at a time: (up to 128, 64).

    So few that torch wakes no other threads for them.
    """
    groups = packed.view(-1, PANEL * (2 + 4 * bits))[:, : 2 * PANEL]
    return (part.contiguous().view(torch.float16) for part in groups.split(128))


def _fallback(data: Tensor, rows: Tensor, bits: int, in_features: int) -> Tensor:
    size = KINDS[next(kind for kind, own in BITS.items() if own == bits)][0]
    length = in_features // BLOCK * size
    for wrong in rows[(rows < 0) | (rows > len(data) - length)].tolist():
        raise RuntimeError(f"linear_blocks_pack: a row begins at {wrong} of {len(data)} bytes")
    blocks = data[rows[:, None] + torch.arange(length)].view(-1, size)
    u = blocks[:, 2:] ^ 128 if bits == 8 else _nibbles(blocks)
    scale = blocks[:, :2].contiguous().view(torch.float16)
    shape = len(rows), in_features // BLOCK
    return panels(u.view(len(rows), in_features), scale.view(shape), bits, BLOCK).view(torch.int8)


_pack = define(
    "linear_blocks_pack(Tensor data, Tensor rows, int bits, int in_features) -> Tensor",
    _fallback,
    fake=lambda data, rows, bits, in_features: data.new_empty(
        packed_bytes(in_features, rows.shape[0], bits, blocks=True), dtype=torch.int8
    ),
    devices=("cpu",),
)
