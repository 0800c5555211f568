"""A model whose matrices are stored as the kernels stream them, so that loading is mapping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmcli.errors import ModelError
from llmcli.nn.linear import Linear
from llmcli.nn.quantized import FORMATS
from llmcli.ops import linear_pack
from llmcli.ops.linear_quantized import packed_bits, packed_bytes

KEY, LAYOUT = "packed", 1  # in config.json; one layout serves every instruction set
HEAD = "packed_head"  # of a tied embedding


def describe(dtype: str, quantized: str | None) -> dict[str, Any]:
    """What config.json says of a packed model."""
    return {"layout": LAYOUT, "dtype": dtype, "quantized": quantized}


def described(config: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """(dtype, quantized) of a packed model's config.json, None for a plain one.

    Raises ModelError for another layout.
    """
    found = config.get(KEY)
    if found is None:
        return None
    for dtype in ("float32", "bfloat16", "float16"):
        for quantized in (None, *FORMATS):
            if found == describe(dtype, quantized):
                return dtype, quantized
    raise ModelError(f"config.json: expected matrices packed in layout {LAYOUT}, got {found!r}; convert them again")


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Everything that a packed model holds, by its module's own names."""
    found = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, layer in linear_layers(model).items():
        assert layer.packed is not None
        found[f"{name}.packed"] = layer.packed
    head = getattr(model, "_packed_head", None)
    return found if head is None else {**found, HEAD: head}


def assign(model: Any, weights: Mapping[str, Tensor], dtype: torch.dtype, quantized: str | None) -> None:
    """Put the tensors into a model on the meta device, without copying. Raises ModelError where they do not fit."""
    model.quantized = quantized
    if quantized is not None or "lm_head.packed" in weights:
        model.matrices()  # gives a tied head a matrix of its own
    layers = linear_layers(model)
    kinds: dict[str, int] = {}  # bits
    expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        name: (tuple(parameter.shape), dtype)
        for name, parameter in model.named_parameters()
        if not (name.endswith(".weight") and name.removesuffix(".weight") in layers)
    }
    for name, layer in layers.items():
        bits, size = model.bits(quantized, name) if quantized else 0, (layer.in_features, layer.out_features)
        found = weights.get(f"{name}.packed")
        kind, blocks = torch.uint8, False
        if found is not None and found.dtype == torch.int8:  # blocks of a GGUF file
            kind, blocks, bits = torch.int8, True, packed_bits(found, *size)
        kinds[name] = bits
        expected[f"{name}.packed"] = (
            ((packed_bytes(*size, bits, blocks=blocks),), kind) if bits else (packed_shape(*size, dtype), dtype)
        )
    if HEAD in weights:
        V, C = model.tokens.shape
        expected[HEAD] = packed_shape(C, V, dtype), dtype
    if expected.keys() != weights.keys():
        name = min(expected.keys() ^ weights.keys())
        problem = "is missing" if name in expected else "has no place in this architecture"
        raise ModelError(f"the tensor {name} {problem}: config.json and weights do not match")
    for name, (shape, kind) in expected.items():
        tensor = weights[name]
        if (tuple(tensor.shape), tensor.dtype) != (shape, kind):
            raise ModelError(
                f"{name} has shape {list(tensor.shape)} of {tensor.dtype}; config.json asks for {list(shape)} of {kind}"
            )
        where, _, leaf = name.rpartition(".")
        if name == HEAD:
            model._packed_head = tensor
        elif leaf == "packed":
            layers[where].set_packed(tensor, kinds[where])
        else:
            setattr(model.get_submodule(where), leaf, nn.Parameter(tensor, requires_grad=False))


def packed_shape(in_features: int, out_features: int, dtype: torch.dtype) -> tuple[int, ...]:
    """Shape of what `linear_pack` makes of a matrix."""
    return tuple(linear_pack(torch.empty(out_features, in_features, dtype=dtype, device="meta")).shape)


def linear_layers(model: nn.Module) -> dict[str, Linear]:
    """The linear layers by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Linear)}
