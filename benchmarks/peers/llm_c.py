"""llm.c's trainer for CPUs: plain C with OpenMP in float32; it only trains, and does not clip gradients.

A step of 4 x 1,024 takes some 16 GB, because it keeps every head's scores and their gradients.
"""

from __future__ import annotations

import ctypes
import json
import struct
import subprocess
from pathlib import Path
from typing import Any

PACKAGES: tuple[str, ...] = ()
VARIANTS = {"float32": "float32"}
GENERATES: tuple[str, ...] = ()
TRAINS = tuple(VARIANTS)
FAMILIES = ("gpt2",)
SOURCE = "https://github.com/karpathy/llm.c"
COMPILE = ("gcc", "-Ofast", "-fno-finite-math-only", "-march=native", "-fopenmp", "-shared", "-fPIC")
STEP = """
#define TESTING
#include "train_gpt2.c"
static GPT2 model;
static int steps;
void load(const char* path) { gpt2_build_from_checkpoint(&model, path); }
float step(int* inputs, int* targets, int B, int T) {
    if (model.acts_memory && (B != model.batch_size || T != model.seq_len)) {
        free(model.acts_memory);
        free(model.inputs);
        free(model.targets);
        free(model.grads_memory);
        free(model.grads_acts_memory);
        model.acts_memory = model.grads_memory = model.grads_acts_memory = NULL;
    }
    gpt2_forward(&model, inputs, targets, B, T);
    gpt2_zero_grad(&model);
    gpt2_backward(&model);
    gpt2_update(&model, 1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, ++steps);
    return model.mean_loss;
}
"""
BLOCK = (
    "ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias",
    "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias",
)  # fmt: skip


def convert(models: Path, target: Path) -> None:
    """The program as a library, and its file of weights: those of each kind for all layers, one kind after another."""
    source = models.parents[1] / "llm.c"
    if not source.exists():
        subprocess.run(["git", "clone", "--quiet", "--depth", "1", SOURCE, source], check=True)
    (target / "step.c").write_text(STEP, "utf-8")
    subprocess.run([*COMPILE, f"-I{source}", target / "step.c", "-o", target / "step.so", "-lm"], check=True)
    from safetensors.torch import load_file

    config = json.loads((models / "float32" / "config.json").read_text("utf-8"))
    weights, layers, width = load_file(models / "float32" / "model.safetensors"), config["n_layer"], config["n_embd"]
    size = config["vocab_size"]
    padded = -(-size // 128) * 128
    header = [20240326, 3, config["n_positions"], size, layers, config["n_head"], width, padded]
    names = ["wte.weight", "wpe.weight", *(f"h.{layer}.{name}" for name in BLOCK for layer in range(layers))]
    with (target / "weights.bin").open("wb") as file:
        file.write(struct.pack("256i", *header, *[0] * (256 - len(header))))
        for name in [*names, "ln_f.weight", "ln_f.bias"]:
            tensor = weights[f"transformer.{name}"]
            if ".c_" in name and tensor.dim() == 2:  # stored (in, out)
                tensor = tensor.T.contiguous()
            file.write(tensor.numpy().tobytes())
            if name == "wte.weight":
                file.write(bytes(4 * (padded - size) * width))


class Engine:
    """A step of its training loop."""

    def load(self, models: Path, variant: str, threads: int) -> None:
        """The weights; threads come by OMP_NUM_THREADS."""
        folder = models / "llm_c"
        self.program: Any = ctypes.CDLL(str(folder / "step.so"))
        self.program.step.restype = ctypes.c_float
        self.program.load(str(folder / "weights.bin").encode())

    def train(self, rows: list[list[int]]) -> float:
        """Each token is taught the next one, the last the first: its fast products want multiples of 8 positions."""
        batch, length = len(rows), len(rows[0])
        numbers = ctypes.c_int * (batch * length)
        inputs = numbers(*(token for row in rows for token in row))
        targets = numbers(*(token for row in rows for token in [*row[1:], row[0]]))
        return float(self.program.step(inputs, targets, batch, length))
