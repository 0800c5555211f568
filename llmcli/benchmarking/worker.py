"""One side of a comparison: a model kept warm in its own process; JSON lines in on stdin, one answer each on stdout.

    python -m llmcli.benchmarking.worker

{"load": {…}} answers with what was loaded, {"sample": {…}, "calls": n} with nanoseconds per call; an expected error is
answered with its exit code. Whatever else is printed goes to stderr. Ends when stdin does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any, TextIO

import torch

from llmcli import loading
from llmcli.benchmarking.environment import environment, kernels_in_use
from llmcli.benchmarking.model_speed import ModelBenchmark, SpeedTest, precision
from llmcli.benchmarking.random_model import random_model
from llmcli.device import choose_device
from llmcli.errors import LlmcliError


class Worker:
    """A model, once it is loaded, and its samples."""

    def __init__(self) -> None:
        self.benchmark: ModelBenchmark | None = None

    def load(
        self,
        *,
        model: str | None,
        random: str | None,
        dtype: str,
        device: str,
        offline: bool,
        quantize: str | None,
        cache_dtype: str,
    ) -> dict[str, Any]:
        """Load a checkpoint, or random weights in a shape → its facts. Raises ModelError, ResourceError, InputError."""
        where = choose_device(device)
        if random is None:
            loaded = loading.load(
                "default" if model is None else model,
                device=device,
                dtype=dtype,
                offline=offline,
                quantize=quantize,
                cache_dtype=cache_dtype,
            )
            opened, label = loaded.model, loaded.name
        else:
            kind: dict[str, Any] = {"quantize": quantize, "cache_dtype": cache_dtype}
            wanted = loading.DTYPES["float32" if dtype == "auto" else dtype]
            opened, label = random_model(random, dtype=wanted, device=device, **kind), f"random {random}"
        self.benchmark = ModelBenchmark(opened, [])
        return {
            "model": label,
            "dtype": precision(opened),
            "device": str(where),
            "context": opened.config.n_positions,
            "threads": torch.get_num_threads(),
            "kernels": kernels_in_use(where.type),
            "environment": environment(),
        }

    def sample(self, test: SpeedTest, calls: int) -> float:
        """Nanoseconds per call of one sample of several calls."""
        if self.benchmark is None:
            raise ValueError("a sample before anything is loaded")
        return sum(self.benchmark.sample(test) for _ in range(calls)) / calls

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one request."""
        try:
            if "load" in request:
                return self.load(**request["load"])
            return {"ns": self.sample(SpeedTest(**request["sample"]), request["calls"])}
        except LlmcliError as error:
            return {"error": str(error), "exit_code": error.exit_code}


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer until the requests end."""
    worker = Worker()
    for line in requests:
        answers.write(json.dumps(worker.answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks; its end closes stdin
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        serve(sys.stdin, out)
