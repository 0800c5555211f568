"""BLOOM: a slope per head on the place of keys instead of positions (ALiBi), a norm behind the embedding.

"BLOOM: A 176B-Parameter Open-Access Multilingual Language Model", Le Scao et al., 2022; "Train Short, Test Long", Press
et al., 2022. Shapes: B batch, T new positions, S all positions, H heads, D head size, C width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.errors import ModelError
from llmcli.nn import decoder
from llmcli.nn.causal import CausalModel
from llmcli.nn.config import read, refuse
from llmcli.nn.decoder import DecoderStack
from llmcli.nn.kv_cache import KVCache
from llmcli.nn.linear import Linear
from llmcli.nn.packed import Embedding
from llmcli.ops import add_layer_norm, attention, gelu, layer_norm

REFUSED = {"apply_residual_connection_post_layernorm": False}


@dataclass(frozen=True)
class BloomConfig:
    """The keys of `config.json` that decide the arithmetic; dropout is none, in training either.

    The slopes set no end to the context: seq_length is that of the training, which the releases note.
    """

    CONTEXT = "seq_length"

    vocab_size: int
    hidden_size: int
    n_layer: int
    n_head: int
    seq_length: int = 2048
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02

    n_positions = property(lambda self: self.seq_length)
    n_kv_head = property(lambda self: self.n_head)
    n_embd = property(lambda self: self.hidden_size)
    head_dim = property(lambda self: self.hidden_size // self.n_head)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> BloomConfig:
        """Check the values of a `config.json`; keys that do not change the arithmetic are ignored."""
        config = {key: value for key, value in config.items() if value is not None}
        for old, new in (
            ("n_embed", "hidden_size"),
            ("num_hidden_layers", "n_layer"),
            ("num_attention_heads", "n_head"),
        ):
            if old in config:  # the names of the first releases
                config.setdefault(new, config[old])
        refuse(config, REFUSED)
        result = read(cls, config)
        if result.hidden_size % result.n_head or result.head_dim > 256:
            raise ModelError(
                f"config.json: hidden_size {result.hidden_size}, {result.n_head} heads; "
                "expected a multiple, and heads of at most 256"
            )
        return result

    def describe(self) -> dict[str, Any]:
        """The keys of a `config.json`."""
        return {"model_type": "bloom", "architectures": ["BloomForCausalLM"], **asdict(self)}


def slopes(n_heads: int) -> Tensor:
    """What a key gains per position in each head, (H,): 2^(-8i/n) for a power of two n; others go in between."""
    n = 1 << int(math.log2(n_heads))
    even = [2.0 ** (-8 * (i + 1) / n) for i in range(n)]
    odd = [2.0 ** (-4 * (i + 1) / n) for i in range(0, 2 * (n_heads - n), 2)]
    return torch.tensor(even + odd)


class Block(nn.Module):
    """Attention, then MLP, each on the normed stream; the update of each is added by the norm that comes next."""

    def __init__(self, config: BloomConfig, layer: int):
        super().__init__()
        C = config.hidden_size
        self.layer, self.n_head = layer, config.n_head
        self.input_layernorm = nn.LayerNorm(C, config.layer_norm_epsilon)
        self.query_key_value, self.dense = Linear(C, 3 * C), Linear(C, C)
        self.post_attention_layernorm = nn.LayerNorm(C, config.layer_norm_epsilon)
        self.dense_h_to_4h, self.dense_4h_to_h = Linear(C, 4 * C), Linear(4 * C, C)

    def forward(self, x: Tensor, update: Tensor, gains: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        norm = self.input_layernorm
        normed, x = add_layer_norm(update, x, norm.weight, norm.bias, eps=norm.eps)
        q, k, v = self.query_key_value(normed).unflatten(-1, (self.n_head, 3, -1)).unbind(3)  # each (B,T,H,D)
        if cache is None:
            y = attention(q, k, v, causal=True, bias=gains)
        else:
            y = cache.attend(self.layer, q, k, v, bias=gains)
        update = self.dense(y.flatten(2))
        norm = self.post_attention_layernorm
        normed, x = add_layer_norm(update, x, norm.weight, norm.bias, eps=norm.eps)
        hidden = gelu(self.dense_h_to_4h.project(normed), self.dense_h_to_4h.bias, approximate="tanh")
        return x, self.dense_4h_to_h(hidden)

    def describe(self, scale: float) -> decoder.Block:
        """The packed layers, as one operator takes them."""
        norms, up, down = (self.input_layernorm, self.post_attention_layernorm), self.dense_h_to_4h, self.dense_4h_to_h
        return decoder.Block(norms[0], self.query_key_value, self.dense, norms[1], up, down, scale)


class Bloom(CausalModel):
    """The whole model; its parameters hold whatever was in memory until a checkpoint or `initialize` fills them."""

    Config = BloomConfig

    def __init__(self, config: BloomConfig):
        super().__init__()
        self.config = config
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size)
        self.word_embeddings_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self._gains: Tensor | None = None

    @property
    def tokens(self) -> Tensor:
        """The token embeddings (V,C)."""
        return self.word_embeddings.weight

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of Hugging Face's BloomForCausalLM or BloomModel → this module's, without copying."""
        renamed = {}
        for key in weights:
            name = key.removeprefix("transformer.").replace(".self_attention.", ".").replace(".mlp.", ".")
            if not (name == "lm_head.weight" and self.config.tie_word_embeddings):
                renamed[name] = weights[key]
        return renamed

    @staticmethod
    def stored(name: str) -> str:
        """Hugging Face's name of a tensor of this module."""
        for part, layers in (
            ("self_attention", ("query_key_value", "dense")),
            ("mlp", ("dense_h_to_4h", "dense_4h_to_h")),
        ):
            for layer in layers:
                name = name.replace(f".{layer}.", f".{part}.{layer}.")
        return name if name.startswith("lm_head") else f"transformer.{name}"

    def _embed(self, ids: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        norm = self.word_embeddings_layernorm
        x = layer_norm(F.embedding(ids, self.tokens), norm.weight, norm.bias, eps=norm.eps)
        return x, torch.zeros_like(x)

    def _blocks(self, ids: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        x, update = self._embed(ids, cache)
        gains = self._turns(ids, cache)[0]
        for block in self.h:
            x, update = block(x, update, gains, cache)
        if cache is not None:
            cache.advance(ids.shape[1])
        return x, update

    def _turns(self, ids: Tensor, cache: KVCache | None) -> tuple[Tensor]:
        T = ids.shape[1]
        return (self._places(self.tokens)[:, :, :, : T if cache is None else cache.span(T)],)

    def _describe(self, head: Tensor) -> DecoderStack:
        config = self.config
        return DecoderStack(
            [block.describe(config.head_dim**-0.5) for block in self.h],  # type: ignore[operator]
            self.ln_f,
            head,
            vocab_size=config.vocab_size,
            n_heads=config.n_head,
            activation="gelu_tanh",
            interleaved=True,
        )

    def _normed(self, x: Tensor, update: Tensor) -> Tensor:
        return add_layer_norm(update, x, self.ln_f.weight, self.ln_f.bias, eps=self.ln_f.eps)[0]

    def _places(self, like: Tensor) -> Tensor:
        """What a key gains by its place, (1,H,1,n_positions); a softmax sees differences only, so no query enters."""
        if self._gains is None or self._gains.device != like.device:
            with torch.inference_mode(False):  # training may use what an evaluation made
                places = torch.arange(self.config.n_positions, dtype=torch.float32)
                self._gains = (slopes(self.config.n_head)[:, None] * places)[None, :, None].to(like.device)
        return self._gains
