"""A prompt's keys and values in a file, so that the next run reads only what it adds to the prompt.

A safetensors file: the tokens, the filled blocks of the cache, and in its header everything that decides their bits.
Knows files and models; knows no text.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmcli import __version__
from llmcli.checkpoints import safetensors
from llmcli.errors import ModelError
from llmcli.generation.prefix import Remembering, shared
from llmcli.loading import Loaded
from llmcli.ops import registry

SCHEMA = "llmcli/prompt-cache/1"


class PromptCache(Remembering):
    """A model as the loop takes it, which goes on from the prompt of a file and leaves its first one there.

    A file that begins with the whole prompt stays as it is. Raises ModelError for a file that belongs to another model,
    precision or build, and ResourceError where it cannot be written.
    """

    def __init__(self, loaded: Loaded, path: Path):
        self._path, self._facts, self._begun = path, facts(loaded), False
        super().__init__(loaded.model, *(read(path, self._facts, loaded.model) if path.exists() else ((), None)))

    def start(self, ids: Tensor, lengths: Tensor | None = None, *, capacity: int | None = None) -> tuple[Tensor, Any]:
        """Read the prompt (1, T); what is read after it, where a text slides along, is no prompt."""
        if self._begun:
            return self._model.start(ids, lengths, capacity=capacity)
        self._begun, held = True, self.ids
        logits, state = super().start(ids, lengths, capacity=capacity)
        if shared(held, self.ids) < len(self.ids):
            tensors = {"ids": torch.tensor(self.ids), "cache": state.dump()}
            noted = {**self._facts, "sha256": digest(tensors)}
            safetensors.save(self._path, tensors, noted)
        return logits, state


def facts(loaded: Loaded) -> dict[str, str]:
    """What decides the bits of a cache: weights, configuration, precisions, kernels."""
    engine = loaded.engine()
    binary = getattr(registry.kernels, "__file__", None)
    return {
        "schema": SCHEMA,
        "model_sha256": str(engine["model_sha256"]),
        "config_sha256": hashlib.sha256(json.dumps(loaded.config, sort_keys=True).encode()).hexdigest(),
        "dtype": str(engine["dtype"]),
        "quantized": str(engine["quantized"]),
        "cache_dtype": str(engine["cache_dtype"]),
        "device": loaded.device.type,
        "version": f"{__version__} with torch {torch.__version__}",
        "kernels": str(engine["kernels"]),
        "kernels_sha256": "none" if binary is None else hashlib.sha256(Path(binary).read_bytes()).hexdigest(),
    }


def read(path: Path, expected: dict[str, str], model: Any) -> tuple[list[int], Any]:
    """The tokens of a file and their state. Raises ModelError for what was not written for this model and build."""
    tensors = safetensors.Weights([path])
    noted = tensors.metadata
    for name, value in expected.items():
        if noted.get(name) != value:
            got = repr(noted[name][:80]) if name in noted else "none"
            raise ModelError(
                f"{path}: expected a prompt cache of {name} {value!r}, got {got}; name another file, or delete this one"
            )
    try:
        ids, cache = tensors["ids"], tensors["cache"]
        if ids.dtype != torch.int64 or ids.dim() != 1 or noted.get("sha256") != digest({"ids": ids, "cache": cache}):
            raise ValueError("its bytes are not those that were written")
        return ids.tolist(), model.restore(cache, len(ids))
    except (KeyError, ValueError) as error:
        raise ModelError(f"{path}: expected a whole prompt cache, got a damaged one ({error}); delete it") from None


def digest(tensors: dict[str, Tensor]) -> str:
    """Hash of the tokens and of the cache, in hexadecimal."""
    result = hashlib.sha256()
    for name in ("ids", "cache"):
        result.update(tensors[name].cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()
