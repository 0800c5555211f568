"""CTranslate2; on AMD it picks AVX2 unless told otherwise, and it has no bfloat16 on CPUs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

PACKAGES = ("ctranslate2==4.8.5", "torch==2.13.0", "transformers==5.23.0")
ENVIRONMENT = {"CT2_FORCE_CPU_ISA": "AVX512"}
VARIANTS = {"float32": "float32", "int8": "int8"}
SCORES = tuple(VARIANTS)


def convert(models: Path, target: Path) -> None:
    """Its own converter for Hugging Face checkpoints."""
    from ctranslate2.converters import TransformersConverter

    for kind in VARIANTS:
        TransformersConverter(str(models / "float32")).convert(str(target / kind), quantization=kind)


class Engine:
    """A generator that is asked for one batch at a time."""

    def load(self, models: Path, variant: str, threads: int) -> None:
        import ctranslate2

        path = models / "ctranslate2" / variant
        self.generator: Any = ctranslate2.Generator(
            str(path), compute_type=variant, intra_threads=threads, inter_threads=1
        )
        self.vocabulary = ctranslate2_vocabulary(path)

    def generate(self, prompts: list[list[int]], n: int) -> tuple[list[float], list[list[int]]]:
        times = [0.0] * n

        def note(result: Any) -> bool:
            times[result.step] = time.perf_counter()  # the last row of a step stays
            return False

        results = self.generator.generate_batch(
            self._tokens(prompts),
            min_length=n,
            max_length=n,
            include_prompt_in_result=False,
            callback=note,
        )
        return times, [result.sequences_ids[0] for result in results]

    def score(self, rows: list[list[int]]) -> float:
        return -sum(sum(result.log_probs) for result in self.generator.score_batch(self._tokens(rows)))

    def _tokens(self, rows: list[list[int]]) -> list[list[str]]:
        return [[self.vocabulary[token] for token in row] for row in rows]


def ctranslate2_vocabulary(path: Path) -> list[str]:
    """The tokens of a converted model, in order."""
    import json

    tokens: list[str] = json.loads((path / "vocabulary.json").read_text(encoding="utf-8"))
    return tokens
