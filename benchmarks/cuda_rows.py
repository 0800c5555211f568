"""The rows of benchmarks/gpu.py: what runs on a GPU, beside whom, and the goals.

Everything that bounds or competes is a contestant in the same rounds, so every goal is a ratio of times: 1.3 beside
"flash" is 1.3 times its speed, 0.85 beside "copy" is 85 % of the bandwidth at which torch copies as many bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llmcli import ops
from llmcli.benchmarking.kernel_cases import heads_first
from llmcli.benchmarking.random_model import random_model
from llmcli.benchmarking.timing import Work
from llmcli.nn.recorded import recorded

TOKENS, WIDTH = 16384, 2048  # of attention: in all, and heads times their size
BACKENDS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
LENGTHS = (1024, 2048, 4096, 8192, 16384)
# FlashAttention-3 forward on an H100 in TFLOP/s at LENGTHS, by head size and causal (arXiv:2407.08608, figure 5).
PUBLISHED = {
    (64, True): (265, 371, 420, 460, 473),
    (64, False): (392, 460, 476, 496, 497),
    (128, True): (423, 521, 579, 602, 616),
    (128, False): (565, 625, 638, 646, 648),
}
WRITTEN = 64  # tokens of a decoding sample, from an empty cache
WEIGHTS = 248e6  # bytes that a step of GPT-2 124M reads in bfloat16

OnRows = Callable[[Tensor, Tensor, Tensor], Any]  # x, residual (rows,size) and weight (size)


@dataclass(frozen=True)
class Row:
    """One row: `amount` over nanoseconds is the rate in `unit`; goals are least ratios of a contestant's time to ours.

    build gives the contestants, "llmcli" first. replayed: timed as recorded replays of several calls; comparable: the
    results of all but "copy" are the same but for rounding.
    """

    name: str
    shape: str
    unit: str
    amount: float
    goals: dict[str, float]
    build: Callable[[torch.device], dict[str, Work]] = field(repr=False)
    published: float | None = None
    gradients: bool = False
    replayed: bool = True
    comparable: bool = True
    dtype: torch.dtype = torch.bfloat16


def copy_of(nbytes: float, device: torch.device) -> Work:
    """A copy that reads and writes so many bytes together."""
    source = torch.ones(int(nbytes) // 4, dtype=torch.int16, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def attention(S: int, D: int, causal: bool, training: bool, tokens: int = TOKENS, width: int = WIDTH) -> Row:
    """Self-attention, or with its gradients: counted as 3.5 times the operations, causal as half of them."""
    B, H = tokens // S, width // D

    def build(device: torch.device) -> dict[str, Work]:
        ours = [torch.randn(B, S, H, D, device=device).bfloat16().requires_grad_(training) for _ in range(3)]
        theirs = [heads_first(x.detach()).requires_grad_(training) for x in ours]
        gradient = torch.randn_like(ours[0])
        their_gradient = heads_first(gradient)

        def run_ours() -> Any:
            out = ops.attention(*ours, causal=causal)
            return torch.autograd.grad(out, ours, gradient) if training else out

        def run_theirs(backend: SDPBackend) -> Any:
            with sdpa_kernel(backend):
                out = F.scaled_dot_product_attention(*theirs, is_causal=causal)
                found = torch.autograd.grad(out, theirs, their_gradient) if training else (out,)
            turned = tuple(x.transpose(1, 2) for x in found)
            return turned if training else turned[0]

        others: dict[str, Work] = {name: lambda b=b: run_theirs(b) for name, b in BACKENDS.items()}  # type: ignore[misc]
        return {"llmcli": run_ours, **others}

    flops = 4 * B * S * S * H * D * (3.5 if training else 1) / (2 if causal else 1)
    goals = {"cuDNN": 1.0} if training else {"cuDNN": 1.0, "flash": 1.3}
    known = not training and (D, causal) in PUBLISHED and S in LENGTHS
    return Row(
        "attention forward + backward" if training else "attention forward",
        f"B{B} S{S} H{H} D{D}{' causal' if causal else ''}",
        "TFLOP/s",
        flops / 1e3,
        goals,
        build,
        published=PUBLISHED[D, causal][LENGTHS.index(S)] if known else None,
        gradients=training,
    )


def decode_attention(B: int, S: int = 32768, H: int = 32, G: int = 8, D: int = 128) -> Row:
    """One query of each head over a cache."""
    nbytes = 2 * B * S * G * D * 2

    def build(device: torch.device) -> dict[str, Work]:
        q, k, v = (torch.randn(B, n, h, D, device=device).bfloat16() for n, h in ((1, H), (S, G), (S, G)))
        return {"llmcli": lambda: ops.attention(q, k, v), "copy": copy_of(nbytes, device)}

    return Row("decode attention", f"B{B} S{S} H{H} G{G} D{D}", "GB/s", nbytes, {"copy": 0.85}, build)


def by_rows(name: str, rows: int, size: int, tensors: int, ours: OnRows, theirs: OnRows) -> Row:
    """An operator on rows, which reads and writes so many tensors of their size in all."""
    nbytes = tensors * rows * size * 2

    def build(device: torch.device) -> dict[str, Work]:
        x, residual = (torch.randn(rows, size, device=device).bfloat16() for _ in range(2))
        weight = torch.randn(size, device=device).bfloat16()
        return {
            "llmcli": lambda: ours(x, residual, weight),
            "torch": lambda: theirs(x, residual, weight),
            "copy": copy_of(nbytes, device),
        }

    return Row(name, f"{rows}×{size}", "GB/s", nbytes, {"copy": 0.9}, build)


def cross_entropy(N: int = 8192, C: int = 768, V: int = 50257) -> Row:
    """The projection onto the vocabulary, its cross-entropy and the gradients; beside it a copy of the logits."""

    def build(device: torch.device) -> dict[str, Work]:
        x = (torch.randn(N, C, device=device) * 0.1).bfloat16().requires_grad_()
        weight = (torch.randn(V, C, device=device) * 0.1).bfloat16().requires_grad_()
        targets = torch.randint(V, (N,), device=device)

        def run(loss: Callable[[], Tensor]) -> tuple[Tensor, ...]:
            return torch.autograd.grad(loss(), (x, weight))

        return {
            "llmcli": lambda: run(lambda: ops.linear_cross_entropy(x, weight, targets, scale=1 / N)),
            "torch": lambda: run(lambda: F.cross_entropy((x @ weight.T).float(), targets)),
            "copy": copy_of(2 * N * V * 2, device),
        }

    name, shape = "cross-entropy with its projection, forward + backward", f"N{N} C{C} V{V}"
    return Row(name, shape, "TFLOP/s", 6 * N * C * V / 1e3, {"torch": 1.0}, build, gradients=True)


def peer_model(device: torch.device) -> tuple[Any, Callable[..., Any]]:
    """GPT-2 124M of transformers with random weights, and its forward compiled to a graph of its own."""
    import transformers

    model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).to(device, torch.bfloat16).eval()
    compiled = torch.compile(model, mode="reduce-overhead", dynamic=False)

    def step(*args: Any, **kwargs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(*args, **kwargs)

    return model, step


def decode() -> Row:
    """Greedy decoding of one sequence from an empty cache; the bound is a copy of the weights for each token."""

    def build(device: torch.device) -> dict[str, Work]:
        from transformers import StaticCache

        model = recorded(random_model("gpt2", dtype=torch.bfloat16, device=str(device)), device)
        first = torch.ones(1, 1, dtype=torch.int64, device=device)
        _, state = model.start(first, capacity=WRITTEN)
        peer, step = peer_model(device)
        cache, copy = StaticCache(peer.config, WRITTEN), copy_of(WEIGHTS, device)

        def ours() -> Tensor:
            state.set_lengths([0])
            ids = first
            for _ in range(WRITTEN):
                ids = ops.argmax(model.step(ids, state))[0][:, None]
            return ids

        def theirs() -> Tensor:
            cache.reset()
            ids = first
            for _ in range(WRITTEN):
                ids = step(ids, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1, keepdim=True)
            return ids

        return {"llmcli": ours, "transformers": theirs, "copy": lambda: [copy() for _ in range(WRITTEN)]}

    goals = {"transformers": 2.0, "copy": 0.5}
    rest: dict[str, Any] = {"replayed": False, "comparable": False}
    return Row("GPT-2 124M decode", f"B1, {WRITTEN} tokens", "tokens/s", WRITTEN * 1e9, goals, build, **rest)


def prefill(B: int = 16, T: int = 1024) -> Row:
    """Prompts read, logits of their last tokens."""

    def build(device: torch.device) -> dict[str, Work]:
        model = random_model("gpt2", dtype=torch.bfloat16, device=str(device))
        ids = torch.randint(50257, (B, T), device=device)
        _, compiled = peer_model(device)
        return {
            "llmcli": lambda: model.start(ids, capacity=T)[0],
            "transformers": lambda: compiled(ids, use_cache=False, logits_to_keep=1).logits,
        }

    rest: dict[str, Any] = {"replayed": False, "comparable": False}
    return Row("GPT-2 124M prefill", f"B{B} T{T}", "tokens/s", B * T * 1e9, {"transformers": 1.1}, build, **rest)


def table() -> Iterator[Row]:
    """Every row; sizes below a goal stay in the table as they are."""
    for training in (False, True):
        for D in (64, 128):
            for causal in (True, False):
                for S in LENGTHS:
                    yield attention(S, D, causal, training)
    for B in (1, 16):
        yield decode_attention(B)
    for rows, size in ((131072, 1024), (4096, 50257)):
        yield by_rows("softmax", rows, size, 2, lambda x, *_: ops.softmax(x), lambda x, *_: torch.softmax(x, -1))
    for size in (1024, 4096):
        yield by_rows(
            "layer norm",
            32768,
            size,
            2,
            lambda x, _, w: ops.layer_norm(x, w),
            lambda x, _, w: F.layer_norm(x, [len(w)], w),
        )
        yield by_rows(
            "RMS norm with residual", 32768, size, 4, lambda x, r, w: ops.add_rms_norm(x, r, w), residual_rms_norm
        )
    yield cross_entropy()
    yield decode()
    yield prefill()


def residual_rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """torch's own two steps."""
    total = x + residual
    return F.rms_norm(total, [len(weight)], weight, 1e-6), total
