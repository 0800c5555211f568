"""The first GPT: GPT-2's layers with the norms behind them, and no last norm.

"Improving Language Understanding by Generative Pre-Training", Radford et al., 2018. Letters as in gpt2.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.errors import ModelError
from llmcli.models.gpt2 import CONV1D, MLP, Attention, GPT2Config
from llmcli.nn.causal import CausalModel
from llmcli.nn.kv_cache import KVCache
from llmcli.nn.packed import Embedding
from llmcli.ops import add_layer_norm

# Its names for activations; "gelu" is the approximation by tanh.
ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "swish"}


@dataclass(frozen=True)
class OpenAIGPTConfig(GPT2Config):
    """GPT-2's keys with this format's defaults; `afn` names the activation."""

    vocab_size: int = 40478
    n_positions: int = 512

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> OpenAIGPTConfig:
        """Check the values of a `config.json`; keys that do not change the arithmetic are ignored."""
        name = config.get("afn") or "gelu"
        if name not in ACTIVATIONS:
            raise ModelError(f"config.json: afn {name!r} is not supported; expected one of: {', '.join(ACTIVATIONS)}")
        result = super().from_dict({**config, "activation_function": ACTIVATIONS[name]})
        assert isinstance(result, OpenAIGPTConfig)
        return result

    def describe(self) -> dict[str, Any]:
        """The keys of a `config.json`."""
        afn = next(name for name, ours in ACTIVATIONS.items() if ours == self.activation_function)
        return {**asdict(self), "afn": afn, "model_type": "openai-gpt", "architectures": ["OpenAIGPTLMHeadModel"]}


class Block(nn.Module):
    """Attention and MLP, each added to what it read and then normed: x (B,T,C) → (B,T,C)."""

    def __init__(self, config: OpenAIGPTConfig, layer: int):
        super().__init__()
        self.resid_pdrop = config.resid_pdrop
        self.attn = Attention(config, layer)
        self.ln_1 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)

    def forward(self, x: Tensor, cache: KVCache | None) -> Tensor:
        x = self._add(self.attn(x, cache), x, self.ln_1)
        return self._add(self.mlp(x), x, self.ln_2)

    def _add(self, update: Tensor, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        update = F.dropout(update, self.resid_pdrop, self.training)
        return add_layer_norm(update, x, norm.weight, norm.bias, eps=norm.eps)[0]


class OpenAIGPT(CausalModel):
    """The whole model; its parameters hold whatever was in memory until a checkpoint or `initialize` fills them."""

    Config = OpenAIGPTConfig

    def __init__(self, config: OpenAIGPTConfig):
        super().__init__()
        self.config = config
        self.tokens_embed = Embedding(config.vocab_size, config.n_embd)
        self.positions_embed = Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))

    @property
    def tokens(self) -> Tensor:
        """The token embeddings (V,C)."""
        return self.tokens_embed.weight

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names and layouts of Hugging Face's OpenAIGPTLMHeadModel → this module's, without copying."""
        renamed = {}
        for key in weights:
            name = key.removeprefix("transformer.")
            # The causal mask and the positions, saved as buffers, and the head, which is always tied.
            if not name.endswith((".attn.bias", "position_ids")) and name != "lm_head.weight":
                renamed[name] = weights[key].t() if name.endswith(CONV1D) else weights[key]
        return renamed

    def checkpoint(self) -> dict[str, Tensor]:
        """The parameters under Hugging Face's names and layouts, for saving: the inverse of `rename`."""
        found = super().checkpoint()
        return {name: tensor.t().contiguous() if name.endswith(CONV1D) else tensor for name, tensor in found.items()}

    @staticmethod
    def stored(name: str) -> str:
        """Hugging Face's name of a tensor of this module."""
        return name if name.startswith("lm_head") else f"transformer.{name}"

    def _embed(self, ids: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        x = F.embedding(ids, self.tokens)
        positions = slice(0, ids.shape[1]) if cache is None else cache.positions(ids.shape[1])
        return x, self.positions_embed.weight[positions].expand_as(x)

    def _blocks(self, ids: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        token, position = self._embed(ids, cache)
        x = F.dropout(token + position, self.config.embd_pdrop, self.training)
        for block in self.h:
            x = block(x, cache)
        if cache is not None:
            cache.advance(ids.shape[1])
        return x, torch.zeros_like(x)

    def _normed(self, x: Tensor, update: Tensor) -> Tensor:
        return x
