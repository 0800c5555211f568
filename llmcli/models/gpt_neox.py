"""GPT-NeoX and Pythia: rotary positions on a part of each head, attention and MLP side by side on one residual stream.

"GPT-NeoX-20B: An Open-Source Autoregressive Language Model", Black et al., 2022. Shapes: B batch, T new positions,
H heads, D head size, R rotated elements of a head, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.errors import ModelError
from llmcli.nn import decoder
from llmcli.nn.causal import CausalModel
from llmcli.nn.config import choose, read, refuse
from llmcli.nn.decoder import DecoderStack
from llmcli.nn.kv_cache import KVCache
from llmcli.nn.linear import Linear
from llmcli.nn.packed import Embedding
from llmcli.nn.rotations import Rotations
from llmcli.ops import add_layer_norm, attention, gelu, layer_norm, rotary

REFUSED = {"is_decoder": False}
APPROXIMATE = {"gelu": "none", "gelu_new": "tanh", "gelu_fast": "tanh", "gelu_pytorch_tanh": "tanh"}


@dataclass(frozen=True)
class GPTNeoXConfig:
    """The keys of `config.json` that decide the arithmetic; dropout is none, in training either."""

    CONTEXT = "max_position_embeddings"

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int = 2048
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    rotary_pct: float = 0.25
    rotary_emb_base: float = 10000.0
    use_parallel_residual: bool = True
    attention_bias: bool = True
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02

    n_layer = property(lambda self: self.num_hidden_layers)
    n_positions = property(lambda self: self.max_position_embeddings)
    n_head = property(lambda self: self.num_attention_heads)
    n_kv_head = property(lambda self: self.num_attention_heads)
    n_embd = property(lambda self: self.hidden_size)
    head_dim = property(lambda self: self.hidden_size // self.num_attention_heads)
    n_rotated = property(lambda self: int(self.head_dim * self.rotary_pct))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> GPTNeoXConfig:
        """Check the values of a `config.json`; keys that do not change the arithmetic are ignored."""
        config = {key: value for key, value in config.items() if value is not None}
        refuse(config, REFUSED)
        choose(config, "hidden_act", "gelu", APPROXIMATE)
        rope = dict(config.get("rope_parameters") or {})
        refuse(rope, {"rope_type": "default", "type": "default"})
        for theirs, ours in (("rope_theta", "rotary_emb_base"), ("partial_rotary_factor", "rotary_pct")):
            if theirs in rope:
                config[ours] = rope[theirs]
        result = read(cls, config)
        heads, rotated = result.num_attention_heads, result.n_rotated
        if result.hidden_size % heads or result.head_dim > 256 or rotated % 2 or not 0 < rotated <= result.head_dim:
            raise ModelError(
                f"config.json: hidden_size {result.hidden_size}, {heads} heads, {rotated} rotated elements of each; "
                "expected a multiple, heads of at most 256, and an even number of them"
            )
        if not result.rotary_emb_base:
            raise ModelError("config.json: rotary_emb_base = 0; expected a positive number")
        return result

    def describe(self) -> dict[str, Any]:
        """The keys of a `config.json`."""
        return {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"], **asdict(self)}


def frequencies(config: GPTNeoXConfig) -> Tensor:
    """Radians per position of each pair of the rotated elements, (R/2,) float64."""
    pairs = torch.arange(0, config.n_rotated, 2, dtype=torch.float64)
    rates: Tensor = config.rotary_emb_base ** (-pairs / config.n_rotated)
    return rates


class Attention(nn.Module):
    """Causal self-attention over the cache: x (B,T,C) and the angles of its positions → (B,T,C)."""

    def __init__(self, config: GPTNeoXConfig, layer: int):
        super().__init__()
        self.layer, self.n_head = layer, config.num_attention_heads
        self.query_key_value = Linear(config.hidden_size, 3 * config.hidden_size, config.attention_bias)
        self.dense = Linear(config.hidden_size, config.hidden_size, config.attention_bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None) -> Tensor:
        q, k, v = self.query_key_value(x).unflatten(-1, (self.n_head, 3, -1)).unbind(3)  # each (B,T,H,D)
        q, k = rotary(q, cos, sin), rotary(k, cos, sin)
        y = attention(q, k, v, causal=True) if cache is None else cache.attend(self.layer, q, k, v)
        projected: Tensor = self.dense(y.flatten(2))
        return projected


class MLP(nn.Module):
    """Two linear layers around a GELU: x (B,T,C) → (B,T,C)."""

    def __init__(self, config: GPTNeoXConfig):
        super().__init__()
        self.approximate = APPROXIMATE[config.hidden_act]
        self.dense_h_to_4h = Linear(config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        hidden = gelu(self.dense_h_to_4h.project(x), self.dense_h_to_4h.bias, approximate=self.approximate)
        projected: Tensor = self.dense_4h_to_h(hidden)
        return projected


class Block(nn.Module):
    """Attention and MLP, each on its own norm of the stream, or one after the other.

    The update is added by the norm that comes next.
    """

    def __init__(self, config: GPTNeoXConfig, layer: int):
        super().__init__()
        self.parallel = config.use_parallel_residual
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attention, self.mlp = Attention(config, layer), MLP(config)

    def forward(
        self, x: Tensor, update: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None
    ) -> tuple[Tensor, Tensor]:
        first, second = self.input_layernorm, self.post_attention_layernorm
        normed, x = add_layer_norm(update, x, first.weight, first.bias, eps=first.eps)
        update = self.attention(normed, cos, sin, cache)
        if self.parallel:
            return x, update + self.mlp(layer_norm(x, second.weight, second.bias, eps=second.eps))
        normed, x = add_layer_norm(update, x, second.weight, second.bias, eps=second.eps)
        return x, self.mlp(normed)

    def describe(self, scale: float) -> decoder.Block:
        """The packed layers, as one operator takes them."""
        attn, mlp = self.attention, self.mlp
        qkv, out, up, down = attn.query_key_value, attn.dense, mlp.dense_h_to_4h, mlp.dense_4h_to_h
        return decoder.Block(self.input_layernorm, qkv, out, self.post_attention_layernorm, up, down, scale)


class GPTNeoX(CausalModel):
    """The whole model; its parameters hold whatever was in memory until a checkpoint or `initialize` fills them."""

    Config = GPTNeoXConfig

    def __init__(self, config: GPTNeoXConfig):
        super().__init__()
        self.config = config
        self.embed_in = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self._rotations = Rotations(partial(frequencies, config))

    @property
    def tokens(self) -> Tensor:
        """The token embeddings (V,C)."""
        return self.embed_in.weight

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of Hugging Face's GPTNeoXForCausalLM → this module's, without copying."""
        renamed = {}
        for key in weights:
            name = key.removeprefix("gpt_neox.").replace("embed_out.", "lm_head.")
            tied_head = name == "lm_head.weight" and self.config.tie_word_embeddings
            # Old checkpoints hold the causal mask and a table of angles.
            if not tied_head and not name.endswith((".attention.bias", ".masked_bias", "rotary_emb.inv_freq")):
                renamed[name] = weights[key]
        return renamed

    @staticmethod
    def stored(name: str) -> str:
        """Hugging Face's name of a tensor of this module."""
        return name.replace("lm_head.", "embed_out.") if name.startswith("lm_head") else f"gpt_neox.{name}"

    def _embed(self, ids: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        x = F.embedding(ids, self.tokens)
        return x, torch.zeros_like(x)

    def _blocks(self, ids: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        x, update = self._embed(ids, cache)
        cos, sin = self._turns(ids, cache)
        for block in self.layers:
            x, update = block(x, update, cos, sin, cache)
        if cache is not None:
            cache.advance(ids.shape[1])
        return x, update

    def _turns(self, ids: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        return self._rotations.at(ids, cache)

    def _describe(self, head: Tensor) -> DecoderStack:
        config = self.config
        return DecoderStack(
            [block.describe(config.head_dim**-0.5) for block in self.layers],  # type: ignore[operator]
            self.final_layer_norm,
            head,
            vocab_size=config.vocab_size,
            n_heads=config.n_head,
            activation="gelu_tanh" if APPROXIMATE[config.hidden_act] == "tanh" else "gelu",
            interleaved=True,
            parallel=config.use_parallel_residual,
        )

    def _normed(self, x: Tensor, update: Tensor) -> Tensor:
        norm = self.final_layer_norm
        return add_layer_norm(update, x, norm.weight, norm.bias, eps=norm.eps)[0]
