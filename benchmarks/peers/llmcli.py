"""llmcli itself, from this checkout."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

PACKAGES: tuple[str, ...] = ()
VARIANTS = {"float32": "float32", "bfloat16": "bfloat16", "int8": "int8", "int4": "int4"}
SCORES = tuple(VARIANTS)
TRAINS = ("float32", "bfloat16")
# What `training.memory.keep` sets for `llmcli train` of such a model before threads; a worker has some by then.
TRAINING = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


def convert(models: Path, target: Path) -> None:
    """`llmcli quantize` to 8 and 4 bits, from bfloat16."""
    from llmcli import loading, quantization

    loaded = loading.load(models / "bfloat16", pack=False)
    for kind in ("int8", "int4"):
        quantization.save(loaded, kind, target / kind)


class Engine:
    """The packed model and its state, as the decoding loop uses them; another model for training."""

    trainer: Any = None

    def load(self, models: Path, variant: str, threads: int) -> None:
        import torch

        from llmcli import loading

        torch.set_num_threads(threads)
        self.models, self.variant = models, variant
        self.model = loading.load(models / "llmcli" / variant if variant.startswith("int") else models / variant).model

    def generate(self, prompts: list[list[int]], n: int) -> tuple[list[float], list[list[int]]]:
        import torch

        from llmcli.generation.rows import likeliest
        from llmcli.generation.sampling import greedy, require_finite

        times, columns = [], []
        with torch.inference_mode():
            logits, state = self.model.start(torch.tensor(prompts), capacity=len(prompts[0]) + n - 1)
            tokens = greedy(logits)
            for _ in range(n):
                if columns:
                    tokens, highest = likeliest(self.model, columns[-1], state, logits.shape[1])
                    require_finite(highest)
                columns.append(tokens[:, None])
                times.append(time.perf_counter())
        return times, torch.cat(columns, 1).tolist()

    def score(self, rows: list[list[int]]) -> float:
        import torch

        with torch.inference_mode():
            return -float(self.model.logprobs(torch.tensor(rows)).sum())

    def train(self, rows: list[list[int]]) -> float:
        import torch

        from llmcli import loading
        from llmcli.training.recipe import Recipe
        from llmcli.training.trainer import DROPOUTS, Trainer

        if self.trainer is None:
            loaded = loading.load(self.models / "float32", pack=False, changes=dict.fromkeys(DROPOUTS, 0.0))
            recipe = Recipe(iters=1_000_000, batch_size=len(rows), dtype=self.variant)
            self.trainer = Trainer(loaded.model, self, recipe)
        ids = torch.tensor(rows)
        self.rows = (ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
        return float(self.trainer.step().loss)

    def batch(self, first: int, size: int) -> tuple[Any, Any]:
        """What the trainer asks for: the rows of this call."""
        return self.rows
