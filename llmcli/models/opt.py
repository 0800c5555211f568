"""OPT: learned positions, pre-norm blocks with ReLU, a head tied to the token embedding.

"OPT: Open Pre-trained Transformer Language Models", Zhang et al., 2022. Shapes: B batch, T new positions, H heads,
D head size, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.errors import ModelError
from llmcli.nn.causal import CausalModel
from llmcli.nn.config import choose, read, refuse
from llmcli.nn.kv_cache import KVCache
from llmcli.nn.linear import Linear
from llmcli.nn.packed import Embedding
from llmcli.ops import add_layer_norm, attention, gelu

REFUSED = {
    "do_layer_norm_before": True, "_remove_final_layer_norm": False, "enable_bias": True,
    "layer_norm_elementwise_affine": True,
}  # fmt: skip
FIRST = 2  # rows of the position table before that of the first position


@dataclass(frozen=True)
class OPTConfig:
    """The keys of `config.json` that decide the arithmetic; dropout is none, in training either."""

    CONTEXT = "max_position_embeddings"

    vocab_size: int
    hidden_size: int
    ffn_dim: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int = 2048
    activation_function: str = "relu"
    tie_word_embeddings: bool = True
    init_std: float = 0.02

    n_layer = property(lambda self: self.num_hidden_layers)
    n_positions = property(lambda self: self.max_position_embeddings)
    n_head = property(lambda self: self.num_attention_heads)
    n_kv_head = property(lambda self: self.num_attention_heads)
    n_embd = property(lambda self: self.hidden_size)
    head_dim = property(lambda self: self.hidden_size // self.num_attention_heads)
    initializer_range = property(lambda self: self.init_std)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> OPTConfig:
        """Check the values of a `config.json`; keys that do not change the arithmetic are ignored."""
        config = {key: value for key, value in config.items() if value is not None}
        refuse(config, {**REFUSED, "word_embed_proj_dim": config.get("hidden_size")})
        choose(config, "activation_function", "relu", ("relu", "gelu"))
        result = read(cls, config)
        if result.hidden_size % result.num_attention_heads or result.head_dim > 256:
            raise ModelError(
                f"config.json: hidden_size {result.hidden_size}, {result.num_attention_heads} heads; "
                "expected a multiple, and heads of at most 256"
            )
        return result

    def describe(self) -> dict[str, Any]:
        """The keys of a `config.json`."""
        described = {"model_type": "opt", "architectures": ["OPTForCausalLM"], **asdict(self)}
        return described | {"word_embed_proj_dim": self.hidden_size}


class Block(nn.Module):
    """Attention, then MLP, each on the normed stream; the update of each is added by the norm that comes next."""

    def __init__(self, config: OPTConfig, layer: int):
        super().__init__()
        C = config.hidden_size
        self.layer, self.size, self.gelu = layer, config.head_dim, config.activation_function == "gelu"
        self.self_attn_layer_norm = nn.LayerNorm(C)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(C, C) for _ in range(4))
        self.final_layer_norm = nn.LayerNorm(C)
        self.fc1, self.fc2 = Linear(C, config.ffn_dim), Linear(config.ffn_dim, C)

    def forward(self, x: Tensor, update: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        norm = self.self_attn_layer_norm
        normed, x = add_layer_norm(update, x, norm.weight, norm.bias, eps=norm.eps)
        q, k, v = (layer(normed).unflatten(-1, (-1, self.size)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        y = attention(q, k, v, causal=True) if cache is None else cache.attend(self.layer, q, k, v)
        update = self.out_proj(y.flatten(2))
        norm = self.final_layer_norm
        normed, x = add_layer_norm(update, x, norm.weight, norm.bias, eps=norm.eps)
        hidden = gelu(self.fc1.project(normed), self.fc1.bias) if self.gelu else F.relu(self.fc1(normed))
        return x, self.fc2(hidden)


class OPT(CausalModel):
    """The whole model; its parameters hold whatever was in memory until a checkpoint or `initialize` fills them."""

    Config = OPTConfig

    def __init__(self, config: OPTConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = Embedding(FIRST + config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.final_layer_norm = nn.LayerNorm(config.hidden_size)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def tokens(self) -> Tensor:
        """The token embeddings (V,C)."""
        return self.embed_tokens.weight

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of Hugging Face's OPTForCausalLM → this module's, without copying."""
        renamed = {}
        for key in weights:
            name = key.removeprefix("model.").removeprefix("decoder.").replace(".self_attn.", ".")
            if not (name == "lm_head.weight" and self.config.tie_word_embeddings):
                renamed[name] = weights[key]
        return renamed

    @staticmethod
    def stored(name: str) -> str:
        """Hugging Face's name of a tensor of this module."""
        for layer in ("q_proj", "k_proj", "v_proj", "out_proj"):
            name = name.replace(f".{layer}.", f".self_attn.{layer}.")
        return name if name.startswith("lm_head") else f"model.decoder.{name}"

    def _embed(self, ids: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        x = F.embedding(ids, self.tokens)
        positions = slice(0, ids.shape[1]) if cache is None else cache.positions(ids.shape[1])
        return x, self.embed_positions.weight[FIRST:][positions].expand_as(x)

    def _blocks(self, ids: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        x, update = self._embed(ids, cache)
        for block in self.layers:
            x, update = block(x, update, cache)
        if cache is not None:
            cache.advance(ids.shape[1])
        return x, update

    def _normed(self, x: Tensor, update: Tensor) -> Tensor:
        norm = self.final_layer_norm
        return add_layer_norm(update, x, norm.weight, norm.bias, eps=norm.eps)[0]
