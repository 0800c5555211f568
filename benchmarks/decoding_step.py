"""One decoding step as one operator, beside the same operators one by one and beside reading its bytes.

    python benchmarks/decoding_step.py default                     # the embedded model
    python benchmarks/decoding_step.py gpt2 --dtype bfloat16 --depth 32,880 --batch 1,8

Each round takes the best of a few runs of each contestant, because one that lost a core says nothing; ratios are taken
within a round, and the table shows their medians, so that slow spells of the machine meet all alike.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from llmcli.benchmarking.random_model import random_model
from llmcli.loading import DTYPES, load

LARGEST = 400 << 20  # bytes that a read touches at once


def best_us(run: Callable[[], object], runs: int) -> float:
    """Microseconds of the fastest of some runs."""
    times = []
    for _ in range(runs):
        begin = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - begin)
    return min(times) / 1e3


@torch.inference_mode()
def measure(model: Any, depth: int, batch: int, rounds: int, runs: int) -> list[float]:
    """Medians: one operator, one by one, reading (µs); one by one over one operator; reading over one operator (%)."""
    _, state = model.start(torch.randint(model.config.vocab_size, (batch, depth)), capacity=depth + 1)
    token, stack = torch.zeros(batch, 1, dtype=torch.int64), model._stack
    size = model.bytes_read(depth, batch)
    block = torch.ones(min(size, LARGEST) // 4)

    def step(with_stack: Any) -> None:
        model._stack = with_stack
        state.set_lengths([depth] * batch)
        model.step(token, state)
        model._stack = stack

    samples = []
    for _ in range(rounds):
        fused, single, read = (
            best_us(lambda: step(stack), runs),
            best_us(lambda: step(None), runs),
            best_us(block.sum, runs),
        )
        read *= size / block.nbytes
        samples.append((fused, single, read, single / fused, 100 * read / fused))
    return [statistics.median(column) for column in zip(*samples, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="default, or a shape of `llmcli bench --random`")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--quantize", choices=("int8", "int4"))
    parser.add_argument("--threads", default="2")
    parser.add_argument("--depth", default="32")
    parser.add_argument("--batch", default="1")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    if args.model == "default":
        model = load("default", dtype=args.dtype, quantize=args.quantize).model
    else:
        model = random_model(args.model, dtype=DTYPES[args.dtype], device="cpu", quantize=args.quantize)
    print("| threads | batch | depth | one operator, µs | one by one, µs | reading, µs | ratio | % of reading |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for threads, batch, depth in (
        (int(t), int(b), int(d))
        for t in args.threads.split(",")
        for b in args.batch.split(",")
        for d in args.depth.split(",")
    ):
        torch.set_num_threads(threads)
        fused, single, read, ratio, share = measure(model, depth, batch, args.rounds, args.runs)
        figures = f"{fused:.0f} | {single:.0f} | {read:.0f} | {ratio:.2f} | {share:.0f}"
        print(f"| {threads} | {batch} | {depth} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
