"""Linear layers on weights of 8 or 4 bits, whose inputs are brought to 8 bits row by row."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcli.ops.linear import linear
from llmcli.ops.registry import define

PANEL = 64
GROUPS = {8: 128, 4: 32}  # inputs that share a scale
BLOCK = 32  # the same of ggml's blocks
SMALLEST_GROUP = 1e-30


def linear_quantized_pack(weight: Tensor, scale: Tensor, in_features: int) -> Tensor:
    """Pack quantised weights (N,K) for `linear_quantized` → uint8, one dimension.

    weight is int8 (N,K), or uint8 (N, ceil(K/2)) with two weights plus 8 to a byte, the even one below; scale is
    bfloat16 (N, ceil(K/group)), a group being 128 inputs of int8 or 32 of int4. Panels of 64 rows; in a panel, group
    by group, 64 scales, then [K/4][64][4] bytes of weight + 128, or [K/8][64][4] bytes of which each holds the weights
    of inputs 8 s + j (below) and 8 s + 4 + j. K is padded to a multiple of 4 (int8) or 8 (int4).
    """
    return _pack(weight, scale, in_features)  # type: ignore[no-any-return]


def linear_quantized(x: Tensor, packed: Tensor, bias: Tensor | None, out_features: int, bits: int) -> Tensor:
    """x W^T + bias for packed W (N,K) of `bits` 8 or 4: x (..., K), bias (N,) → (..., N); inference only.

    packed is from `linear_quantized_pack`, uint8, or from `linear_blocks_pack`, int8, whose groups are 32 inputs.
    Each group of a row of x is rounded to 8 bits on the scale of its largest element. Sums within a group are exact;
    groups are added in order, in float32. So a row has the same bits whatever the number of rows and threads, and on
    every instruction set. NaN or infinity in a row makes all its outputs NaN.
    """
    return _linear(x, packed, bias, out_features, bits)  # type: ignore[no-any-return]


def linear_packed(x: Tensor, packed: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """`linear` or `linear_quantized`, as the packed weight tells by its dtype and size."""
    if packed.is_floating_point():
        return linear(x, packed, bias, out_features)
    return linear_quantized(x, packed, bias, out_features, packed_bits(packed, x.shape[-1], out_features))


def packed_bits(packed: Tensor, in_features: int, out_features: int) -> int:
    """The bits of packed weights that are no floating-point numbers."""
    eight = packed_bytes(in_features, out_features, 8, blocks=packed.dtype == torch.int8)
    return 8 if packed.numel() == eight else 4


def packed_bytes(in_features: int, out_features: int, bits: int, *, blocks: bool = False) -> int:
    """Size of the packed weights."""
    return -(-out_features // PANEL) * _panel_bytes(in_features, bits, blocks)


def _padded(in_features: int, bits: int) -> int:
    unit = 32 // bits
    return -(-in_features // unit) * unit


def _panel_bytes(in_features: int, bits: int, blocks: bool) -> int:
    groups = -(-in_features // _group(bits, blocks))
    return PANEL * (2 * groups + _padded(in_features, bits) * bits // 8)


def _group(bits: int, blocks: bool) -> int:
    return BLOCK if blocks else GROUPS[bits]


def _bits(weight: Tensor) -> int:
    return 8 if weight.dtype == torch.int8 else 4


def _unpack_nibbles(weight: Tensor) -> Tensor:
    """Two to a byte, the first below → one to a byte."""
    return torch.stack([weight & 15, weight >> 4], -1).flatten(-2)


def _pack_fallback(weight: Tensor, scale: Tensor, in_features: int) -> Tensor:
    bits = _bits(weight)
    u = (weight.int() + 128).to(torch.uint8) if bits == 8 else _unpack_nibbles(weight)[:, :in_features]
    return panels(u, scale, bits, GROUPS[bits])


def panels(u: Tensor, scale: Tensor, bits: int, group: int) -> Tensor:
    """The layout of `linear_quantized_pack` from unsigned weights (N,K), one to a byte, and scales of 16 bits."""
    in_features, count = u.shape[1], -(-len(u) // PANEL)
    rows = count * PANEL - len(u)
    u = F.pad(u, (0, _padded(in_features, bits) - in_features, 0, rows), value=1 << bits - 1)
    scales = F.pad(scale, (0, 0, 0, rows)).unflatten(0, (count, PANEL))
    parts = []
    for g, columns in enumerate(u.unflatten(0, (count, PANEL)).split(group, 2) if in_features else ()):
        quads = columns.unflatten(2, (-1, 4)).transpose(1, 2)  # (panels, steps, 64, 4)
        quads = quads if bits == 8 else quads[:, ::2] | quads[:, 1::2] << 4
        parts += [scales[:, :, g].contiguous().view(torch.uint8), quads.flatten(1)]
    return torch.cat(parts, 1).flatten() if parts else u.new_empty(0)


def _unpack(packed: Tensor, in_features: int, out_features: int, bits: int) -> list[tuple[Tensor, Tensor]]:
    """Weights (N, up to group) and scales (N,) of each group, in float32."""
    blocks, offset = packed.dtype == torch.int8, 1 << bits - 1
    count, kind = -(-out_features // PANEL), torch.float16 if blocks else torch.bfloat16
    padded, group, parts = _padded(in_features, bits), _group(bits, blocks), []
    rest = packed.view(torch.uint8).view(count, _panel_bytes(in_features, bits, blocks))
    for k in range(0, padded, group):
        size = min(group, padded - k) * PANEL * bits // 8
        scales, quads = rest[:, : 2 * PANEL].contiguous(), rest[:, 2 * PANEL : 2 * PANEL + size]
        rest = rest[:, 2 * PANEL + size :]
        u = quads.reshape(count, size // (4 * PANEL), PANEL, 4)
        u = u if bits == 8 else torch.stack([u & 15, u >> 4], 2).flatten(1, 2)
        weight = u.transpose(1, 2).flatten(2).flatten(0, 1).float() - offset
        parts.append((weight[:out_features], scales.view(kind).float().flatten()[:out_features]))
    return parts


def _quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """A group of each row, (M, k) float32 → whole numbers in float32, and scales (M, 1)."""
    largest = x.abs().amax(1, keepdim=True)
    finite = largest.isfinite()
    used = finite & (largest >= SMALLEST_GROUP)
    top = torch.full_like(largest, 127.0)  # a number over a tensor would be a product with its reciprocal
    q = torch.round(x * torch.where(used, top / largest, 0.0)).nan_to_num(0.0, 0.0, 0.0)
    return q, torch.where(used, largest / top, torch.where(finite, 0.0, torch.nan))


def _linear_fallback(x: Tensor, packed: Tensor, bias: Tensor | None, out_features: int, bits: int) -> Tensor:
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1]).float()
    y = rows.new_zeros(len(rows), out_features)
    groups = _unpack(packed, x.shape[-1], out_features, bits)
    for part, (weight, scale) in zip(rows.split(_group(bits, packed.dtype == torch.int8), 1), groups, strict=False):
        q, s = _quantize_rows(part)
        # Whole numbers below 2^24: the product is exact in float32, in any order.
        y = y + (q @ weight[:, : part.shape[1]].T) * (s * scale)
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype).view(*x.shape[:-1], out_features)


_pack = define(
    "linear_quantized_pack(Tensor weight, Tensor scale, int in_features) -> Tensor",
    _pack_fallback,
    fake=lambda weight, scale, in_features: weight.new_empty(
        -(-weight.shape[0] // PANEL) * _panel_bytes(in_features, _bits(weight), False), dtype=torch.uint8
    ),
)
_linear = define(
    "linear_quantized(Tensor x, Tensor packed, Tensor? bias, int out_features, int bits) -> Tensor",
    _linear_fallback,
    fake=lambda x, packed, bias, out_features, bits: x.new_empty((*x.shape[:-1], out_features)),
)
