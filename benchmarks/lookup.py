"""Decoding with `--lookup` beside decoding without, on text that repeats itself, on text that does not, and at worst.

    python benchmarks/lookup.py [--output benchmarks/results/lookup.json]

Both write the same tokens, in turns, on one thread, whose CPU time is taken from the first token to the last, so
that other work on the machine enters little. Ratios within a round give the interval of their median; the verdict is on
the fastest run of each side, because the other runs were disturbed.

"repeats" is greedy text after eight tokens written eight times; "begins to repeat" is greedy text after eight tokens,
which gets into circles by and by; "does not" is drawn at temperature 1; "at worst" is the same with guesses that are
all wrong. Exits with 3 where tokens differ.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from llmcli.benchmarking.environment import environment
from llmcli.benchmarking.random_model import random_model
from llmcli.benchmarking.statistics import estimate_ratio
from llmcli.generation.loop import Request, generate
from llmcli.generation.sampling import Sampling
from llmcli.generation.speculation import Lookup, Propose, Speculating
from llmcli.loading import load

GUESSES = 8
GOALS = {"begins to repeat": None, "repeats": 1.5, "does not": 0.95, "at worst": None}


@dataclass(frozen=True)
class Words:
    """A vocabulary without an end of text, so that all texts are as long as asked for."""

    vocab_size: int
    eos_id: int | None = None

    def token_bytes(self, token: int) -> bytes:
        return b"x"


def wrong(plain: Sequence[int]) -> Callable[[], Propose]:
    """Begins guesses of which the first is never the next token of a text."""
    return lambda: lambda text, n: [(plain[min(len(text), len(plain) - 1)] + 1) % 1000] * n


def run(model: Any, request: Request, words: Words) -> tuple[list[int], float]:
    """The tokens, and the CPU seconds from the first to the last."""
    tokens, begin = [], 0.0
    for event in generate(model, [request], words, context=request.max_tokens + len(request.ids) + 1):
        begin = begin or time.process_time()
        assert event.token is not None
        tokens.append(event.token)
    return tokens, time.process_time() - begin


def compare(name: str, model: Any, vocab_size: int, length: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each kind of text."""
    rows, words, start = [], Words(vocab_size), list(range(100, 108))
    greedy, _ = run(model, Request(start, max_tokens=length), words)
    for kind, goal in GOALS.items():
        prompt = greedy[:8] * 8 if kind == "repeats" else start
        sampling = Sampling(temperature=0.0 if "repeat" in kind else 1.0)
        request = Request(prompt, sampling, seed=1, max_tokens=length)
        expected, _ = run(model, request, words)
        begin = wrong([*prompt, *expected]) if kind == "at worst" else Lookup
        plain, ahead, counts = [], [], {}
        for _ in range(rounds):
            plain.append(run(model, request, words)[1])
            reader = Speculating(model, begin, GUESSES)
            tokens, seconds = run(reader, request, words)
            ahead.append(seconds)
            counts = reader.details()["completion_tokens_details"]
            if tokens != expected:
                sys.exit(3)
        ratio = estimate_ratio(plain, ahead)
        row = {"model": name, "text": kind, "tokens": length, "goal": goal, "speedup": asdict(ratio), **counts}
        fastest = min(plain) / min(ahead)
        row |= {"fastest": fastest, "plain_ms": 1e3 * min(plain), "lookup_ms": 1e3 * min(ahead)}
        row["verdict"] = None if goal is None else "met" if fastest >= goal else "below"
        rows.append(row)
        interval = "" if ratio.low is None else f" ({ratio.low:.2f}–{ratio.high:.2f})"
        times = f"{row['plain_ms']:.1f} | {row['lookup_ms']:.1f}"
        print(
            f"| {name} | {kind} | {times} | {fastest:.2f} | {ratio.median:.2f}{interval} | {row['verdict'] or '-'} |",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | text | plain, ms | --lookup 8, ms | × | × median (95 %) | verdict |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    embedded = load("default")
    results = compare("embedded, bfloat16", embedded.model, embedded.tokenizer.vocab_size, 240, 4 * arguments.rounds)
    model = random_model("gpt2", dtype=torch.bfloat16, device="cpu", quantize="int8")
    results += compare("GPT-2 124M, int8", model, 50257, 128, arguments.rounds)
    if arguments.output:
        document = {
            "schema": "llmcli/bench-lookup/1", "guesses": GUESSES, "environment": environment(),
            "results": results,
        }  # fmt: skip
        arguments.output.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
