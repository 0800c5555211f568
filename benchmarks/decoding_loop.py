"""What the decoding loop itself costs per step: a model that answers at once, the embedded model's vocabulary.

    python benchmarks/decoding_loop.py

CPU time of one thread, best of five runs of 1,000 steps, so that other work on the machine does not enter.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from llmcli.generation.loop import Request, generate
from llmcli.generation.sampling import Sampling
from llmcli.hub import DEFAULT
from llmcli.tokenizer import Tokenizer

STEPS = 1000
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


def main() -> None:
    torch.set_num_threads(1)
    tokenizer = Tokenizer.open(DEFAULT)
    tokenizer.eos_id = None  # a draw of the end of text would end the measurement
    print("| µs a step | batch 1 | batch 8 |\n| --- | --- | --- |")
    for name, settings in SETTINGS.items():
        figures = [f"{1e6 * seconds_per_step(tokenizer, batch, settings):.0f}" for batch in (1, 8)]
        print(f"| {name} | {' | '.join(figures)} |")


if __name__ == "__main__":
    main()
