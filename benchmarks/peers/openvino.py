"""OpenVINO GenAI: its own attention and an 8-bit cache, both by default; prefixes of prompts are cached."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("openvino-genai==2026.4.1.0", "optimum-intel[openvino]", "torch==2.13.0")
UNWANTED = ("torchvision",)  # not used here, and one built for GPUs breaks beside a torch that is not
VARIANTS = {"f32": "float32", "bf16": "bfloat16", "int8": "int8"}
WEIGHTS = {"f32": "fp32", "int8": "int8"}


def convert(models: Path, target: Path) -> None:
    """Its own export of a Hugging Face checkpoint, with 32-bit and with 8-bit weights."""
    tool = Path(sys.executable).with_name("optimum-cli")
    for kind, weights in WEIGHTS.items():
        options = ["--model", models / "float32", "--task", "text-generation-with-past", "--weight-format", weights]
        subprocess.run([tool, "export", "openvino", *options, target / kind], check=True)


class Engine:
    """A pipeline without its tokenizer's part: ids in, ids out."""

    def load(self, models: Path, variant: str, threads: int) -> None:
        import openvino_genai

        self.api: Any = openvino_genai
        self.pipeline = openvino_genai.LLMPipeline(
            str(models / "openvino" / ("int8" if variant == "int8" else "f32")),
            "CPU",
            INFERENCE_NUM_THREADS=threads,
            INFERENCE_PRECISION_HINT="f32" if variant == "f32" else "bf16",
        )

    def generate(self, prompts: list[list[int]], n: int) -> tuple[list[float], list[list[int]]]:
        import numpy as np
        from openvino import Tensor

        ids = np.array(prompts, np.int64)
        inputs = self.api.TokenizedInputs(Tensor(ids), Tensor(np.ones_like(ids)))
        result = self.pipeline.generate(inputs, max_new_tokens=n, min_new_tokens=n, ignore_eos=True, do_sample=False)
        times = [milliseconds / 1e3 for milliseconds in result.perf_metrics.raw_metrics.m_new_token_times]
        return times, [list(row) for row in result.tokens]  # its clock is perf_counter's
