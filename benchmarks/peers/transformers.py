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
SCORES = TRAINS = ("float32", "bfloat16")
READS = SCORES  # only steps are compiled
POSITIONS = 1024  # of the compiled step's cache


def convert(models: Path, target: Path) -> None:
    """Nothing: it reads the checkpoints as they are."""


class Engine:
    """The model's forward in a loop of arg-max; another model for training, with autocast where it is bfloat16."""

    trained: Any = None

    def load(self, models: Path, variant: str, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self.models, self.variant = models, variant
        dtype, _, compiled = variant.partition(", ")
        self.model: Any = AutoModelForCausalLM.from_pretrained(models / dtype, dtype=dtype).eval()
        self.step = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.fixed: dict[int, Any] | None = {} if compiled else None

    def generate(self, prompts: list[list[int]], n: int) -> tuple[list[float], list[list[int]]]:
        import torch

        times, columns, ids = [], [], torch.tensor(prompts)
        with torch.inference_mode():
            cache = self._cache(len(prompts))
            for _ in range(n):
                model = self.step if columns else self.model
                logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
                ids = logits[:, -1].argmax(-1, keepdim=True)
                columns.append(ids)
                times.append(time.perf_counter())
        return times, torch.cat(columns, 1).tolist()

    def score(self, rows: list[list[int]]) -> float:
        """One window after the other through the model's own loss, as its documentation computes perplexity."""
        import torch

        total = 0.0
        with torch.inference_mode():
            for ids in torch.tensor(rows).split(1):
                total += float(self.model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        return total

    def train(self, rows: list[list[int]]) -> float:
        import torch
        from transformers import AutoModelForCausalLM

        if self.trained is None:
            off = dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), 0.0)
            self.trained = AutoModelForCausalLM.from_pretrained(self.models / "float32", dtype="float32", **off).train()
            self.optimizer = torch.optim.AdamW(self.trained.parameters(), fused=True)
        ids = torch.tensor(rows)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.variant == "bfloat16"):
            loss = self.trained(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss)

    def _cache(self, batch: int) -> Any:
        """An empty cache: a growing one, or the one of fixed size for this batch, which the compiled step knows."""
        from transformers import DynamicCache, StaticCache

        config = self.model.config
        if self.fixed is None:
            return DynamicCache(config=config)
        cache = self.fixed.setdefault(batch, StaticCache(config, min(POSITIONS, config.max_position_embeddings)))
        cache.reset()
        return cache
