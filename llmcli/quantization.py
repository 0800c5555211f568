"""A model in 8 or 4 bits as a directory: what `llmcli quantize` writes. Tensors and files; knows no terminal."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from llmcli.checkpoints import safetensors
from llmcli.data import copied_files
from llmcli.errors import InputError, ResourceError
from llmcli.loading import Loaded
from llmcli.nn import quantized

GENERATION = "generation_config.json"
CHUNK = 1 << 18  # weights that are compared at a time


@dataclass(frozen=True)
class Matrix:
    """One matrix: its bits, and the norm of its change over its own norm."""

    name: str
    bits: int
    relative_error: float


def check_output(output: Path, source: Path) -> None:
    """Raises InputError when the output is no place for a model, or is the model that is quantised."""
    if output.exists() and not output.is_dir():
        raise InputError(f"expected a directory for the model, got the file '{output}'")
    if output.exists() and output.resolve() == _directory(source).resolve():
        raise InputError(f"'{output}' is the model that is quantised; give another directory")


def save(loaded: Loaded, kind: str, output: Path, progress: Callable[[int], None] | None = None) -> list[Matrix]:
    """Quantise a plain model (loaded with pack=False) to "int8" or "int4" and write it → what became of each matrix.

    The directory is written beside its place and moved there when all of it is on disk. progress gets the number of
    matrices done. Raises ModelError for NaN, infinity or a group of zeros, ResourceError when the disk is full.
    """
    model = loaded.model
    rest = {name: parameter.detach() for name, parameter in model.named_parameters()}
    tensors, matrices = {}, []
    for name, layer in model.matrices():
        bits, weight = model.bits(kind, name), layer.weight.detach()
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
    source = _directory(loaded.path)
    files = copied_files(source, loaded.tokenizer, config, {})
    if (source / GENERATION).exists():
        files[GENERATION] = (source / GENERATION).read_text("utf-8")
    _write(output, files, tensors)
    return matrices


def size(path: Path) -> int:
    """Bytes of a checkpoint's weight files."""
    return sum(file.stat().st_size for file in safetensors.files(path))


def _directory(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _relative_error(weight: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> float:
    rows = max(1, CHUNK // max(1, weight.shape[1]))
    change = total = 0.0
    for w, part, scales in zip(weight.split(rows), q.split(rows), scale.split(rows), strict=True):
        change += float((quantized.dequantize(part, scales, w.shape[1]) - w.float()).square().sum(dtype=torch.float64))
        total += float(w.float().square().sum(dtype=torch.float64))
    return float((change / total) ** 0.5)


def _write(output: Path, files: dict[str, str], tensors: dict[str, torch.Tensor]) -> None:
    partial = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        partial.mkdir(parents=True)
        for name, text in files.items():
            (partial / name).write_text(text, encoding="utf-8")
        safetensors.save(partial / safetensors.SINGLE, tensors)
        if not output.exists():
            partial.rename(output)
        else:
            for file in sorted(partial.iterdir()):
                os.replace(file, output / file.name)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"no space left for a model in {output}; free some space") from None
        raise InputError(f"cannot write a model in {output}: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
