"""The vocabulary projection and the likeliest token in one, of which most may be left out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcli.ops.argmax import argmax
from llmcli.ops.linear import PANEL, linear, unpack
from llmcli.ops.linear_quantized import GROUPS, SMALLEST_GROUP, linear_quantized_pack, packed_bytes
from llmcli.ops.registry import define

ROWS = 48  # of x, which are multiplied together


def linear_screen(packed: Tensor, in_features: int, out_features: int) -> tuple[Tensor, Tensor]:
    """What tells `linear_argmax` which rows of W (V,C) may be the likeliest: packed is `linear_pack` of W.

    → a copy W' of 8 bits as `linear_quantized` takes it, and float32 (2, V rounded up to panels): the norms |w - w'|
    and |w'| of each row, rounded up. C must be above 4.
    """
    return _linear_screen(packed, in_features, out_features)  # type: ignore[no-any-return]


def linear_argmax(
    x: Tensor, packed: Tensor, screen: tuple[Tensor, Tensor], out_features: int, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The highest of x W^T among its first `limit` columns: x (N,C), W (V,C) → where it stands, (N) int64, and itself.

    packed is `linear_pack` of W, screen its `linear_screen`. The same as `argmax` of what `linear` gives, to the bit,
    ties and NaN included. But every logit is first bounded by |w - w'| |x| + |w'| |x - x'| (Cauchy and Schwarz) and the
    rounding of its sum, x' being x in 8 bits, and only the panels of 64 rows of W that may hold a row's highest are
    multiplied, for 48 rows of x at a time; the third result, (1) int64, tells how many. Logits are never written.
    Inference only; the same bits for any company and number of threads. Raises RuntimeError where shapes do not fit.
    """
    return _linear_argmax(x, packed, *screen, out_features, limit)  # type: ignore[no-any-return]


def _screen_fallback(packed: Tensor, in_features: int, out_features: int) -> tuple[Tensor, Tensor]:
    if in_features <= 4:
        raise RuntimeError(f"linear_screen: expected more than 4 inputs, got {in_features}")
    weight = unpack(packed, in_features, out_features)
    groups = F.pad(weight, (0, -in_features % GROUPS[8])).unflatten(1, (-1, GROUPS[8]))
    narrow, groups = groups.float(), groups.to(torch.promote_types(packed.dtype, torch.float32))
    top = narrow.abs().amax(2, keepdim=True) * torch.tensor(1 / 127)
    usable = (top > SMALLEST_GROUP) & (top < 1e30)  # of others all is error
    scale = torch.where(usable, top, 0.0).bfloat16()
    integers = torch.where(usable, (narrow * (1 / scale.float())).round().clamp(-127, 127), 0.0)
    near = (integers.to(groups.dtype) * scale).flatten(1)
    errors = torch.stack([(groups.flatten(1) - near).norm(dim=1), near.norm(dim=1)])
    above = 1 + (in_features + 16) * 2.0**-24
    errors = F.pad(errors * above, (0, -out_features % PANEL))
    whole = integers.flatten(1)[:, :in_features].to(torch.int8)
    return linear_quantized_pack(whole, scale[..., 0], in_features), errors


def _argmax_fallback(
    x: Tensor, packed: Tensor, copy: Tensor, errors: Tensor, out_features: int, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    index, highest = argmax(linear(x, packed, None, out_features)[:, :limit])
    return index, highest, torch.tensor([-(-limit // PANEL) * -(-len(x) // ROWS)])


_linear_screen = define(
    "linear_screen(Tensor packed, int in_features, int out_features) -> (Tensor, Tensor)",
    _screen_fallback,
    fake=lambda packed, in_features, out_features: (
        packed.new_empty(packed_bytes(in_features, out_features, 8), dtype=torch.uint8),
        packed.new_empty((2, -(-out_features // PANEL) * PANEL), dtype=torch.float32),
    ),
    devices=("cpu",),
)
_linear_argmax = define(
    "linear_argmax(Tensor x, Tensor packed, Tensor copy, Tensor errors, int out_features, int limit)"
    " -> (Tensor, Tensor, Tensor)",
    _argmax_fallback,
    fake=lambda x, packed, copy, errors, out_features, limit: (
        x.new_empty(len(x), dtype=torch.int64),
        x.new_empty(len(x), dtype=torch.float32),
        x.new_empty(1, dtype=torch.int64),
    ),
    devices=("cpu",),
)
