"""transformers on torch, eager and with the decoding step compiled over a cache of fixed size."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

PACKAGES = ("transformers==5.23.0", "torch==2.13.0")
VARIANTS = {
    "float32": "float32",
    "float32, compiled": "float32",
    "bfloat16": "bfloat16",
    "bfloat16, compiled": "bfloat16",
}
POSITIONS = 1024  # of the compiled step's cache


def convert(models: Path, target: Path) -> None:
    """Nothing: it reads the checkpoints as they are."""


class Engine:
    """The model's forward in a loop of arg-max."""

    def load(self, models: Path, variant: str, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        dtype, _, compiled = variant.partition(", ")
        self.model: Any = AutoModelForCausalLM.from_pretrained(models / dtype, dtype=dtype).eval()
        self.step = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.fixed: dict[int, Any] | None = {} if compiled else None

    def generate(self, prompts: list[list[int]], n: int) -> tuple[list[float], list[list[int]]]:
        import torch

        cache, ids = self._cache(len(prompts)), torch.tensor(prompts)
        times, columns = [], []
        with torch.inference_mode():
            for _ in range(n):
                model = self.step if columns else self.model
                logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
                ids = logits[:, -1].argmax(-1, keepdim=True)
                columns.append(ids)
                times.append(time.perf_counter())
        return times, torch.cat(columns, 1).tolist()

    def _cache(self, batch: int) -> Any:
        """An empty cache: a growing one, or the one of fixed size for this batch, which the compiled step knows."""
        from transformers import DynamicCache, StaticCache

        config = self.model.config
        if self.fixed is None:
            return DynamicCache(config=config)
        cache = self.fixed.setdefault(batch, StaticCache(config, min(POSITIONS, config.n_positions)))
        cache.reset()
        return cache
