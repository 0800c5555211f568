"""Low-rank adapters: a frozen matrix W learns as W + (alpha / rank) B A, and is merged back to one matrix.

"LoRA: Low-Rank Adaptation of Large Language Models", Hu et al. 2021, section 4.1. Knows tensors and linear layers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmcli.errors import InputError
from llmcli.nn.linear import Linear
from llmcli.ops.matmul import product


@dataclass(frozen=True)
class LoRA:
    """Rank, alpha, and the last names of the layers that are adapted; no names: every linear layer of the blocks."""

    rank: int
    alpha: float
    targets: Sequence[str] = ()


class LoRALinear(Linear):
    """A linear layer whose own weights are frozen: x (…, K) → x Wᵀ + bias + scale (x Aᵀ) Bᵀ → (…, N)."""

    def __init__(self, layer: Linear, lora: LoRA, generator: torch.Generator) -> None:
        with torch.device("meta"):
            super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        self.weight, self.bias = layer.weight, layer.bias
        self.scale = lora.alpha / lora.rank
        bound = layer.in_features**-0.5
        a = torch.empty(lora.rank, layer.in_features).uniform_(-bound, bound, generator=generator)
        b = torch.zeros(layer.out_features, lora.rank)  # so that training begins at the layer as it is
        self.lora_a, self.lora_b = (nn.Parameter(part.to(layer.weight)) for part in (a, b))

    def project(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (W + scale B A)ᵀ, with a bias or without."""
        low = product(product(x, self.lora_a), self.lora_b)
        return torch.add(product(x, self.weight, bias), low, alpha=self.scale)

    @torch.no_grad()
    def merged(self) -> Linear:
        """A plain layer with the adapter added to its matrix, in float32 and then rounded to the matrix's type."""
        with torch.device("meta"):
            layer = Linear(self.in_features, self.out_features, self.bias is not None)
        update = self.scale * (self.lora_b.float() @ self.lora_a.float())
        layer.weight, layer.bias = nn.Parameter((self.weight.float() + update).to(self.weight)), self.bias
        return layer


def attach(model: nn.Module, lora: LoRA, seed: int) -> None:
    """Freeze a model and put adapters on its layers, in place. Raises InputError for a target that it does not have."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Linear) and _in_block(name)}
    there = sorted({name.rpartition(".")[2] for name in layers})
    unknown = [target for target in lora.targets if target not in there]
    if unknown:
        raise InputError(f"LoRA: no linear layer is called {unknown[0]!r}; expected some of: {', '.join(there)}")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, layer in layers.items():
        if not lora.targets or name.rpartition(".")[2] in lora.targets:
            _replace(model, name, LoRALinear(layer, lora, generator))


def merged(model: nn.Module) -> nn.Module:
    """A copy of a model without adapters, which shares with it every tensor that has none."""
    shared: dict[int, object] = {id(parameter): parameter for parameter in model.parameters()}
    plain = copy.deepcopy(model, shared)
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, LoRALinear):
            _replace(plain, name, layer.merged())
    return plain


def _in_block(name: str) -> bool:
    """Whether a layer is part of a block, a numbered entry of a ModuleList, rather than an embedding or a head."""
    return any(part.isdigit() for part in name.split("."))


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    where, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(where), leaf, layer)
