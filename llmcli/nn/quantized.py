"""How a matrix is brought to 8 or 4 bits: groups of inputs that share a scale, and the least squared error within each.

The integers and scales here are what a quantised checkpoint holds; `ops.linear_quantized` computes with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcli.errors import ModelError
from llmcli.ops.linear_quantized import GROUPS

FORMATS = {"int8": 8, "int4": 4}
KEY, LEAVES = "quantization_config", ("qweight", "scales")  # in config.json, and in place of "weight"
REFITS = {8: 0, 4: 2}  # of 8 bits, a better scale gains less than a hundredth of the error
CHUNK = 1 << 18  # weights at a time: what is computed with them stays in the caches


def quantize(weight: Tensor, bits: int, name: str) -> tuple[Tensor, Tensor]:
    """weight (N,K) → integers, int8 (N,K) or uint8 (N, ceil(K/2)), and scales, bfloat16 (N, ceil(K/group)).

    A weight is close to scale * integer, the integer from -2^(bits-1) to 2^(bits-1) - 1; of 4 bits, two plus 8 share a
    byte, the even one below. The largest element of a group takes the integer furthest from zero; with 4 bits scale and
    integers are then fitted to each other in turn (Lloyd 1982). `name` is the tensor's, for errors: raises ModelError
    for NaN, infinity, and a group of zeros, which has no scale.
    """
    rows = max(1, CHUNK // max(1, weight.shape[1]))
    parts = [_quantize_rows(part, bits, name, i * rows) for i, part in enumerate(weight.split(rows))]
    return torch.cat([q for q, _ in parts]), torch.cat([scale for _, scale in parts])


def dequantize(q: Tensor, scale: Tensor, in_features: int) -> Tensor:
    """The float32 weights (N,K) that integers and scales stand for."""
    if q.dtype == torch.int8:
        values, group = q.float(), GROUPS[8]
    else:
        values, group = torch.stack([q & 15, q >> 4], -1).flatten(1)[:, :in_features].float() - 8, GROUPS[4]
    return values * scale.float().repeat_interleave(group, 1)[:, :in_features]


def shapes(N: int, K: int, dtype: torch.dtype) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of the integers of a matrix (N,K), int8 or else uint8, and of its scales."""
    bits = 8 if dtype == torch.int8 else 4
    return (N, -(-K * bits // 8)), (N, -(-K // GROUPS[bits]))


def describe(kind: str) -> dict[str, Any]:
    """What config.json says of a model that was quantised to this kind."""
    return {"quant_method": "llmcli", "version": 1, "format": kind, "group_size": GROUPS[FORMATS[kind]]}


def described(config: Mapping[str, Any]) -> str | None:
    """The kind that `describe` put into a config.json; None where there is none, or another tool's."""
    return next((kind for kind in FORMATS if config.get(KEY) == describe(kind)), None)


def _quantize_rows(weight: Tensor, bits: int, name: str, first: int) -> tuple[Tensor, Tensor]:
    group, limit, K = GROUPS[bits], 1 << bits - 1, weight.shape[1]
    x = F.pad(weight.detach().float(), (0, -K % group)).unflatten(1, (-1, group))  # (rows, groups, group)
    low, high = x.amin(2, keepdim=True), x.amax(2, keepdim=True)
    scale = (torch.where(-low > high, low, high) / -limit).bfloat16().float()
    bad = ~scale.isfinite() | (scale == 0)
    if bad.any():
        row, g = bad[..., 0].nonzero()[0].tolist()
        inputs = f"inputs {g * group} to {min(K, (g + 1) * group) - 1} of output {first + row}"
        if scale[row, g] == 0:
            raise ModelError(f"{name}: expected weights to quantise, got only zeros at {inputs}; keep it in 16 bits")
        raise ModelError(f"{name}: expected finite weights, got NaN or infinity at {inputs}; fetch it again")
    q = _round(x, scale, limit)
    for _ in range(REFITS[bits]):
        scale = ((x * q).sum(2, keepdim=True) / (q * q).sum(2, keepdim=True)).bfloat16().float()
        q = _round(x, scale, limit)
    q = q.flatten(1)[:, :K]
    if bits == 4:
        u = F.pad(q + 8, (0, K % 2), value=8).to(torch.uint8).unflatten(1, (-1, 2))
        return u[..., 0] | u[..., 1] << 4, scale[..., 0].bfloat16()
    return q.to(torch.int8), scale[..., 0].bfloat16()


def _round(x: Tensor, scale: Tensor, limit: int) -> Tensor:
    return (x / scale).round_().clamp_(-limit, limit - 1)
