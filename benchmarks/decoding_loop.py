"""What the decoding loop itself costs per step, and what of a greedy step is not spent in kernels.

    python -m benchmarks.decoding_loop

The first: CPU time of one thread, best of five runs of 1,000 steps, of a model that answers at once, with the embedded
model's vocabulary, so that other work on the machine does not enter. The second: whole steps of the embedded model and
of GPT-2 124M with random weights: what is outside our operators, and the operators of a model of as many layers that is
only 64 wide, which take more than the dispatcher's part. A minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.document import arguments, kept
from llmcli.benchmarking.random_model import random_model
from llmcli.benchmarking.tables import figure
from llmcli.generation.loop import Request, generate
from llmcli.generation.sampling import Sampling
from llmcli.hub import DEFAULT
from llmcli.loading import DTYPES, load
from llmcli.models.gpt2 import GPT2
from llmcli.nn import causal, decoder
from llmcli.tokenizer import Tokenizer

STEPS = 1000
WRITTEN, ROUNDS = 96, 7
GOALS = {"gpt2": 0.05, "default": 0.5}  # of a step, outside kernels
PRECISIONS = {"float32": None, "bfloat16": None, "int8": "int8", "int4": "int4"}  # what quantize is given
KIND = "decoding-loop"
COMMAND = "python -m benchmarks.decoding_loop"
COLUMNS = (
    "model",
    "precision",
    "step, µs",
    "outside operators, µs",
    "dispatcher at most, µs",
    "share",
    "goal",
    "verdict",
)
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, stop string": {"stop": ("\nUser:",)},
    "temperature 0.8": {"sampling": Sampling(temperature=0.8)},
    "temperature 0.8, top-k 50, top-p 0.95": {"sampling": Sampling(temperature=0.8, top_k=50, top_p=0.95)},
    "repetition penalty 1.1": {"sampling": Sampling(repetition_penalty=1.1)},
    "five log-probabilities": {"logprobs": 5},
}


class Instant:
    """Satisfies the loop's model and state: the same logits every time, peaked as those of a language model."""

    def __init__(self, batch: int, vocab_size: int) -> None:
        # Zipf's law: the n-th likeliest token has probability in proportion to 1 / n.
        likely = -torch.arange(1.0, vocab_size + 1).log()
        generator = torch.Generator().manual_seed(0)
        self.logits = torch.stack([likely[torch.randperm(vocab_size, generator=generator)] for _ in range(batch)])

    def start(self, ids: Tensor, lengths: Tensor | None = None, *, capacity: int | None = None) -> tuple[Tensor, Any]:
        return self.logits[: len(ids)], self

    def step(self, ids: Tensor, state: Any) -> Tensor:
        return self.logits[: len(ids)]

    def select(self, rows: Tensor) -> None:
        pass


def seconds_per_step(tokenizer: Tokenizer, batch: int, settings: dict[str, Any]) -> float:
    """CPU seconds of one step of `batch` rows."""
    model = Instant(batch, tokenizer.vocab_size)
    requests = [Request([1, 2, 3], max_tokens=STEPS, seed=seed, **settings) for seed in range(batch)]
    best = float("inf")
    for _ in range(5):
        begin = time.process_time()
        written = sum(1 for _ in generate(model, requests, tokenizer, context=STEPS + 3))
        best = min(best, (time.process_time() - begin) * batch / written)
    return best


class Numbers:
    """A vocabulary without an end of text."""

    eos_id = None

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def token_bytes(self, token: int, /) -> bytes:
        return b"a"


def timed(model: Any) -> tuple[float, float]:
    """Microseconds of a greedy step, and of these inside our operators; medians of the rounds."""
    inside = 0

    def clocked(operator: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            nonlocal inside
            begin = time.perf_counter_ns()
            result = operator(*given, **named)
            inside += time.perf_counter_ns() - begin
            return result

        return run

    config = model.config
    request, found = Request([1] * 32, max_tokens=WRITTEN + 1), []
    with (
        mock.patch.object(decoder, "decoder", clocked(decoder.decoder)),
        mock.patch.object(decoder, "linear_argmax", clocked(decoder.linear_argmax)),
        mock.patch.object(decoder, "argmax", clocked(decoder.argmax)),
        mock.patch.object(causal, "argmax", clocked(causal.argmax)),
    ):
        for _ in range(ROUNDS):
            events = generate(model, [request], Numbers(config.vocab_size), context=config.n_positions)
            next(events)  # the prompt
            begin, inside = time.perf_counter_ns(), 0
            for _ in events:
                pass
            found.append((time.perf_counter_ns() - begin, inside))
    return tuple(median(column) / WRITTEN / 1e3 for column in zip(*found, strict=True))  # type: ignore[return-value]


def narrow(n_layer: int) -> Any:
    """GPT-2 of that many layers, as narrow as packed layers can be."""
    config = GPT2.Config(vocab_size=64, n_positions=256, n_embd=64, n_layer=n_layer, n_head=1)
    return GPT2(config).initialize().pack().eval()


def overhead(name: str, precision: str, threads: int) -> dict[str, float]:
    """Microseconds of a step, and those of it that no kernel takes."""
    dtype, quantize = precision if precision in DTYPES else "float32", PRECISIONS[precision]
    if name == "default":
        model = load(name, dtype=dtype, quantize=quantize).model
    else:
        model = random_model(name, dtype=DTYPES[dtype], device="cpu", quantize=quantize)
    torch.set_num_threads(1)
    _, dispatched = timed(narrow(model.config.n_layer))
    torch.set_num_threads(threads)
    step, inside = timed(model)
    return {"step_us": step, "outside_us": step - inside, "dispatch_us": dispatched}


def rows(document: dict[str, Any]) -> Iterator[list[str]]:
    """A line per model and precision."""
    for name, precisions in document["results"].items():
        goal = document["goal"][name]
        for precision, found in precisions.items():
            share = (found["outside_us"] + found["dispatch_us"]) / found["step_us"]
            numbers = [figure(found[key]) for key in ("step_us", "outside_us", "dispatch_us")]
            verdict = "met" if share <= goal else "missed"
            yield [name, precision, *numbers, f"{100 * share:.1f} %", f"≤ {100 * goal:.0f} %", verdict]


def loop_table() -> None:
    """Print what the loop costs in each setting."""
    torch.set_num_threads(1)
    tokenizer = Tokenizer.open(DEFAULT)
    tokenizer.eos_id = None  # a draw of the end of text would end the measurement
    print("| µs a step | batch 1 | batch 8 |\n| --- | --- | --- |")
    for name, settings in SETTINGS.items():
        figures = [f"{1e6 * seconds_per_step(tokenizer, batch, settings):.0f}" for batch in (1, 8)]
        print(f"| {name} | {' | '.join(figures)} |")


if __name__ == "__main__":
    given = arguments(__doc__)
    loop_table()
    with kept(KIND, given.output) as document:
        document |= {"goal": GOALS}
        document["results"] = {
            name: {precision: overhead(name, precision, given.threads) for precision in PRECISIONS} for name in GOALS
        }
