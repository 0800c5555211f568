"""Integers and scales, as a quantised checkpoint holds them in place of a matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from llmcli import ops
from llmcli.errors import ModelError
from llmcli.ops.linear_quantized import GROUPS

FORMATS = {"int8": 8, "int4": 4}
KEY, LEAVES = "quantization_config", ("qweight", "scales")  # in config.json, and in place of "weight"
PIECE = 8 << 20  # bytes of a mapped file in memory at a time

Release = Callable[[], None] | None


def pieces(x: Tensor, release: Release) -> Iterator[Tensor]:
    """The rows of x, some at a time with `release` after each; all at once where that does not help."""
    if release is None or x.nbytes <= PIECE or not x.is_contiguous():
        yield x
        return
    for part in x.split(max(1, PIECE * len(x) // x.nbytes)):
        yield part
        release()


def quantize(weight: Tensor, bits: int, name: str, release: Release = None) -> tuple[Tensor, Tensor]:
    """weight (N,K) → integers and scales, as `ops.quantize` gives them.

    release lets go of a file's pages, now and then while a large matrix is read.
    `name` is the tensor's, for errors: raises ModelError for NaN, infinity, and a group of zeros, which has no scale.
    """
    kind = torch.int8 if bits == 8 else torch.uint8
    size, groups = shapes(len(weight), weight.shape[1], kind)
    q = torch.empty(size, dtype=kind, device=weight.device)
    scale = torch.empty(groups, dtype=torch.bfloat16, device=weight.device)
    begin = 0
    for part in pieces(weight.detach(), release):
        rows = slice(begin, begin := begin + len(part))
        q[rows], scale[rows] = ops.quantize(part, bits)
    bad = ~scale.isfinite() | (scale == 0)
    if bad.any():
        row, g = bad.nonzero()[0].tolist()
        last = min(weight.shape[1], (g + 1) * GROUPS[bits]) - 1
        inputs = f"inputs {g * GROUPS[bits]} to {last} of output {row}"
        if scale[row, g] == 0:
            raise ModelError(f"{name}: expected weights to quantise, got only zeros at {inputs}; keep it in 16 bits")
        raise ModelError(f"{name}: expected finite weights, got NaN or infinity at {inputs}; fetch it again")
    return q, scale


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
