"""Models of a known shape with random weights: speed depends on shapes, not on what the weights say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from llmcli.description import read_object
from llmcli.device import choose_device
from llmcli.loading import set_cache_dtype
from llmcli.models import model_class
from llmcli.ops import registry

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600},
}


def shape_config(shape: str) -> dict[str, Any]:
    """The config of a named shape, or of a `config.json`. Raises ModelError when it is neither."""
    if shape in SHAPES:
        return {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, **SHAPES[shape]}
    return read_object(Path(shape), f"no such config.json, and none of the named shapes: {', '.join(SHAPES)}")


def random_model(
    shape: str,
    *,
    dtype: torch.dtype,
    device: str,
    seed: int = 0,
    quantize: str | None = None,
    cache_dtype: str = "auto",
) -> Any:
    """A model of that shape in eval mode, initialised as for training, packed and quantised as `loading.load` does it.

    Raises ResourceError for a device that is not there, InputError for a cache_dtype without a cache.
    """
    config = shape_config(shape)
    where = choose_device(device)
    architecture = model_class(config.get("model_type", "gpt2"))
    model = architecture(architecture.Config.from_dict(config))
    model = model.initialize(torch.Generator().manual_seed(seed)).to(where, dtype)
    set_cache_dtype(model, cache_dtype, dtype)
    if quantize:
        model.quantize(quantize)
    if where.type == "cpu" and registry.kernels is not None:
        model.pack()
    return model.eval()
