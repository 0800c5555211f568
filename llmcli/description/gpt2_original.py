"""GPT-2 as OpenAI published it: hparams.json, and a TensorFlow checkpoint, under Hugging Face's names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcli.checkpoints import tensorflow
from llmcli.errors import ModelError

if TYPE_CHECKING:  # describing a model needs no torch
    from torch import Tensor

HPARAMS = "hparams.json"
KEYS = {"n_vocab": "vocab_size", "n_ctx": "n_positions", "n_embd": "n_embd", "n_head": "n_head", "n_layer": "n_layer"}
LAYER = re.compile(r"model/h(\d{1,4})/(ln_1|ln_2|attn/c_attn|attn/c_proj|mlp/c_fc|mlp/c_proj)/([gbw])")
REST = {
    "model/wte": "transformer.wte.weight",
    "model/wpe": "transformer.wpe.weight",
    "model/ln_f/g": "transformer.ln_f.weight",
    "model/ln_f/b": "transformer.ln_f.bias",
}


def config(hparams: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """A config.json from what hparams.json, `file`, holds. Raises ModelError where a key is missing or unknown."""
    if hparams.keys() != KEYS.keys():
        wrong = ", ".join(sorted(hparams.keys() ^ KEYS.keys()))
        raise ModelError(f"{file}: expected {', '.join(KEYS)}; missing or unknown: {wrong:.200}")
    return {"model_type": "gpt2", "dtype": "float32", **{name: hparams[key] for key, name in KEYS.items()}}


def stored_as(name: str) -> str:
    """Hugging Face's name of a tensor of the checkpoint, or its own, for the model to refuse."""
    match = LAYER.fullmatch(name)
    if match is None:
        return REST.get(name, name)
    layer, part, leaf = match.groups()
    return f"transformer.h.{layer}.{part.replace('/', '.')}.{'bias' if leaf == 'b' else 'weight'}"


class Renamed(Mapping[str, "Tensor"]):
    """The tensors of a checkpoint under Hugging Face's names and in its layouts, lazily."""

    def __init__(self, path: Path):
        self._stored = tensorflow.open(path)
        self._names = {stored_as(name): name for name in self._stored}

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._stored[self._names[name]]
        return tensor[0] if tensor.dim() == 3 and len(tensor) == 1 else tensor  # kernels of a convolution of width 1

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def release(self) -> None:
        """As tensorflow.Weights.release."""
        self._stored.release()
