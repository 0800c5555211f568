"""Causal attention over a cache of keys and values that lie as the kernel reads them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmcli.ops.attention import attention
from llmcli.ops.registry import define

# What a cache can hold, in the kernel's order; the last one only torch's operators serve.
CACHE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float64)
BLOCK, PANEL = 128, 64  # positions of a block, and of a panel of keys (csrc/cpu/attention_cache.h)
SMALLEST = 1e-30  # what is smaller counts as zeros in int8


def cache_bytes(dtype: torch.dtype, head_dim: int) -> int:
    """Bytes of BLOCK keys and values of one head, and of their scales."""
    width = -(-head_dim // 16) * 16
    return 2 * BLOCK * (width * dtype.itemsize + (4 if dtype is torch.int8 else 0))


def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: Tensor,
    lengths: Sequence[int],
    *,
    dtype: torch.dtype,
    scale: float | None = None,
    cap: float | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Attention of q (B,T,H,D) over the keys of a cache and the T new ones before and at each query → (B,T,H,D).

    k and v (B,T,G,D) go into the cache, uint8 (B,G,blocks,cache_bytes) of zeros when new, as `dtype`, row b's from
    position lengths[b] on; int8 has a scale per position and head. bias broadcasts to (B,H,T,S), S the longest row with
    its new keys; scale and cap are those of `attention`. Inference only. A row's bits depend on its query and on what
    the cache holds for it: on one step of T positions or T of one, on threads and company they do not depend, and where
    dtype is q's they are those of `attention`.
    Raises ValueError for a dtype that no cache has.
    """
    if dtype not in CACHE_DTYPES:
        raise ValueError(f"expected a cache of one of {CACHE_DTYPES}; got {dtype}")
    if bias is not None:
        bias = bias[(None,) * (4 - bias.dim())]
    scale = q.shape[3] ** -0.5 if scale is None else scale
    return _cached_attention(q, k, v, cache, lengths, bias, CACHE_DTYPES.index(dtype), scale, cap or 0.0)  # type: ignore[no-any-return]


def _blocks(cache: Tensor, dtype: torch.dtype, head_dim: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Views by block and position of keys and values, D padded to W, and of the scales, (B,blocks,2,128,G)."""
    pair, width = 2 if dtype is torch.bfloat16 else 1, -(-head_dim // 16) * 16
    half = BLOCK * width * dtype.itemsize
    keys = cache[..., :half].view(dtype).unflatten(-1, (BLOCK // PANEL, width // pair, PANEL, pair))
    values = cache[..., half : 2 * half].view(dtype).unflatten(-1, (BLOCK // pair, width, pair))
    scales = cache[..., 2 * half :].view(torch.float32).unflatten(-1, (2, BLOCK)) if dtype is torch.int8 else None
    return (
        keys.permute(0, 2, 3, 5, 1, 4, 6),  # (B,blocks,2,64,G,W/pair,pair)
        values.permute(0, 2, 3, 5, 1, 4),  # (B,blocks,128/pair,pair,G,W)
        None if scales is None else scales.permute(0, 2, 3, 4, 1),
    )


def write(cache: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], dtype: torch.dtype) -> None:
    """Put k and v (B,T,G,D) into a cache (B,G,blocks,bytes), row b's from position lengths[b] on."""
    D = k.shape[3]
    keys, values, scales = _blocks(cache, dtype, D)
    at = torch.tensor(lengths, device=k.device)[:, None] + torch.arange(k.shape[1], device=k.device)
    rows, block, slot = torch.arange(k.shape[0], device=k.device)[:, None], at // BLOCK, at % BLOCK
    for n, x in enumerate((k, v)):
        if scales is not None:
            x, scale = _quantize(x)
            scales[rows, block, n, slot] = scale
        x = torch.nn.functional.pad(x.to(dtype), (0, -D % 16))
        if n == 0:
            keys[rows, block, slot // PANEL, slot % PANEL] = x.unflatten(-1, (-1, keys.shape[-1]))
        else:
            values[rows, block, slot // values.shape[3], slot % values.shape[3]] = x


def read(cache: Tensor, length: int, dtype: torch.dtype, head_dim: int) -> tuple[Tensor, Tensor]:
    """The first `length` keys and values of a cache (B,G,blocks,bytes), each (B,length,G,D); int8 as float32."""
    keys, values, scales = _blocks(cache[:, :, : -(-length // BLOCK)], dtype, head_dim)
    k = keys.flatten(5).flatten(1, 3)[:, :length, :, :head_dim]
    v = values.flatten(1, 3)[:, :length, :, :head_dim]
    if scales is None:
        return k, v
    k_scale, v_scale = (scales[:, :, n].flatten(1, 2)[:, :length, :, None] for n in (0, 1))
    return k * k_scale, v * v_scale


def _quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers up to 127 and one float32 scale for each last dimension; NaN as scale of what is not finite."""
    x = x.float()
    largest = x.abs().amax(-1)
    finite = x.isfinite().all(-1)
    fits = finite & (largest >= SMALLEST)
    top = torch.full_like(largest, 127.0)  # a number over a tensor would be a product with its reciprocal
    inverse = torch.where(fits, top / largest, 0.0)
    q = torch.where(fits[..., None], x * inverse[..., None], 0.0).round()
    return q, torch.where(fits, largest / top, torch.where(finite, 0.0, torch.nan))


def _fallback(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: Tensor,
    lengths: Sequence[int],
    bias: Tensor | None,
    kind: int,
    scale: float,
    cap: float,
) -> Tensor:
    T, dtype = q.shape[1], CACHE_DTYPES[kind]
    write(cache, k, v, lengths, dtype)
    ends = [length + T for length in lengths]
    k, v = read(cache, max(ends, default=0), dtype, q.shape[3])
    wide = torch.promote_types(q.dtype, k.dtype)
    limits = torch.tensor(ends, device=q.device)
    given = {"scale": scale, "cap": cap or None, "causal": True, "bias": bias, "k_lengths": limits}
    return attention(q.to(wide), k.to(wide), v.to(wide), **given).to(q.dtype)  # type: ignore[arg-type]


_cached_attention = define(
    "cached_attention(Tensor q, Tensor k, Tensor v, Tensor(a!) cache, int[] lengths, Tensor? bias, int kind, "
    "float scale, float cap) -> Tensor",
    _fallback,
    fake=lambda q, k, v, cache, lengths, bias, kind, scale, cap: q.new_empty(q.shape),
    devices=("cpu",),
)
