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

GPT2_SIZES = {
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
}
GPT2_KEYS = ("n_layer", "n_head", "n_embd")
SHAPES: dict[str, dict[str, Any]] = {
    name: {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, **dict(zip(GPT2_KEYS, sizes, strict=True))}
    for name, sizes in GPT2_SIZES.items()
}
SHAPES["llama"] = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
}


def shape_config(shape: str) -> dict[str, Any]:
    """The config of a named shape, or of a `config.json`. Raises ModelError when it is neither."""
    if shape in SHAPES:
        return dict(SHAPES[shape])
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
