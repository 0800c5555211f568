"""A stack of pre-norm decoder blocks and the head after it as one operator."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from llmcli.ops.activation import gelu, silu_gate
from llmcli.ops.cached_attention import CACHE_DTYPES, cached_attention
from llmcli.ops.linear_quantized import linear_packed
from llmcli.ops.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from llmcli.ops.registry import define
from llmcli.ops.rotary import rotary

ACTIVATIONS = ("gelu", "gelu_tanh", "silu_gate")

# Of one block, in this order; an empty tensor where a model has no such part. Matrices are packed, in any precision;
# `qkv` holds the rows of q, k and v one after the other, `up` of a gated layer those of gate and up; the norms of
# queries and keys are RMS norms of each head.
PARTS = (
    *("norm_1", "norm_1_bias", "qkv", "qkv_bias", "query_norm", "key_norm", "out", "out_bias"),
    *("norm_2", "norm_2_bias", "up", "up_bias", "down", "down_bias"),
)


def decoder(
    x: Tensor,
    update: Tensor,
    cache: Tensor,
    lengths: Sequence[int],
    rows: Sequence[int],
    parts: Sequence[Tensor],
    places: Sequence[Tensor],
    sizes: Sequence[int],
    constants: Sequence[float],
) -> Tensor:
    """Logits (n,V) of the n `rows` b * T + t of x + update, x and update (B,T,C); inference only.

    Row b's T new keys and values go into the cache, uint8 (layers,B,G,blocks,bytes) as `cached_attention` takes each
    layer's, from position lengths[b] on. parts: PARTS of each block, then weight and bias of the last norm, then the
    packed head, or an empty tensor for what it would read, (n,C). places: none, cos and sin as `rotary` takes them, or
    a bias of the scores that broadcasts to (B,H,T,S). sizes: heads, inner width, V, position in ACTIVATIONS, 1 for RMS
    norm or 0 for layer norm, D, position in CACHE_DTYPES, 1 where q, k, v of each head lie together in `qkv`, 1 where
    attention and MLP read norms of the same stream. constants: eps, then each block's scale of attention scores.
    Every row has the bits that the operators give it one by one, whatever its company and the number of threads.
    """
    return _decoder(x, update, cache, lengths, rows, parts, places, sizes, constants)  # type: ignore[no-any-return]


def _fallback(
    x: Tensor,
    update: Tensor,
    cache: Tensor,
    lengths: Sequence[int],
    rows: Sequence[int],
    parts: Sequence[Tensor],
    places: Sequence[Tensor],
    sizes: Sequence[int],
    constants: Sequence[float],
) -> Tensor:
    heads, inner, V, activation, rms, D, kind, interleaved, parallel = sizes
    eps, *scales = constants
    (B, T, C), G = x.shape, cache.shape[2]

    def norm(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        if rms:
            return add_rms_norm(update, x, weight, eps=eps)
        return add_layer_norm(update, x, weight, _present(bias), eps=eps)

    def norm_alone(weight: Tensor, bias: Tensor) -> Tensor:
        return rms_norm(x, weight, eps=eps) if rms else layer_norm(x, weight, _present(bias), eps=eps)

    def activate(hidden: Tensor, bias: Tensor | None) -> Tensor:
        if ACTIVATIONS[activation] == "silu_gate":
            return silu_gate(*hidden.chunk(2, -1))
        return gelu(hidden, bias, approximate="tanh" if ACTIVATIONS[activation] == "gelu_tanh" else "none")

    for layer, scale in enumerate(scales):
        block = dict(zip(PARTS, parts[layer * len(PARTS) :], strict=False))
        normed, x = norm(block["norm_1"], block["norm_1_bias"])
        qkv = linear_packed(normed, block["qkv"], _present(block["qkv_bias"]), (heads + 2 * G) * D)
        if interleaved:
            q, k, v = qkv.view(B, T, heads, 3, D).unbind(3)
        else:
            q, k, v = qkv.view(B, T, heads + 2 * G, D).split([heads, G, G], 2)
        if block["query_norm"].numel():
            q, k = rms_norm(q, block["query_norm"], eps=eps), rms_norm(k, block["key_norm"], eps=eps)
        if len(places) == 2:
            q, k = rotary(q, *places), rotary(k, *places)
        bias = places[0] if len(places) == 1 else None
        mixed = cached_attention(q, k, v, cache[layer], lengths, bias=bias, dtype=CACHE_DTYPES[kind], scale=scale)
        update = linear_packed(mixed.view(B, T, heads * D), block["out"], _present(block["out_bias"]), C)
        attended = update
        if parallel:
            normed = norm_alone(block["norm_2"], block["norm_2_bias"])
        else:
            normed, x = norm(block["norm_2"], block["norm_2_bias"])
        hidden = linear_packed(
            normed, block["up"], None, 2 * inner if ACTIVATIONS[activation] == "silu_gate" else inner
        )
        update = linear_packed(
            activate(hidden, _present(block["up_bias"])), block["down"], _present(block["down_bias"]), C
        )
        update = attended + update if parallel else update
    x, update = x.view(B * T, C)[rows], update.view(B * T, C)[rows]
    normed = norm(parts[-3], parts[-2])[0]
    return linear_packed(normed, parts[-1], None, V) if parts[-1].numel() else normed


def _present(part: Tensor) -> Tensor | None:
    return part if part.numel() else None


_decoder = define(
    "decoder(Tensor x, Tensor update, Tensor(a!) cache, int[] lengths, int[] rows, Tensor[] parts, Tensor[] places,"
    " int[] sizes, float[] constants) -> Tensor",
    _fallback,
    fake=lambda x, update, cache, lengths, rows, parts, places, sizes, constants: x.new_empty(
        (len(rows), sizes[2] if parts[-1].numel() else x.shape[-1])
    ),
    devices=("cpu",),
)
