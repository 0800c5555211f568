"""The table of single operators that `bench kernels` times beside torch's, with the goals they are held to.

Each contestant gets the layout it prefers: llmcli (B,T,H,D), torch (B,H,T,D), both contiguous. B 1, H 12, D 64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcli import ops
from llmcli.benchmarking.environment import last_level_cache
from llmcli.benchmarking.timing import Work
from llmcli.nn.kv_cache import KVCache
from llmcli.ops.cached_attention import write

HEADS, HEAD_DIM = 12, 64
FALLBACK_CACHE = 64 << 20
LARGEST_CACHE = 512 << 20


@dataclass(frozen=True)
class Contestants:
    """One operator twice on the same numbers, and the copy of its input that bounds it when memory does."""

    ours: Work
    torch: Work
    copy: Work | None = None
    copy_bytes: int = 0


@dataclass(frozen=True)
class Case:
    """One row: what runs, how much work it is, its ceiling and its goals.

    amount is bytes moved (unit GB/s) or floating-point operations (unit GFLOP/s) of one call; ceiling is "matrix",
    "read" (streaming) or "copy" (the same bytes into a preallocated output); a goal of None is not set.
    """

    op: str
    variant: str
    shape: str
    dtype: torch.dtype
    amount: int
    ceiling: str
    build: Callable[[], Contestants]
    goal_ratio: float | None = None
    goal_share: float | None = None
    gradients: bool = False

    @property
    def unit(self) -> str:
        """GFLOP/s where the matrix units are the limit, else GB/s."""
        return "GFLOP/s" if self.ceiling == "matrix" else "GB/s"

    @property
    def dtype_name(self) -> str:
        """`float32`, `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def name(self) -> str:
        """Unique in the table."""
        return f"{self.op} {self.variant} {self.shape} {self.dtype_name}"


def attention_inputs(T: int, S: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Random q (1,T,H,D), k and v (1,S,H,D)."""
    lengths = (T, S, S)
    q, k, v = (torch.randn(1, length, HEADS, HEAD_DIM).to(dtype) for length in lengths)
    return q, k, v


def heads_first(x: Tensor) -> Tensor:
    """(B,T,H,D) → contiguous (B,H,T,D)."""
    return x.transpose(1, 2).contiguous()


def attention_forward(S: int, dtype: torch.dtype) -> Contestants:
    """Causal self-attention of S tokens."""
    q, k, v = attention_inputs(S, S, dtype)
    tq, tk, tv = heads_first(q), heads_first(k), heads_first(v)
    return Contestants(
        lambda: ops.attention(q, k, v, causal=True),
        lambda: F.scaled_dot_product_attention(tq, tk, tv, is_causal=True).transpose(1, 2),
    )


def attention_training(S: int, dtype: torch.dtype) -> Contestants:
    """Causal self-attention of S tokens and the gradients of q, k and v."""
    ours = [x.requires_grad_() for x in attention_inputs(S, S, dtype)]
    theirs = [heads_first(x.detach()).requires_grad_() for x in ours]
    gradient = torch.randn_like(ours[0])
    their_gradient = heads_first(gradient)

    def run_ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(ops.attention(ours[0], ours[1], ours[2], causal=True), ours, gradient)

    def run_torch() -> tuple[Tensor, ...]:
        out = F.scaled_dot_product_attention(theirs[0], theirs[1], theirs[2], is_causal=True)
        return tuple(x.transpose(1, 2) for x in torch.autograd.grad(out, theirs, their_gradient))

    return Contestants(run_ours, run_torch)


def attention_decode(S: int, dtype: torch.dtype, *, cold: bool) -> Contestants:
    """One query against S keys of a cache; cold goes round buffers four times the last-level cache."""
    copies = 1
    if cold:
        cache = min(last_level_cache() or FALLBACK_CACHE, LARGEST_CACHE)
        copies = max(2, -(-4 * cache // (2 * S * HEADS * HEAD_DIM * dtype.itemsize)) + 1)
    given = [attention_inputs(1, S, dtype) for _ in range(copies)]
    inputs = [tuple(map(heads_first, tensors)) for tensors in given]
    caches = []
    for _, k, v in given:
        state = KVCache(1, 1, S, HEADS, HEAD_DIM, dtype=dtype, device=torch.device("cpu"))
        write(state.reserve(S)[0][0], k, v, [0], dtype)
        state.advance(S - 1)
        caches.append(state)
    turn, their_turn = count(), count()

    def run_ours() -> Tensor:
        n = next(turn) % copies
        q, k, v = given[n]
        return caches[n].attend(0, q, k[:, -1:], v[:, -1:])

    def run_torch() -> Tensor:
        q, k, v = inputs[next(their_turn) % copies]
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return Contestants(run_ours, run_torch)


def linear_training(rows: int, K: int, N: int, dtype: torch.dtype) -> Contestants:
    """A linear layer without bias and the gradients of both factors."""
    x, weight, gradient = (torch.randn(shape).to(dtype) for shape in ((rows, K), (N, K), (rows, N)))
    both = (x.requires_grad_(), weight.requires_grad_())
    return Contestants(
        lambda: torch.autograd.grad(ops.matmul(x, weight.t()), both, gradient),
        lambda: torch.autograd.grad(F.linear(x, weight), both, gradient),
    )


def vocabulary_loss(rows: int, width: int, V: int, dtype: torch.dtype) -> Contestants:
    """Vocabulary projection, mean cross-entropy, and the gradients of both factors."""
    x, weight = (torch.randn(n, width).mul_(width**-0.25).to(dtype).requires_grad_() for n in (rows, V))
    targets = torch.randint(V, (rows,))

    def run_ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(ops.linear_cross_entropy(x, weight, targets, scale=1 / rows), (x, weight))

    def run_torch() -> tuple[Tensor, ...]:
        return torch.autograd.grad(F.cross_entropy(F.linear(x, weight), targets), (x, weight))

    return Contestants(run_ours, run_torch)


def vocabulary_scores(rows: int, width: int, V: int, dtype: torch.dtype) -> Contestants:
    """Vocabulary projection and the log-probability of each wanted token, as scoring needs them."""
    x, weight = (torch.randn(n, width).mul_(width**-0.25).to(dtype) for n in (rows, V))
    packed, targets = ops.linear_pack(weight), torch.randint(V, (rows,))
    return Contestants(
        lambda: ops.linear_logprobs(x, packed, targets, V)[0],
        lambda: -F.cross_entropy(F.linear(x, weight).float(), targets, reduction="none"),
    )


def rowwise(
    shape: tuple[int, int],
    dtype: torch.dtype,
    ours: Callable[[Tensor, Tensor], object],
    theirs: Callable[[Tensor, Tensor], object],
) -> Contestants:
    """An operator over the rows of x: both are called with (x, a preallocated output)."""
    x = torch.randn(shape).to(dtype)
    out, their_out, copied = (torch.zeros_like(x) for _ in range(3))
    return Contestants(lambda: ours(x, out), lambda: theirs(x, their_out), lambda: copied.copy_(x), 2 * x.nbytes)


def softmax_allocating(shape: tuple[int, int], dtype: torch.dtype) -> Contestants:
    """Softmax into a new tensor."""
    return rowwise(shape, dtype, lambda x, _: ops.softmax(x), lambda x, _: torch.softmax(x, -1))


def softmax_into(shape: tuple[int, int], dtype: torch.dtype) -> Contestants:
    """Softmax into a tensor that exists."""
    return rowwise(shape, dtype, lambda x, out: ops.softmax(x, out=out), lambda x, out: torch.softmax(x, -1, out=out))


def layer_norm(shape: tuple[int, int], dtype: torch.dtype) -> Contestants:
    """Layer norm with weight and bias."""
    w, b = torch.randn(shape[1]).to(dtype), torch.randn(shape[1]).to(dtype)
    return rowwise(shape, dtype, lambda x, _: ops.layer_norm(x, w, b), lambda x, _: F.layer_norm(x, w.shape, w, b))


def add_layer_norm(shape: tuple[int, int], dtype: torch.dtype) -> Contestants:
    """Layer norm of a sum; the sum is a result too."""
    w, b = torch.randn(shape[1]).to(dtype), torch.randn(shape[1]).to(dtype)
    residual = torch.randn(shape).to(dtype)

    def theirs(x: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return F.layer_norm(total, w.shape, w, b), total

    return rowwise(shape, dtype, lambda x, _: ops.add_layer_norm(x, residual, w, b), theirs)


def rms_norm(shape: tuple[int, int], dtype: torch.dtype) -> Contestants:
    """RMS norm with weight."""
    w = torch.randn(shape[1]).to(dtype)
    return rowwise(shape, dtype, lambda x, _: ops.rms_norm(x, w), lambda x, _: F.rms_norm(x, w.shape, w, 1e-6))


def gelu(shape: tuple[int, int], dtype: torch.dtype) -> Contestants:
    """GELU in the tanh approximation, as GPT-2 uses it."""
    return rowwise(
        shape,
        dtype,
        lambda x, _: ops.gelu(x, approximate="tanh"),
        lambda x, _: F.gelu(x, approximate="tanh"),
    )


def silu_gate(shape: tuple[int, int], dtype: torch.dtype) -> Contestants:
    """silu(gate) * up."""
    up = torch.randn(shape).to(dtype)
    return rowwise(shape, dtype, lambda x, _: ops.silu_gate(x, up), lambda x, _: F.silu(x) * up)


def greedy_choice(V: int, dtype: torch.dtype) -> Contestants:
    """Where the highest number of a row stands, and that number."""
    x = torch.randn(1, V).to(dtype)
    return Contestants(lambda: ops.argmax(x), lambda: tuple(reversed(x.max(-1))))


def attention_cases(dtype: torch.dtype, lengths: Sequence[int], cache: int) -> Iterator[Case]:
    """Forward, forward with backward (3.5 times the operations), and one query against a cache."""
    ratio, share = (1.5, 0.70) if dtype == torch.float32 else (2.5, 0.45)
    for S in lengths:
        shape, flops = f"B1 H{HEADS} D{HEAD_DIM} S{S} causal", 4 * HEADS * HEAD_DIM * S * S // 2
        forward, training = partial(attention_forward, S, dtype), partial(attention_training, S, dtype)
        yield Case("attention", "forward", shape, dtype, flops, "matrix", forward, ratio, share)
        yield Case(
            "attention", "forward + backward", shape, dtype, flops * 7 // 2, "matrix", training, 1.5, gradients=True
        )
    shape, moved = f"B1 H{HEADS} D{HEAD_DIM} T1 S{cache}", 2 * cache * HEADS * HEAD_DIM * dtype.itemsize
    cold, hot = (partial(attention_decode, cache, dtype, cold=cold) for cold in (True, False))
    yield Case("attention", "decode, cold", shape, dtype, moved, "read", cold, goal_share=0.85)
    yield Case("attention", "decode, hot", shape, dtype, moved, "read", hot)


def training_cases(dtype: torch.dtype, divide: int) -> Iterator[Case]:
    """Layers of GPT-2 on 1,024 tokens and its head on 4 x 1,024: three products each."""
    rows, width, inner, V = (max(64, n // divide) for n in (1024, 768, 3072, 50257))
    if dtype == torch.float32:  # narrower products are torch's own
        build, shape = partial(linear_training, rows, width, inner, dtype), f"M{rows} K{width} N{inner}"
        yield Case(
            "matmul", "forward + backward", shape, dtype, 6 * rows * width * inner, "matrix", build, gradients=True
        )
    build, shape = partial(vocabulary_loss, 4 * rows, width, V, dtype), f"N{4 * rows} C{width} V{V}"
    amount, name = 24 * rows * width * V, "linear_cross_entropy"
    yield Case(name, "forward + backward", shape, dtype, amount, "matrix", build, 1.3, gradients=True)


def scoring_cases(dtype: torch.dtype, divide: int) -> Iterator[Case]:
    """The head of GPT-2 on 2 x 1,024 tokens that are scored."""
    rows, width, V = (max(64, n // divide) for n in (2048, 768, 50257))
    build, shape = partial(vocabulary_scores, rows, width, V, dtype), f"N{rows} C{width} V{V}"
    yield Case("linear_logprobs", "log p", shape, dtype, 2 * rows * width * V, "matrix", build, 1.5, 0.60)


Builder = Callable[[tuple[int, int], torch.dtype], Contestants]


def rowwise_cases(dtype: torch.dtype, divide: int = 1) -> Iterator[Case]:
    """Softmax, norms, activations and the highest; `divide` makes fewer rows."""
    table: list[tuple[str, str, tuple[int, int], int, Builder, float | None, float | None]] = [
        ("softmax", "allocating", (12288, 1024), 2, softmax_allocating, 1.5, None),
        ("softmax", "into out=", (12288, 1024), 2, softmax_into, 1.5, 0.85),
        ("softmax", "allocating", (32, 50257), 2, softmax_allocating, 1.5, None),
        ("softmax", "into out=", (32, 50257), 2, softmax_into, 1.5, 0.85),
        ("layer_norm", "allocating", (4096, 768), 2, layer_norm, None, None),
        ("add_layer_norm", "allocating", (4096, 768), 4, add_layer_norm, None, None),
        ("rms_norm", "allocating", (4096, 768), 2, rms_norm, None, None),
        ("gelu", "tanh, allocating", (4096, 3072), 2, gelu, None, None),
        ("silu_gate", "allocating", (4096, 3072), 3, silu_gate, None, None),
    ]
    for op, variant, (rows, width), passes, builder, ratio, share in table:
        shape = (max(1, rows // divide), width)
        moved = passes * shape[0] * width * dtype.itemsize
        build = partial(builder, shape, dtype)
        yield Case(op, variant, f"{shape[0]}×{width}", dtype, moved, "copy", build, ratio, share)
    V = 50257
    yield Case("argmax", "greedy choice", f"1×{V}", dtype, V * dtype.itemsize, "read", partial(greedy_choice, V, dtype))


def kernel_cases(operators: Sequence[str] = (), dtypes: Sequence[torch.dtype] = (), *, divide: int = 1) -> list[Case]:
    """The rows for these operators and dtypes (empty: all).

    `divide` shrinks every shape, for a trial run; the goals hold for the whole shapes only.
    """
    lengths, cache = [max(1, S // divide) for S in (1024, 4096)], max(1, 8192 // divide)
    cases: list[Case] = []
    for dtype in dtypes or (torch.float32, torch.bfloat16):
        cases += attention_cases(dtype, lengths, cache)
        cases += rowwise_cases(dtype, divide)
        cases += training_cases(dtype, divide)
        cases += scoring_cases(dtype, divide)
    chosen = [case for case in cases if not operators or case.op in operators]
    return chosen if divide == 1 else [replace(case, goal_ratio=None, goal_share=None) for case in chosen]
