"""A matrix brought to 8 or 4 bits: groups of inputs that share a scale, and the least squared error within each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcli.ops.linear_quantized import GROUPS
from llmcli.ops.registry import define

REFITS = {8: 0, 4: 2}  # of 8 bits, a better scale gains less than a hundredth of the error
CHUNK = 1 << 18  # weights at a time: what is computed with them stays in the caches


def quantize(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """weight (N,K) → integers, int8 (N,K) or uint8 (N, ceil(K/2)), and scales, bfloat16 (N, ceil(K/group)).

    A weight is close to scale * integer, the integer from -2^(bits-1) to 2^(bits-1) - 1; of 4 bits, two plus 8 share a
    byte, the even one below. The largest element of a group takes the integer furthest from zero; with 4 bits scale and
    integers are then fitted to each other in turn (Lloyd 1982). A group of zeros has the scale 0, one with NaN or
    infinity a scale that is not finite: such a group's integers mean nothing.
    """
    return _quantize(weight, bits)  # type: ignore[no-any-return]


def _fallback(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    parts = [_quantize_rows(part, bits) for part in weight.split(max(1, CHUNK // max(1, weight.shape[1])))]
    return torch.cat([q for q, _ in parts]), torch.cat([scale for _, scale in parts])


def _quantize_rows(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    group, limit, K = GROUPS[bits], 1 << bits - 1, weight.shape[1]
    x = F.pad(weight.float(), (0, -K % group)).unflatten(1, (-1, group))  # (rows, groups, group)
    low, high = x.amin(2, keepdim=True), x.amax(2, keepdim=True)
    first = (torch.where(-low > high, low, high) / -limit).bfloat16().float()
    usable = first.isfinite() & (first != 0)
    scale, x = torch.where(usable, first, 1.0), torch.where(usable, x, 1.0)
    q = round_within(x, scale, limit)
    for _ in range(REFITS[bits]):
        wide = q.double()
        scale = ((x * wide).sum(2, keepdim=True) / (wide * wide).sum(2, keepdim=True)).float().bfloat16().float()
        q = round_within(x, scale, limit)
    q = torch.where(usable, q, 0.0).flatten(1)[:, :K]
    scale = torch.where(usable, scale, first)[..., 0].bfloat16()
    return pack_integers(q, bits), scale


def pack_integers(q: Tensor, bits: int) -> Tensor:
    """Whole numbers (N,K) as `quantize` gives them: int8 (N,K), or uint8 (N, ceil(K/2)) of two plus 8 to a byte."""
    if bits == 8:
        return q.to(torch.int8)
    u: Tensor = F.pad(q + 8, (0, q.shape[1] % 2), value=8).to(torch.uint8).unflatten(1, (-1, 2))
    return u[..., 0] | u[..., 1] << 4


def round_within(x: Tensor, scale: Tensor, limit: int) -> Tensor:
    """x / scale to the nearest whole number from -limit to limit - 1."""
    whole: Tensor = (x / scale).round_().clamp_(-limit, limit - 1)
    return whole


def _fake(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    N, K = weight.shape
    q = (
        weight.new_empty((N, K), dtype=torch.int8)
        if bits == 8
        else weight.new_empty((N, -(-K // 2)), dtype=torch.uint8)
    )
    return q, weight.new_empty((N, -(-K // GROUPS[bits])), dtype=torch.bfloat16)


_quantize = define("quantize(Tensor weight, int bits) -> (Tensor, Tensor)", _fallback, fake=_fake, devices=("cpu",))
