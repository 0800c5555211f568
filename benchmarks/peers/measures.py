"""What is measured of an engine, and how much of it the machine allows.

A measure knows the request that carries it out (`worker.py`), the tokens that one request counts, and its limit. A
sample is one request to warm up, then requests until half a second is measured, every prompt new.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.worker import Rows
from llmcli.benchmarking.ceilings import Ceilings
from llmcli.benchmarking.model_speed import SpeedTest, limit_ns, precision

N_GEN = 32
SAMPLE_S = 0.5
Call = Callable[..., dict[str, Any]]


class Draws:
    """Prompts of random ids, never the same twice."""

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        self.random, self.vocab_size = random.Random(seed), vocab_size

    def __call__(self, batch: int, length: int) -> Rows:
        return [[self.random.randrange(self.vocab_size) for _ in range(length)] for _ in range(batch)]


def rate(seconds_of: Callable[[], float], tokens: int) -> float:
    """Tokens per second over calls that last SAMPLE_S together."""
    seconds, count = 0.0, 0
    while seconds < SAMPLE_S:
        seconds += seconds_of()
        count += tokens
    return count / seconds


@dataclass(frozen=True)
class Generating:
    """Reading a prompt, or writing after it: `pp512`, `tg32 @ d880`, `tg32 @ d32 b8`."""

    test: SpeedTest
    variants = "GENERATES"  # where an engine's file names those that can do it

    @property
    def name(self) -> str:
        return self.test.name + (f" b{self.test.n_batch}" if self.test.n_batch > 1 else "")

    @property
    def positions(self) -> int:
        return self.test.positions

    def sample(self, call: Call, draws: Draws) -> float:
        """Tokens per second of the prompt, or of what follows the first token, over all rows."""
        shape = (self.test.n_batch, self.test.n_prompt or self.test.n_depth)
        counted, n = "rest_s" if self.test.n_gen else "first_s", self.test.n_gen + 1
        call(generate=draws(*shape), n=min(n, 2))
        return rate(lambda: float(call(generate=draws(*shape), n=n)[counted]), self.test.tokens)

    def limit(self, model: Any, ceilings: Ceilings) -> float:
        """As `llmcli bench` has it."""
        return 1e9 * self.test.tokens / limit_ns(model, self.test, ceilings)


@dataclass(frozen=True)
class Passing:
    """Whole rows through the model with the logits of every position: `score 4x512`, `train 4x64`."""

    action: str
    batch: int
    positions: int
    variants: str
    passes: int  # a backward pass counts as two forward

    @property
    def name(self) -> str:
        return f"{self.action} {self.batch}x{self.positions}"

    def sample(self, call: Call, draws: Draws) -> float:
        """Tokens per second over all rows."""
        call(**{self.action: draws(self.batch, min(64, self.positions))})
        seconds = lambda: float(call(**{self.action: draws(self.batch, self.positions)})["seconds"])  # noqa: E731
        return rate(seconds, self.batch * self.positions)

    def limit(self, model: Any, ceilings: Ceilings) -> float:
        """The matrix peak over the operations, among them the vocabulary projection of every position."""
        dtype = precision(model)
        head = 2 * model.tokens.numel()
        operations = self.passes * (model.flops(self.positions, 0) + (self.positions - 1) * head)
        return 1e9 * self.positions * ceilings.get("int8" if dtype == "int4" else dtype) / operations


Measure = Generating | Passing


def measures(kinds: list[str], context: int, threads: int) -> list[Measure]:
    """Those of some kinds ("generate", "score", "train") that fit into the context. Raises ValueError for another."""
    decode = [SpeedTest(0, N_GEN, depth, batch, threads) for depth, batch in ((32, 1), (880, 1), (32, 8))]
    table: dict[str, list[Measure]] = {
        "generate": [Generating(test) for test in (SpeedTest(512, 0, 0, 1, threads), *decode)],
        "score": [Passing("score", 4, 512, "SCORES", 1)],
        "train": [Passing("train", 4, width, "TRAINS", 3) for width in (64, 1024)],
    }
    if unknown := set(kinds) - set(table):
        raise ValueError(f"expected some of {', '.join(table)}; got {', '.join(sorted(unknown))}")
    return [measure for kind in kinds for measure in table[kind] if measure.positions <= context]
