"""Gemma 3 for text: Llama with norms on both sides of each layer, most layers seeing a window, and scaled embeddings.

"Gemma 3 Technical Report", Gemma Team, 2025. Letters as in llama.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.errors import ModelError
from llmcli.models import llama
from llmcli.models.llama import LlamaConfig, frequencies, hiding
from llmcli.nn.config import refuse
from llmcli.nn.decoder import DecoderStack
from llmcli.nn.kv_cache import KVCache
from llmcli.nn.norm import RMSNorm
from llmcli.nn.rotations import Rotations
from llmcli.ops import add_rms_norm, attention, gelu, rms_norm, rotary

DEFAULTS = {
    "head_dim": 256, "max_position_embeddings": 131072, "rope_theta": 1e6, "tie_word_embeddings": True,
    "qk_norm": True, "sliding_window": 4096,
}  # fmt: skip
# Keys that change the arithmetic in ways this file does not implement, with the value that turns them off.
REFUSED = {
    "hidden_activation": "gelu_pytorch_tanh", "use_bidirectional_attention": False, "attention_bias": False,
}  # fmt: skip
CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Gemma3Config(LlamaConfig):
    """Llama's keys, of which rope_theta and rope_scaling are for the layers that see all, and the windows."""

    layer_types: tuple[str, ...] = ()
    rope_local_base_freq: float = 10000.0  # for the layers with a window
    query_pre_attn_scalar: float = 256.0
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Gemma3Config:
        """Check the values of a `config.json`; keys that do not change the arithmetic are ignored."""
        refuse(config, REFUSED)
        given = {**DEFAULTS, **{key: value for key, value in config.items() if value is not None}}
        rope = dict(given.pop("rope_parameters", None) or {})
        local = rope.get(SLIDING) or {}
        refuse(local, {"rope_type": "default"})
        given["rope_local_base_freq"] = local.get("rope_theta", given.get("rope_local_base_freq", 10000.0))
        given["rope_parameters"] = rope.get(FULL) or {}
        layers, every = given.get("num_hidden_layers"), given.get("sliding_window_pattern", 6)
        if "layer_types" not in given and isinstance(layers, int) and isinstance(every, int) and every > 0:
            given["layer_types"] = [SLIDING if (layer + 1) % every else FULL for layer in range(layers)]
        given["layer_types"] = tuple(given.get("layer_types", ()))
        result = super().from_dict(given)
        assert isinstance(result, Gemma3Config)
        if len(result.layer_types) != layers or not {*result.layer_types} <= {SLIDING, FULL}:
            raise ModelError(f"config.json: layer_types = {result.layer_types}; expected {SLIDING} or {FULL} per layer")
        for key in ("rope_local_base_freq", "query_pre_attn_scalar", *CAPS):
            if getattr(result, key) == 0:
                raise ModelError(f"config.json: {key} = 0; expected a positive number")
        return result

    def describe(self) -> dict[str, Any]:
        """The keys of a `config.json`."""
        return {
            **super().describe(),
            "architectures": ["Gemma3ForCausalLM"],
            "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": list(self.layer_types),
        }


class Norm(RMSNorm):
    """An RMS norm whose parameter is the distance of its scale from 1."""

    @property
    def scale(self) -> Tensor:
        """The scale, float32: bfloat16 would lose the distance."""
        return 1 + self.weight.float()


class Attention(llama.Attention):
    """Llama's, with the norms of this file, a scale and perhaps a cap of its own, and a bias that hides keys."""

    q_norm: Norm
    k_norm: Norm

    def __init__(self, config: Gemma3Config, layer: int):
        super().__init__(config, layer)
        self.scale, self.cap = config.query_pre_attn_scalar**-0.5, config.attn_logit_softcapping
        if config.qk_norm:
            self.q_norm, self.k_norm = (Norm(config.head_dim, config.rms_norm_eps) for _ in range(2))

    def forward(  # type: ignore[override]
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, bias: Tensor | None
    ) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.config.head_dim)) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.config.qk_norm:
            q, k = _norm(q, self.q_norm), _norm(k, self.k_norm)
        q, k = rotary(q, cos, sin), rotary(k, cos, sin)
        if cache is None:
            y = attention(q, k, v, scale=self.scale, cap=self.cap, causal=True, bias=bias)
        else:
            y = cache.attend(self.layer, q, k, v, scale=self.scale, cap=self.cap, bias=bias)
        projected: Tensor = self.o_proj(y.flatten(2))
        return projected


class MLP(llama.MLP):
    """gelu(gate) * up, then down: x (B,T,C) → (B,T,C)."""

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.down_proj(gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))
        return projected


class Block(nn.Module):
    """Attention, then MLP, each between two norms; the update of each is added by the norm that comes next."""

    def __init__(self, config: Gemma3Config, layer: int):
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.sliding = config.layer_types[layer] == SLIDING
        self.input_layernorm, self.post_attention_layernorm = Norm(size, eps), Norm(size, eps)
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = Norm(size, eps), Norm(size, eps)
        self.self_attn, self.mlp = Attention(config, layer), MLP(config)

    def forward(
        self, x: Tensor, update: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        normed, x = _add(update, x, self.input_layernorm)
        update = _norm(self.self_attn(normed, cos, sin, cache, bias), self.post_attention_layernorm)
        normed, x = _add(update, x, self.pre_feedforward_layernorm)
        return x, _norm(self.mlp(normed), self.post_feedforward_layernorm)


def _norm(x: Tensor, norm: Norm) -> Tensor:
    return rms_norm(x, norm.scale, eps=norm.eps)


def _add(update: Tensor, x: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    return add_rms_norm(update, x, norm.scale, eps=norm.eps)


class Gemma3(llama.Llama):
    """The whole model; its parameters hold whatever was in memory until a checkpoint or `initialize` fills them."""

    Config = Gemma3Config
    config: Gemma3Config
    norm: Norm

    def __init__(self, config: Gemma3Config):
        super().__init__(config)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.logit_cap = config.final_logit_softcapping
        local = replace(config, rope_theta=config.rope_local_base_freq, rope_scaling=())
        self._near = Rotations(partial(frequencies, local))

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> Gemma3:
        """As for other models; a norm's parameter is 0."""
        super().initialize(generator)
        for parameter in self.parameters():
            if parameter.dim() == 1:
                parameter.zero_()
        return self

    def _embed(self, ids: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        x = F.embedding(ids, self.tokens)
        x = x * x.new_full((), self.config.hidden_size**0.5)
        return x, torch.zeros_like(x)

    def _blocks(self, ids: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        x, update = self._embed(ids, cache)
        full, local = self._rotations.at(ids, cache), self._near.at(ids, cache)
        assert self.config.sliding_window is not None
        bias = hiding(self.config.sliding_window, ids, x, cache)[0]  # zeros, too: what is read together changes no bits
        for block in self.layers:
            turns = local if block.sliding else full
            x, update = block(x, update, *turns, cache, bias if block.sliding else None)
        if cache is not None:
            cache.advance(ids.shape[1])
        return x, update

    def _describe(self, head: Tensor) -> DecoderStack | None:
        return None

    def _normed(self, x: Tensor, update: Tensor) -> Tensor:
        return _add(update, x, self.norm)[0]
