"""How fast a model reads prompts (prefill) and writes tokens (decode), at depths, batch sizes and thread counts.

A prefill test reads n_prompt random tokens that follow n_depth others; a decode test writes n_gen tokens, each the
likeliest, after n_depth others (at depth 0, after one). Only the tokens that the test names are timed. Every sample
draws fresh tokens. The tests take turns, one sample each, so that slow spells of the machine meet all of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmcli.benchmarking.ceilings import Ceilings
from llmcli.benchmarking.statistics import Estimate, disturbances, estimate
from llmcli.benchmarking.timing import Clock
from llmcli.errors import InputError
from llmcli.generation.rows import likeliest
from llmcli.nn.recorded import recorded
from llmcli.ops import argmax


@dataclass(frozen=True)
class SpeedTest:
    """One test: either n_prompt or n_gen is 0."""

    n_prompt: int
    n_gen: int
    n_depth: int
    n_batch: int
    n_threads: int

    @property
    def name(self) -> str:
        """`pp512`, `tg128`, `tg128 @ d880`: prompt processing, text generation, depth."""
        size = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        return f"{size} @ d{self.n_depth}" if self.n_depth else size

    @property
    def tokens(self) -> int:
        """Tokens that one sample times, over all rows of the batch."""
        return (self.n_prompt + self.n_gen) * self.n_batch

    @property
    def positions(self) -> int:
        """Positions that a row fills."""
        return self.n_prompt + self.n_gen + (self.n_depth if self.n_prompt else max(1, self.n_depth))


def speed_tests(
    prompts: Sequence[int],
    generations: Sequence[int],
    depths: Sequence[int],
    batches: Sequence[int],
    threads: Sequence[int],
    *,
    context: int,
) -> list[SpeedTest]:
    """Every prefill and every decode size at every depth, batch size and thread count; size 0 is left out.

    Raises InputError when a test does not fit into `context` positions, or when there is no test.
    """
    sizes = [(n, 0) for n in prompts if n] + [(0, n) for n in generations if n]
    tests = [SpeedTest(*size, d, b, t) for t in threads for b in batches for d in depths for size in sizes]
    if not tests:
        raise InputError("nothing to measure: --prompt-tokens and --gen-tokens are both 0")
    for test in tests:
        if test.positions > context:
            raise InputError(
                f"{test.name} needs {test.positions} positions and the model has {context}: "
                "expected a smaller --prompt-tokens, --gen-tokens or --depth"
            )
    return tests


class ModelBenchmark:
    """The samples of several tests on one model; `samples[test]` holds nanoseconds of finished samples."""

    def __init__(
        self, model: Any, tests: Sequence[SpeedTest], *, seed: int = 0, clock: Clock = time.perf_counter_ns
    ) -> None:
        self.model = model
        self.tests = list(tests)
        self.clock = clock
        self.samples: dict[SpeedTest, list[int]] = {test: [] for test in tests}
        self.weight: Tensor = next(model.parameters())
        self.steps = recorded(model, self.weight.device)
        self.generator = torch.Generator().manual_seed(seed)

    def run(self, repetitions: int, *, warmup: int = 1) -> Iterator[int]:
        """Measure; yields the number of samples taken so far, warm-up included, after each."""
        done = 0
        for round_index in range(-warmup, repetitions):
            for test in self.tests if round_index % 2 == 0 else reversed(self.tests):
                elapsed = self.sample(test)
                if round_index >= 0:
                    self.samples[test].append(elapsed)
                done += 1
                yield done

    @torch.inference_mode()
    def sample(self, test: SpeedTest) -> int:
        """Nanoseconds of one sample."""
        torch.set_num_threads(test.n_threads)
        state, logits = None, None
        depth = test.n_depth if test.n_prompt else max(1, test.n_depth)
        if depth:
            logits, state = self.steps.start(self._tokens(test.n_batch, depth), capacity=test.positions)
        prompt = self._tokens(test.n_batch, test.n_prompt)
        start = self._now()
        if logits is not None and test.n_gen:
            tokens, _ = argmax(logits)
            for _ in range(test.n_gen):
                tokens, _ = likeliest(self.steps, tokens[:, None], state, logits.shape[1])
        elif state is None:
            self.steps.start(prompt, capacity=test.positions)
        else:
            self.steps.step(prompt, state)
        return self._now() - start

    def _tokens(self, batch: int, length: int) -> Tensor:
        ids = torch.randint(self.model.config.vocab_size, (batch, length), generator=self.generator)
        return ids.to(self.weight.device)

    def _now(self) -> int:
        if self.weight.is_cuda:
            torch.cuda.synchronize(self.weight.device)
        return self.clock()

    def measure_ceilings(self, ceilings: Ceilings) -> None:
        """Look at every ceiling that the results will need."""
        for test in self.tests:
            torch.set_num_threads(test.n_threads)
            limit_ns(self.model, test, ceilings)

    def results(self, ceilings: Ceilings) -> list[SpeedResult]:
        """One result per test that has a sample."""
        return [self._result(test, ceilings) for test in self.tests if self.samples[test]]

    def _result(self, test: SpeedTest, ceilings: Ceilings) -> SpeedResult:
        times = self.samples[test]
        speed = estimate([1e9 * test.tokens / nanoseconds for nanoseconds in times])
        torch.set_num_threads(test.n_threads)
        limit = limit_ns(self.model, test, ceilings)
        return SpeedResult(
            test=test,
            device=str(self.weight.device),
            dtype=precision(self.model),
            cache_dtype=str(getattr(self.model, "cache_dtype", None) or self.weight.dtype).removeprefix("torch."),
            speed=speed,
            roofline_pct=100 * limit * speed.median / (1e9 * test.tokens),
            samples_ns=tuple(times),
            warnings=tuple(disturbances(times)),
        )


def precision(model: Any) -> str:
    """What the matrices are stored in: `float32`, `bfloat16`, `int8`, `int4`."""
    name: str = getattr(model, "quantized", None) or str(next(model.parameters()).dtype).removeprefix("torch.")
    return name


def limit_ns(model: Any, test: SpeedTest, ceilings: Ceilings) -> float:
    """Nanoseconds that a test needs at the ceilings: the larger of its reading and its arithmetic, step by step.

    The roofline model (Williams, Waterman, Patterson, 2009). A step reads every weight that it multiplies by, and the
    keys and values of all earlier positions of every row, once each; it computes every product of `model.flops`.
    """
    dtype = precision(model)
    peak = ceilings.get("int8" if dtype == "int4" else dtype)  # 4 bits are multiplied as 8
    depth = test.n_depth if test.n_prompt else max(1, test.n_depth)
    steps = [(test.n_prompt, depth)] if test.n_prompt else [(1, depth + index) for index in range(test.n_gen)]
    total = 0.0
    for tokens, past in steps:
        read = model.bytes_read(past, test.n_batch)
        reading = read / ceilings.get("read", read)
        total += max(reading, model.flops(tokens, past) * test.n_batch / peak)
    return total


@dataclass(frozen=True)
class SpeedResult:
    """Tokens per second of one test, and the percentage of the machine's ceiling that this is."""

    test: SpeedTest
    device: str
    dtype: str
    cache_dtype: str
    speed: Estimate
    roofline_pct: float
    samples_ns: tuple[int, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields of one test, without the environment."""
        return {
            "test": self.test.name,
            "n_prompt": self.test.n_prompt,
            "n_gen": self.test.n_gen,
            "n_depth": self.test.n_depth,
            "n_batch": self.test.n_batch,
            "n_threads": self.test.n_threads,
            "device": self.device,
            "dtype": self.dtype,
            "cache_dtype": self.cache_dtype,
            "median_ts": round(self.speed.median, 3),
            "ci_low_ts": None if self.speed.low is None else round(self.speed.low, 3),
            "ci_high_ts": None if self.speed.high is None else round(self.speed.high, 3),
            "samples_ns": list(self.samples_ns),
            "roofline_pct": round(self.roofline_pct, 6),
            "warnings": list(self.warnings),
        }
