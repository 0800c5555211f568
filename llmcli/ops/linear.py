"""Linear layers on weights that were packed once, into the order in which the kernel streams them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcli.ops.registry import define

PANEL = 64


def linear_pack(weight: Tensor) -> Tensor:
    """Pack weight (N,K) for `linear`: panels of 64 rows, [K][64], in bfloat16 [K/2][64][2] → one dimension.

    The layout is the same on every instruction set; only the padding (zeros) depends on N and K.
    """
    return _pack(weight)  # type: ignore[no-any-return]


def linear(x: Tensor, packed: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """x W^T + bias for packed W (N,K): x (..., K), bias (N,) → (..., N); inference only, no gradient.

    Every row has the same bits whatever the number of rows and threads.
    """
    return _linear(x, packed, bias, out_features)  # type: ignore[no-any-return]


def _depth(dtype: torch.dtype) -> int:
    return 2 if dtype == torch.bfloat16 else 1


def _pack_fallback(weight: Tensor) -> Tensor:
    N, K = weight.shape
    depth = _depth(weight.dtype)
    padded = F.pad(weight, (0, -K % depth, 0, -N % PANEL))
    panels = padded.view(padded.shape[0] // PANEL, PANEL, padded.shape[1] // depth, depth)
    return panels.transpose(1, 2).reshape(-1).clone()


def unpack(packed: Tensor, in_features: int, out_features: int) -> Tensor:
    """What `linear_pack` packed, (N,K). Raises RuntimeError where it has another size."""
    depth = _depth(packed.dtype)
    panels, steps = -(-out_features // PANEL), -(-in_features // depth)
    if packed.shape != (panels * PANEL * steps * depth,):
        raise RuntimeError(
            f"linear: packed weights of {packed.numel()} elements do not belong to ({out_features},{in_features})"
        )
    weight = packed.view(panels, steps, PANEL, depth).transpose(1, 2).reshape(panels * PANEL, steps * depth)
    return weight[:out_features, :in_features]


def _linear_fallback(x: Tensor, packed: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    return F.linear(x, unpack(packed, x.shape[-1], out_features), bias)


def _pack_fake(weight: Tensor) -> Tensor:
    N, K = weight.shape
    depth = _depth(weight.dtype)
    return weight.new_empty((N + -N % PANEL) * (K + -K % depth))


_pack = define("linear_pack(Tensor weight) -> Tensor", _pack_fallback, fake=_pack_fake, devices=("cpu",))
_linear = define(
    "linear(Tensor x, Tensor packed, Tensor? bias, int out_features) -> Tensor",
    _linear_fallback,
    fake=lambda x, packed, bias, out_features: x.new_empty((*x.shape[:-1], out_features)),
    devices=("cpu",),
)
