"""What is measured of an engine, and how much of it the machine allows.

A measure knows the requests that carry it out (`worker.py`), the tokens that one of them counts, and its limit. A
sample is one request to warm up, a look at the limit, requests until half a second is measured or one has passed, every
prompt new, and another look.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

from benchmarks.peers.worker import Rows
from llmcli.benchmarking.ceilings import Ceilings
from llmcli.benchmarking.model_speed import SpeedTest, limit_ns, precision

N_GEN = 32
SAMPLE_S, LONGEST_S = 0.5, 1.0  # measured, and with the prompts that are not
WARM_UP = 64  # positions at most, where what is longer is not measured
FEWEST_STEPS = 8
Call = Callable[..., dict[str, Any]]


class Draws:
    """Prompts of random ids, never the same twice."""

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        self.random, self.vocab_size = random.Random(seed), vocab_size

    def __call__(self, batch: int, length: int) -> Rows:
        return [[self.random.randrange(self.vocab_size) for _ in range(length)] for _ in range(batch)]


@dataclass(frozen=True)
class Generating:
    """Reading a prompt, or writing after it: `pp512`, `tg32 @ d880`, `tg32 @ d32 b8`."""

    test: SpeedTest

    @property
    def variants(self) -> str:
        """Where an engine's file names those that can do it."""
        return "GENERATES" if self.test.n_gen else "READS"

    @property
    def name(self) -> str:
        return self.test.name + (f" b{self.test.n_batch}" if self.test.n_batch > 1 else "")

    @property
    def positions(self) -> int:
        return self.test.positions

    def warm_up(self, call: Call, draws: Draws) -> float:
        """Seconds of a step, where steps are measured; the prompt before them is then short, because it is not."""
        length, steps = self.test.n_prompt or min(WARM_UP, self.test.n_depth), min(self.test.n_gen, 3)
        return float(call(generate=draws(self.test.n_batch, length), n=steps + 1)["rest_s"]) / max(1, steps)

    def request(self, call: Call, draws: Draws, step_s: float) -> tuple[int, float]:
        """Tokens and seconds of a prompt, or of what follows its first token, over all rows.

        Slow steps are fewer than the test's: as many as SAMPLE_S takes.
        """
        steps = min(self.test.n_gen, max(FEWEST_STEPS, ceil(SAMPLE_S / max(step_s, 1e-9))))
        answer = call(generate=draws(self.test.n_batch, self.test.n_prompt or self.test.n_depth), n=steps + 1)
        tokens = self.test.n_batch * (steps or self.test.n_prompt)
        return tokens, float(answer["rest_s" if steps else "first_s"])

    def limit(self, model: Any, ceilings: Ceilings) -> float:
        """As `llmcli bench` has it."""
        return 1e9 * self.test.tokens / limit_ns(model, self.test, ceilings)


@dataclass(frozen=True)
class Passing:
    """Whole rows through the model with the logits of every position: `score 2x512`, `train 4x64`."""

    action: str
    batch: int
    positions: int
    variants: str
    passes: int  # a backward pass counts as two forward

    @property
    def name(self) -> str:
        return f"{self.action} {self.batch}x{self.positions}"

    def warm_up(self, call: Call, draws: Draws) -> float:
        """Shorter rows."""
        return float(call(**{self.action: draws(self.batch, min(WARM_UP, self.positions))})["seconds"])

    def request(self, call: Call, draws: Draws, _: float) -> tuple[int, float]:
        """Tokens and seconds of all rows."""
        seconds = float(call(**{self.action: draws(self.batch, self.positions)})["seconds"])
        return self.batch * self.positions, seconds

    def limit(self, model: Any, ceilings: Ceilings) -> float:
        """The matrix peak over the operations, among them the vocabulary projection of every position."""
        dtype = precision(model)
        head = 2 * model.tokens.numel()
        operations = self.passes * (model.flops(self.positions, 0) + (self.positions - 1) * head)
        return 1e9 * self.positions * ceilings.get("int8" if dtype == "int4" else dtype) / operations


Measure = Generating | Passing


def sample(one: Measure, call: Call, draws: Draws, look: Callable[[], float]) -> tuple[float, float]:
    """Tokens per second, and the mean of the looks at the limit before and after."""
    step_s = one.warm_up(call, draws)
    found: list[tuple[int, float]] = []
    before, begin = look(), time.perf_counter()
    while not found or (sum(seconds for _, seconds in found) < SAMPLE_S and time.perf_counter() - begin < LONGEST_S):
        found.append(one.request(call, draws, step_s))
    return sum(tokens for tokens, _ in found) / sum(seconds for _, seconds in found), (before + look()) / 2


def measures(kinds: list[str], context: int, threads: int) -> list[Measure]:
    """Those of some kinds ("generate", "score", "train") that fit into the context. Raises ValueError for another."""
    decode = [SpeedTest(0, N_GEN, depth, batch, threads) for depth, batch in ((32, 1), (880, 1), (32, 8))]
    table: dict[str, list[Measure]] = {
        "generate": [Generating(test) for test in (SpeedTest(512, 0, 0, 1, threads), *decode)],
        "score": [Passing("score", 2, 512, "SCORES", 1)],
        "train": [Passing("train", 4, width, "TRAINS", 3) for width in (64, 1024)],
    }
    if unknown := set(kinds) - set(table):
        raise ValueError(f"expected some of {', '.join(table)}; got {', '.join(sorted(unknown))}")
    return [measure for kind in kinds for measure in table[kind] if measure.positions <= context]
