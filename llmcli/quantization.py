"""A model in 8 or 4 bits as a directory: what `llmcli quantize` writes. Tensors and files; knows no terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from llmcli import calibration, description
from llmcli.checkpoints import directory, safetensors
from llmcli.data.corpus import copied_files
from llmcli.loading import Loaded
from llmcli.nn import quantized

CHUNK = 1 << 18  # weights that are compared at a time


@dataclass(frozen=True)
class Matrix:
    """One matrix: its bits, and the norm of its change over its own norm."""

    name: str
    bits: int
    relative_error: float


def save(
    loaded: Loaded,
    kind: str,
    output: Path,
    progress: Callable[[int], None] | None = None,
    moments: Mapping[str, torch.Tensor] | None = None,
) -> list[Matrix]:
    """Quantise a plain model (loaded with pack=False) to "int8" or "int4" and write it → what became of each matrix.

    Matrices whose inputs have moments, by name, are rounded by `calibration`. The directory is written beside its place
    and moved there when all of it is on disk. progress gets the number of matrices done. Raises ModelError for NaN,
    infinity or a group of zeros, ResourceError when the disk is full.
    """
    model = loaded.model
    rest = {name: parameter.detach() for name, parameter in model.named_parameters()}
    tensors, matrices = {}, []
    for name, layer in model.matrices():
        bits, weight = model.bits(kind, name), layer.weight.detach()
        if moments and name in moments:
            q, scale = calibration.quantize(weight, bits, f"{name}.weight", moments[name])
        else:
            q, scale = quantized.quantize(weight, bits, f"{name}.weight")
        for leaf, tensor in zip(quantized.LEAVES, (q, scale), strict=True):
            tensors[model.stored(f"{name}.{leaf}")] = tensor
        matrices.append(Matrix(name, bits, _relative_error(weight, q, scale)))
        rest.pop(f"{name}.weight", None)
        if progress is not None:
            progress(len(matrices))
    tensors |= {model.stored(name): tensor for name, tensor in rest.items()}
    config = {
        **loaded.config,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        quantized.KEY: quantized.describe(kind),
    }
    files = copied_files(description.tokenizer_settings(loaded.path), loaded.tokenizer, config, {})
    with directory.writing(output) as partial:
        directory.write_side_files(partial, files, loaded.path)
        safetensors.save(partial / safetensors.SINGLE, tensors)
    return matrices


def _relative_error(weight: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> float:
    rows = max(1, CHUNK // max(1, weight.shape[1]))
    change = total = 0.0
    for w, part, scales in zip(weight.split(rows), q.split(rows), scale.split(rows), strict=True):
        change += float((quantized.dequantize(part, scales, w.shape[1]) - w.float()).square().sum(dtype=torch.float64))
        total += float(w.float().square().sum(dtype=torch.float64))
    return float((change / total) ** 0.5)
