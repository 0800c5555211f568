"""The operators on awkward inputs: what `verify kernels` runs. A new operator is a function here and a row in `CASES`.

A case gives the arguments of the raw operator from a cast, so that the same rounded numbers reach the kernel, torch's
operators in the same dtype, and float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from llmcli.ops import registry
from llmcli.ops.blocks import KINDS
from llmcli.ops.cached_attention import CACHE_DTYPES, cache_bytes, write
from llmcli.ops.linear_quantized import GROUPS
from llmcli.ops.transformer_block import KEPT, NEEDED, WEIGHTS

Cast = Callable[[Tensor], Tensor]
Arguments = tuple[Any, ...]

# Length 1, primes, one off a vector and off four of them, no rows.
ROWS = [(1, 1), (3, 17), (5, 63), (4, 65), (7, 128), (2, 1023), (0, 5)]
# B, T, S, H, G, D: one key, T not S, groups, one off a tile, odd head sizes, the largest head.
HEADS = [(1, 1, 1, 1, 1, 1), (2, 5, 7, 2, 1, 3), (1, 1, 257, 4, 4, 32), (1, 97, 97, 1, 1, 64), (1, 95, 127, 3, 1, 33),
         (1, 5, 140, 2, 1, 256)]  # fmt: skip
# rows, K, N of a linear layer.
MATRICES = [(1, 1, 1), (3, 17, 65), (7, 64, 64), (13, 129, 127), (1, 768, 100), (0, 8, 8)]


def normal(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    """Normal float32 numbers, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size


def softmax(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """Plain, masked with a fully hidden row, additive, logarithmic, and strided rows."""
    for shape in ROWS:
        x = cast(normal(*shape, size=4))
        mask = normal(*shape, seed=1) > 0
        mask[-1:] = False
        for log in (False, True):
            yield f"{shape}", (x, None, 1.0, log)
            yield f"{shape} masked", (x, mask, 0.7, log)
        yield f"{shape} biased", (x, cast(normal(*shape, seed=2)), 1.0, False)
    yield "strided", (cast(normal(6, 5, 74))[::2, :, 37:], None, 1.0, False)


def softmax_out(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """The same operator into a tensor that exists, whose rows are apart."""
    for name, (x, mask, scale, log) in softmax(cast):
        yield (
            name,
            (x, mask, scale, log, torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)[..., : x.shape[-1]]),
        )


def softmax_backward(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """From probabilities and from their logarithms."""
    for shape in ROWS:
        y = torch.softmax(normal(*shape, size=2), -1)
        for log in (False, True):
            yield f"{shape}", (cast(normal(*shape, seed=1)), cast(y.log() if log else y), 0.5, log)


def argmax(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """Rows with ties, strided rows."""
    for shape in ROWS:
        yield f"{shape}", (cast(normal(*shape).round()),)
    yield "strided", (cast(normal(6, 5, 74))[::2, :, 37:],)


def linear_cross_entropy(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """Rows that do not count, smoothed targets, a cap, sums over several pieces of rows, the loss alone."""
    for rows, C, V in [(1, 1, 1), (7, 17, 65), (130, 24, 2100), (1100, 8, 5), (0, 8, 8)]:
        x, weight = cast(normal(rows, C)), cast(normal(V, C, seed=1))
        targets = torch.randint(V, (rows,), generator=torch.Generator().manual_seed(2))
        name = f"{rows} rows C{C} V{V}"
        yield f"{name} loss alone", (x, weight, targets, 1.0, 0.0, 0.0, False, False)
        targets[::5] = -100
        for smoothing, cap in ((0.0, 0.0), (0.1, 2.0)):
            yield name, (x, weight, targets, 0.5, smoothing, cap, True, True)


def linear_screen(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """A short panel and several, a short group and several, a row of zeros."""
    pack = registry.fallback("linear_pack")
    for C, V in [(5, 1), (17, 65), (300, 130)]:
        weight = normal(V, C, seed=1)
        weight[V // 2] = 0
        yield f"C{C} V{V}", (pack(cast(weight)), C, V)


def linear_argmax(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """Whole numbers, whose sums are exact and often equal; equal panels of 64 rows, so that all are needed."""
    pack, screen = registry.fallback("linear_pack"), registry.fallback("linear_screen")
    for rows, C, V, limit in [(1, 5, 1, 1), (7, 17, 64, 40), (51, 24, 640, 640), (0, 8, 8, 8)]:
        x, weight = cast(normal(rows, C).round()), cast(normal(V, C, seed=1).round()[torch.arange(V) % 64])
        yield f"{rows} rows C{C} V{V}", (x, pack(weight), *screen(pack(weight), C, V), V, limit)


def linear_logprobs(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """One token, one part of the vocabulary and several, with a short one at the end."""
    pack = registry.fallback("linear_pack")
    for rows, C, V in [(1, 1, 1), (7, 17, 65), (51, 24, 2100), (0, 8, 8)]:
        x, weight = cast(normal(rows, C)), cast(normal(V, C, seed=1))
        targets = torch.randint(V, (rows,), generator=torch.Generator().manual_seed(2))
        for cap in (0.0, 3.0):
            yield f"{rows} rows C{C} V{V} cap {cap:g}", (x, pack(weight), targets, V, cap)


def attention(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """Full, causal and capped, with bias, and with key lengths of which one is 0."""
    for B, T, S, H, G, D in HEADS:
        q, k, v = cast(normal(B, T, H, D)), cast(normal(B, S, G, D, seed=1)), cast(normal(B, S, G, D, seed=2))
        name, scale = f"B{B} T{T} S{S} H{H} G{G} D{D}", D**-0.5
        yield name, (q, k, v, None, None, scale, 0.0, False)
        yield f"{name} causal", (q, k, v, None, None, scale, 0.0, True)
        yield f"{name} capped", (q, k, v, None, None, scale, 0.7, True)
        bias = cast(normal(1, H, T, S, seed=3))
        yield f"{name} biased", (q, k, v, bias, torch.arange(B) * S // B, scale, 0.0, False)


def attention_backward(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """The gradients of `attention` for the exact output."""
    exact = registry.fallback("attention")
    for name, (q, k, v, bias, lengths, scale, cap, causal) in attention(cast):
        given = (None if bias is None else bias.double(), lengths, scale, cap, causal)
        out, lse = exact(q.double(), k.double(), v.double(), *given)
        grad = cast(normal(*q.shape, seed=4))
        lse = lse.float().to(torch.promote_types(q.dtype, torch.float32))
        rest = (bias, lengths, scale, cap, causal, bias is not None)
        yield name, (grad, q, k, v, cast(out.float()), lse, *rest)


def cached_attention(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """Prompts, and steps behind 130 other positions with a bias and a cap, in caches of q's type."""
    for (B, T, _, H, G, D), before in itertools.product(HEADS, (0, 130)):
        q, k, v = (cast(normal(B, T, heads, D, seed=n)) for n, heads in enumerate((H, G, G)))
        lengths, bias = [before // (b + 1) for b in range(B)], cast(normal(1, H, T, before + T, seed=3))
        given = (q, k, v, filled(cast, B, G, D, before), lengths, bias if before else None)
        yield (
            f"B{B} T{T} H{H} G{G} D{D} behind {before}",
            (*given, CACHE_DTYPES.index(q.dtype), D**-0.5, 0.7 * (before > 0)),
        )


def filled(cast: Cast, B: int, G: int, D: int, n: int) -> Tensor:
    """One layer of a cache for 256 positions, n of which are taken."""
    k, v = cast(normal(B, n, G, D, seed=4)), cast(normal(B, n, G, D, seed=5))
    cache = torch.zeros(B, G, 2, cache_bytes(k.dtype, D), dtype=torch.uint8)
    write(cache, k, v, [0] * B, k.dtype)
    return cache


def rotary(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """Whole heads and parts of them, one table of angles for all sequences and one each."""
    for B, T, H, D, R in [(1, 1, 1, 2, 2), (2, 5, 3, 14, 14), (1, 7, 2, 33, 10), (2, 3, 4, 128, 128)]:
        x = cast(normal(B, T, H, D))
        for tables in {1, B}:
            angle = normal(tables, T, R // 2, seed=1, size=3)
            wide = torch.promote_types(x.dtype, torch.float32)
            yield f"B{B} T{T} H{H} D{D} R{R}", (x, angle.cos().to(wide), angle.sin().to(wide))


def lstm_cell(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """Gates within reach and far out; the cell is wide."""
    for rows, width in ROWS:
        for size in (1, 30):
            x, h = cast(normal(rows, 4 * width, size=size)), cast(normal(rows, 4 * width, seed=1, size=size))
            wide = torch.promote_types(x.dtype, torch.float32)
            yield f"({rows}, {width})", (x, h, normal(rows, width, seed=2).to(wide))


def gru_cell(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """The same for three gates."""
    for rows, width in ROWS:
        for size in (1, 30):
            x, h = cast(normal(rows, 3 * width, size=size)), cast(normal(rows, 3 * width, seed=1, size=size))
            yield f"({rows}, {width})", (x, h, cast(normal(rows, width, seed=2)))


def norm(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """Layer norm with and without bias, and RMS norm, around a mean that is not 0."""
    for shape in ROWS:
        x = cast(normal(*shape) + 3)
        weight, bias = cast(normal(shape[1], seed=1)), cast(normal(shape[1], seed=2))
        yield f"{shape}", (x, weight, bias, 1e-5, False)
        yield f"{shape} no bias", (x, weight, None, 1e-5, False)
        yield f"{shape} rms", (x, weight, None, 1e-6, True)


def add_norm(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """The same after the residual add."""
    for name, (x, *rest) in norm(cast):
        yield name, (x, cast(normal(*x.shape, seed=3)), *rest)


def norm_backward(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """The same for a gradient, with a second gradient to add in every other case."""
    for n, (name, (x, weight, bias, eps, rms)) in enumerate(norm(cast)):
        extra = cast(normal(*x.shape, seed=5)) if n % 2 else None
        yield name, (cast(normal(*x.shape, seed=4)), x, weight, extra, bias is not None, eps, rms)


def gelu(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """Both forms, with and without bias, far into both tails."""
    for shape in ROWS:
        x, bias = cast(normal(*shape, size=3)), cast(normal(shape[1], seed=1))
        for tanh in (False, True):
            yield f"{shape}", (x, None, tanh)
            yield f"{shape} biased", (x, bias, tanh)


def gelu_backward(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """The same for a gradient."""
    for name, (x, bias, tanh) in gelu(cast):
        yield name, (cast(normal(*x.shape, seed=2)), x, bias, tanh)


def finite(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """Finite numbers, and one that is not, at either end."""
    for n in (0, 1, 17, 40_000):
        x = cast(normal(n, size=100))
        yield f"{n}", (x,)
        for at, value in ((0, torch.inf), (n - 1, torch.nan)):
            if n:
                y = x.clone()
                y[at] = value
                yield f"{n} with {value} at {at}", (y,)


def blocks(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """Every kind, any bytes whose scales are finite."""
    generator = torch.Generator().manual_seed(1)
    for number, (size, _, _) in enumerate(KINDS.values()):
        data = torch.randint(0, 256, (3, size), generator=generator, dtype=torch.uint8)
        data[:, [1, 3, size - 1]] &= 0xBB  # no exponent of ones where a scale may lie
        yield f"{[*KINDS][number]}", (data.flatten(), number, cast(torch.zeros(())).dtype)


def softcap(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """Below the cap and far above it."""
    for shape in ROWS:
        yield f"{shape}", (cast(normal(*shape, size=4)), 3.0)


def softcap_backward(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """The same for a gradient."""
    for name, (x, cap) in softcap(cast):
        yield name, (cast(normal(*x.shape, seed=1)), x, cap)


def silu_gate(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """With and without biases; gate and up are the halves of one projection."""
    for rows, width in ROWS:
        both = cast(normal(rows, 2 * width, size=3))
        gate, up = both[:, :width], both[:, width:]
        yield f"({rows}, {width})", (gate, up, None, None)
        yield f"({rows}, {width}) biased", (gate, up, cast(normal(width, seed=1)), cast(normal(width, seed=2)))


def silu_gate_backward(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """The same for a gradient."""
    for name, (gate, up, *biases) in silu_gate(cast):
        yield name, (cast(normal(*gate.shape, seed=3)), gate, up, *biases)


def matmul(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """Every layout of both factors, sizes around those of the kernel's blocks."""
    for M, K, N in [*MATRICES, (241, 129, 65), (50, 300, 1537)]:
        for a in (cast(normal(M, K)), cast(normal(K, M)).t()):
            for b in (cast(normal(K, N, seed=1)), cast(normal(N, K, seed=1)).t()):
                yield f"M{M} K{K} N{N} strides {a.stride()} {b.stride()}", (a, b)


def linear_pack(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """Weights of awkward sizes; packing moves numbers, so nothing but equality is right."""
    for _, K, N in MATRICES:
        yield f"N{N} K{K}", (cast(normal(N, K)),)


def linear(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """Few rows and more, K and N off the panel, with and without bias."""
    pack = registry.fallback("linear_pack")
    for rows, K, N in MATRICES:
        x, packed = cast(normal(rows, K)), pack(cast(normal(N, K, seed=1)))
        yield f"{rows} rows K{K} N{N}", (x, packed, cast(normal(N, seed=2)), N)
        yield f"{rows} rows K{K} N{N} no bias", (x, packed, None, N)


def quantize(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """Matrices brought to 8 and 4 bits; its rounding is the result."""
    for _, K, N in MATRICES:
        for bits in (8, 4):
            yield f"N{N} K{K} int{bits}", (cast(normal(N, K)), bits)


def linear_quantized_pack(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """Weights of 8 and 4 bits with their scales; packing moves numbers."""
    for _, K, N in MATRICES:
        for bits in (8, 4):
            yield f"N{N} K{K} int{bits}", (*quantized(K, N, bits), K)


def linear_blocks_pack(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """Rows of ggml's blocks in another order; packing moves numbers."""
    for N, K in ((1, 32), (65, 96)):
        for bits in (8, 4):
            size = K // 32 * (2 + 4 * bits)
            data = torch.randint(0, 64, (N * size,), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
            yield f"N{N} K{K} {bits} bits", (data, torch.arange(N).flip(0) * size, bits, K)


def linear_quantized(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """Few rows and more, with and without bias, on weights of 8 and 4 bits."""
    pack = registry.fallback("linear_quantized_pack")
    for rows, K, N in MATRICES:
        for bits in (8, 4):
            packed = pack(*quantized(K, N, bits), K)
            bias = cast(normal(N, seed=2)) if bits == 8 else None
            yield f"{rows} rows K{K} N{N} int{bits}", (cast(normal(rows, K)), packed, bias, N, bits)


def quantized(K: int, N: int, bits: int) -> tuple[Tensor, Tensor]:
    """Whole weights, int8 (N,K) or two to a byte, and bfloat16 scales of their groups."""
    generator = torch.Generator().manual_seed(1)
    scale = normal(N, -(-K // GROUPS[bits]), seed=3).abs().bfloat16()
    if bits == 8:
        return torch.randint(-127, 128, (N, K), generator=generator, dtype=torch.int8), scale
    return torch.randint(0, 256, (N, -(-K // 2)), generator=generator, dtype=torch.uint8), scale


def decoder(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """Two blocks and a head, rows of unequal length: GELU, or norms of heads, angles and a gate; one token or two."""
    pack = registry.fallback("linear_pack")
    heads, D, inner, V, S = 2, 8, 24, 65, 9
    C = heads * D
    for gated, T in ((False, 1), (True, 1), (False, 2)):
        seeds = itertools.count(10)

        def vector(n: int, middle: float = 0.0, seeds: Iterator[int] = seeds) -> Tensor:
            return cast(normal(n, seed=next(seeds), size=0.3) + middle)

        def matrix(n: int, k: int, seeds: Iterator[int] = seeds) -> Tensor:
            return pack(cast(normal(n, k, seed=next(seeds), size=k**-0.5)))  # type: ignore[no-any-return]

        none, parts = cast(torch.zeros(0)), []
        for _ in range(2):
            parts += [vector(C, 1.0), none if gated else vector(C), matrix(3 * C, C), vector(3 * C)]
            parts += [vector(D, 1.0), vector(D, 1.0)] if gated else [none, none]
            parts += [matrix(C, C), vector(C), vector(C, 1.0), none if gated else vector(C)]
            parts += [matrix(inner * (1 + gated), C), none if gated else vector(inner), matrix(C, inner), vector(C)]
        parts += [vector(C, 1.0), none if gated else vector(C), matrix(V, C)]
        x, update = cast(normal(3, T, C)), cast(normal(3, T, C, seed=1))
        cache = torch.stack([filled(cast, 3, heads, D, S) for _ in range(2)])
        rows = [row * T + T - 1 for row in range(3)]
        sizes = [heads, inner, V, 2 if gated else 1, int(gated), D, CACHE_DTYPES.index(x.dtype), 0, 0]
        constants = [1e-5, D**-0.5, D**-0.5]
        angle, wide = normal(3, T, D // 2, seed=3, size=3), torch.promote_types(x.dtype, torch.float32)
        angles = [angle.cos().to(wide), angle.sin().to(wide)] if gated else []
        given = (x, update, cache, [2, 0, 5], rows, parts, angles, sizes, constants)
        yield f"T{T} {'gated' if gated else 'gelu'}", given


def transformer_block(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """Both forms of GELU; rows off a tile, an odd head size; a single row."""
    for B, T, heads, D, inner, tanh in ((2, 37, 2, 17, 40, True), (1, 1, 1, 8, 9, False), (3, 64, 4, 8, 128, False)):
        C = heads * D
        sizes = [(C,), (C,), (3 * C, C), (3 * C,), (C, C), (C,), (C,), (C,), (inner, C), (inner,), (C, inner), (C,)]
        weights = [normal(*size, seed=n + 2, size=size[-1] ** -0.5) for n, size in enumerate(sizes)]
        for norm_weight in (weights[0], weights[6]):
            norm_weight += 1
        streams = (cast(normal(B, T, C)), cast(normal(B, T, C, seed=1)))
        yield f"B{B} T{T} H{heads} D{D}", (*streams, *map(cast, weights), heads, D**-0.5, 1e-5, tanh)


def transformer_block_backward(cast: Cast) -> Iterator[tuple[str, Arguments]]:
    """The gradients of `transformer_block` for what its exact forward leaves."""
    exact = registry.fallback("transformer_block")
    for name, (x, update, *rest) in transformer_block(cast):
        weights, constants = rest[: len(WEIGHTS)], rest[len(WEIGHTS) :]
        stream, _, *kept = exact(*(tensor.double() for tensor in (x, update, *weights)), *constants)
        lse = KEPT.index("lse")
        rounded = [cast(left.float()) for left in kept]
        rounded[lse] = kept[lse].float().to(torch.promote_types(x.dtype, torch.float32))
        needed = [weight for part, weight in zip(WEIGHTS, weights, strict=True) if part in NEEDED]
        grads = (cast(normal(*x.shape, seed=20)), cast(normal(*x.shape, seed=21)))
        yield name, (*grads, *needed, cast(stream.float()), *rounded, *constants)


CASES: dict[str, Callable[[Cast], Iterator[tuple[str, Arguments]]]] = {
    "attention": attention,
    "attention_backward": attention_backward,
    "cached_attention": cached_attention,
    "softmax": softmax,
    "softmax_out": softmax_out,
    "softmax_backward": softmax_backward,
    "argmax": argmax,
    "linear_cross_entropy": linear_cross_entropy,
    "linear_argmax": linear_argmax,
    "linear_logprobs": linear_logprobs,
    "linear_screen": linear_screen,
    "rotary": rotary,
    "lstm_cell": lstm_cell,
    "gru_cell": gru_cell,
    "norm": norm,
    "add_norm": add_norm,
    "norm_backward": norm_backward,
    "gelu": gelu,
    "gelu_backward": gelu_backward,
    "finite": finite,
    "blocks": blocks,
    "softcap": softcap,
    "softcap_backward": softcap_backward,
    "silu_gate": silu_gate,
    "silu_gate_backward": silu_gate_backward,
    "matmul": matmul,
    "linear_pack": linear_pack,
    "linear": linear,
    "quantize": quantize,
    "linear_quantized_pack": linear_quantized_pack,
    "linear_blocks_pack": linear_blocks_pack,
    "linear_quantized": linear_quantized,
    "decoder": decoder,
    "transformer_block": transformer_block,
    "transformer_block_backward": transformer_block_backward,
}
# Compared with their fallback in the same dtype: they move numbers, or round their input to whole ones first.
SAME_DTYPE = {"blocks", "linear_pack", "quantize", "linear_quantized_pack", "linear_blocks_pack", "linear_quantized"}
