"""Generation under every combination of threads, batch, prompt chunk and cache: one hash, or the first that differs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from llmcli.errors import InputError
from llmcli.generation.rows import Generates
from llmcli.generation.sampling import philox


@dataclass(frozen=True)
class Setting:
    """One way of running: chunk 0 reads a prompt whole; without cache each token reads everything again."""

    threads: int
    batch_size: int
    chunk: int
    cache: bool


@dataclass(frozen=True)
class Run:
    """What one setting gave: SHA-256 of all logits and tokens, in the order of the prompts, and how long it took."""

    setting: Setting
    sha256: str
    seconds: float


def settings(threads: Sequence[int], batches: Sequence[int], chunks: Sequence[int]) -> list[Setting]:
    """Every combination; the first is the reference."""
    return [Setting(*row) for row in product(threads, batches, chunks, (True, False))]


def draw_prompts(n: int, length: int, vocab_size: int) -> Tensor:
    """Prompts (n, length) of ids from a counter: the same on every machine."""
    ids = [[philox((row, column, 0, 0), 0)[0] % vocab_size for column in range(length)] for row in range(n)]
    return torch.tensor(ids, dtype=torch.int64)


@torch.inference_mode()
def read(model: Generates, ids: Tensor, chunk: int, capacity: int) -> tuple[Tensor, Any]:
    """Read prompts (B,T) of one length in pieces of `chunk` tokens (0: whole) → last logits (B,V) and the state."""
    size = chunk or ids.shape[1]
    logits, state = model.start(ids[:, :size], capacity=capacity)
    for begin in range(size, ids.shape[1], size):
        logits = model.step(ids[:, begin : begin + size], state)
    return logits, state


@torch.inference_mode()
def digest(model: Generates, prompts: Tensor, n_tokens: int, setting: Setting) -> str:
    """Continue prompts (N,T) greedily by n_tokens and hash every row of logits and every token that came of it."""
    capacity, each = prompts.shape[1] + n_tokens, []
    for rows in prompts.split(setting.batch_size):
        hashes = [hashlib.sha256() for _ in rows]
        logits, state = read(model, rows, setting.chunk, capacity)
        for left in range(n_tokens - 1, -1, -1):
            tokens = logits.argmax(-1)
            for row, token, one in zip(logits.float().cpu(), tokens.tolist(), hashes, strict=True):
                one.update(row.numpy().tobytes() + token.to_bytes(8, "little"))
            if not left:
                break
            rows = torch.cat([rows, tokens[:, None]], 1)
            if setting.cache:
                logits = model.step(tokens[:, None], state)
            else:
                logits, state = read(model, rows, setting.chunk, capacity)
        each += [one.hexdigest() for one in hashes]
    return hashlib.sha256("".join(each).encode()).hexdigest()


def check_fit(prompt: int, more: int, context: int) -> None:
    """Raise InputError where a prompt and what follows exceed the model's context."""
    if prompt + more > context:
        raise InputError(f"expected at most {context} tokens, the model's context, got {prompt} and {more} more")


def verify(
    model: Generates, prompts: Tensor, n_tokens: int, every: Sequence[Setting], context: int, repetitions: int = 1
) -> Iterator[Run]:
    """Run each setting in order, then again in the other, and so on: what slows the machine meets all of them.

    The thread count comes back at the end. Raises InputError where the context is too small.
    """
    check_fit(prompts.shape[1], n_tokens, context)
    before = torch.get_num_threads()
    try:
        digest(model, prompts[:1], 1, every[0])  # the first call pays for pages and threads
        for repetition in range(repetitions):
            for setting in every if repetition % 2 == 0 else reversed(every):
                torch.set_num_threads(setting.threads)
                begin = time.perf_counter()
                found = digest(model, prompts, n_tokens, setting)
                yield Run(setting, found, time.perf_counter() - begin)
    finally:
        torch.set_num_threads(before)


def fastest(runs: Sequence[Run]) -> list[Run]:
    """One run of each setting, in order: its shortest time, and a hash other than the first run's where it had one."""
    found: dict[Setting, Run] = {}
    for run in runs:
        known = found.setdefault(run.setting, run)
        sha256 = run.sha256 if known.sha256 == runs[0].sha256 else known.sha256
        found[run.setting] = Run(run.setting, sha256, min(known.seconds, run.seconds))
    return list(found.values())
