"""T5, FLAN-T5 and mT5: an encoder reads the prompt, a decoder writes the answer; positions are biases of the scores.

"Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", Raffel et al., 2020. Shapes:
B batch, S source positions, T positions of the answer, H heads, D head size, C width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.errors import ModelError
from llmcli.nn.config import TokenId, choose, read, refuse
from llmcli.nn.kv_cache import KVCache
from llmcli.nn.linear import Linear
from llmcli.nn.norm import RMSNorm
from llmcli.nn.packed import Embedding, PackedModel
from llmcli.ops import add_rms_norm, attention, gelu

# What mT5 does differently, for keys that config.json leaves out.
FAMILIES: dict[str, dict[str, Any]] = {
    "t5": {},
    "mt5": {"feed_forward_proj": "gated-gelu", "scale_decoder_outputs": False},
}
REFUSED = {"is_decoder": False}


@dataclass(frozen=True)
class T5Config:
    """The keys of `config.json` that decide the arithmetic; dropout is none, in training either."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    scale_decoder_outputs: bool
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    decoder_start_token_id: TokenId = 0
    tie_word_embeddings: bool = True

    CONTEXT = "n_positions"

    n_layer = property(lambda self: self.num_layers + self.num_decoder_layers)
    n_embd = property(lambda self: self.d_model)
    # Biases reach as far as one likes; this bounds the memory that the scores' biases take.
    n_positions = property(lambda self: 4096)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> T5Config:
        """Check the values of a `config.json`; keys that do not change the arithmetic are ignored."""
        given = {key: value for key, value in config.items() if value is not None}
        config = {**FAMILIES.get(given.get("model_type", "t5"), {}), **given}
        refuse(config, REFUSED)
        choose(config, "feed_forward_proj", "relu", ("relu", "gated-gelu"))
        config.setdefault("num_decoder_layers", config.get("num_layers"))
        # Version 1.1 has a head of its own and does not scale; later files say so by a key of their own.
        config.setdefault("scale_decoder_outputs", config.get("tie_word_embeddings", True))
        config.setdefault("decoder_start_token_id", config.get("pad_token_id", 0))
        result = read(cls, config)
        n, far = result.relative_attention_num_buckets, result.relative_attention_max_distance
        if n % 4 or far <= n // 2:
            raise ModelError(
                f"config.json: relative_attention_num_buckets {n}, relative_attention_max_distance {far}; "
                "expected a multiple of 4, and more than half of it"
            )
        if result.decoder_start_token_id >= result.vocab_size or result.d_kv > 256:
            raise ModelError(
                f"config.json: decoder_start_token_id {result.decoder_start_token_id} of {result.vocab_size}, "
                f"d_kv {result.d_kv}; expected an id of the vocabulary, and a size up to 256"
            )
        return result


def buckets(relative: Tensor, config: T5Config, *, both_ways: bool) -> Tensor:
    """The bucket of each distance, key minus query: small ones for themselves, large ones by their logarithm.

    An encoder keeps half of the buckets for keys ahead; a decoder sees none. Section 2.1 of the paper.
    """
    n = config.relative_attention_num_buckets // (2 if both_ways else 1)
    ahead = (relative > 0) * n if both_ways else torch.zeros_like(relative)
    distance = relative.abs() if both_ways else (-relative).clamp(min=0)
    exact = n // 2
    share = (distance.clamp(min=1).float() / exact).log() / math.log(config.relative_attention_max_distance / exact)
    far = (exact + (share * (n - exact)).long()).clamp(max=n - 1)
    return ahead + torch.where(distance < exact, distance, far)


class Attention(nn.Module):
    """Unscaled attention of queries x (B,T,C) to keys and values (B,S,H,D) → (B,T,C)."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.size, inner = config.d_kv, config.num_heads * config.d_kv
        self.q, self.k, self.v = (Linear(config.d_model, inner, bias=False) for _ in range(3))
        self.o = Linear(inner, config.d_model, bias=False)

    def keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B,S,C) → keys and values, each (B,S,H,D)."""
        return self.k(x).unflatten(-1, (-1, self.size)), self.v(x).unflatten(-1, (-1, self.size))

    def forward(
        self,
        x: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        k_lengths: Tensor | None,
        causal: bool,
        cache: tuple[KVCache, int] | None = None,
    ) -> Tensor:
        q = self.q(x).unflatten(-1, (-1, self.size))
        if cache is None:
            y = attention(q, k, v, scale=1.0, causal=causal, bias=bias, k_lengths=k_lengths)
        else:
            y = cache[0].attend(cache[1], q, k, v, scale=1.0, bias=bias)
        projected: Tensor = self.o(y.flatten(2))
        return projected


class MLP(nn.Module):
    """ReLU between two layers, or a GELU gate before the second: x (B,T,C) → (B,T,C)."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.gated = config.feed_forward_proj == "gated-gelu"
        if self.gated:
            self.wi_0 = Linear(config.d_model, config.d_ff, bias=False)
            self.wi_1 = Linear(config.d_model, config.d_ff, bias=False)
        else:
            self.wi = Linear(config.d_model, config.d_ff, bias=False)
        self.wo = Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x) if self.gated else F.relu(self.wi(x))
        projected: Tensor = self.wo(hidden)
        return projected


class Block(nn.Module):
    """Attention to itself, in a decoder attention to the source, then MLP, each on the normed stream.

    The update of each is added by the norm that comes next.
    """

    def __init__(self, config: T5Config, *, decoder: bool):
        super().__init__()
        self.attn_norm, self.attn = RMSNorm(config.d_model, config.layer_norm_epsilon), Attention(config)
        if decoder:
            self.cross_norm, self.cross = RMSNorm(config.d_model, config.layer_norm_epsilon), Attention(config)
        self.mlp_norm, self.mlp = RMSNorm(config.d_model, config.layer_norm_epsilon), MLP(config)

    def forward(
        self,
        x: Tensor,
        update: Tensor,
        bias: Tensor,
        lengths: Tensor | None,
        memory: tuple[Tensor, Tensor] | None = None,
        cache: tuple[KVCache, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """lengths (B,) are the sources'. A decoder gets their keys and values, and the cache with its own layer."""
        normed, x = add_rms_norm(update, x, self.attn_norm.weight, eps=self.attn_norm.eps)
        k, v = self.attn.keys(normed)
        if memory is None:
            update = self.attn(normed, k, v, bias, lengths, False)
        else:
            update = self.attn(normed, k, v, bias, None, True, cache)
            normed, x = add_rms_norm(update, x, self.cross_norm.weight, eps=self.cross_norm.eps)
            update = self.cross(normed, *memory, None, lengths, False)
        normed, x = add_rms_norm(update, x, self.mlp_norm.weight, eps=self.mlp_norm.eps)
        return x, self.mlp(normed)


class Stack(nn.Module):
    """The blocks of the encoder or of the decoder, their position biases and their last norm."""

    def __init__(self, config: T5Config, n_layers: int, *, decoder: bool):
        super().__init__()
        self.config, self.decoder = config, decoder
        self.position_bias = Embedding(config.relative_attention_num_buckets, config.num_heads)
        self.block = nn.ModuleList(Block(config, decoder=decoder) for _ in range(n_layers))
        self.norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def biases(self, first: int, n: int, S: int) -> Tensor:
        """Of queries first … first+n-1 to keys 0 … S-1: (H,n,S)."""
        device = self.position_bias.weight.device
        distances = torch.arange(-first - n + 1, S - first, device=device)
        table: Tensor = self.position_bias(
            buckets(distances, self.config, both_ways=not self.decoder)
        ).t()  # (H, n+S-1)
        if n == 1:
            return table[:, None]
        index = torch.arange(S, device=device) - torch.arange(n, device=device)[:, None] + n - 1
        return table[:, index]


class State:
    """What the decoder remembers: the source's keys and values of every layer, and its own."""

    def __init__(self, cache: KVCache, memory: list[tuple[Tensor, Tensor]], sources: Tensor | None):
        self.cache, self.memory, self.sources = cache, memory, sources

    @property
    def lengths(self) -> Tensor:
        """Tokens that the decoder has read, (B,) int64."""
        return self.cache.lengths

    def select(self, rows: Tensor) -> None:
        """Keep, reorder or repeat batch rows: rows (N,) int64."""
        self.cache.select(rows)
        self.memory = [(k[rows], v[rows]) for k, v in self.memory]
        self.sources = None if self.sources is None else self.sources[rows]

    def append(self, other: State) -> None:
        """Put another state's rows behind these."""
        self.cache.append(other.cache)
        sources = torch.cat([self._sources(), other._sources()])
        longest = int(sources.max())

        def joined(one: Tensor, two: Tensor) -> Tensor:
            return torch.cat([F.pad(part, (0, 0, 0, 0, 0, longest - part.shape[1])) for part in (one, two)])

        pairs = zip(self.memory, other.memory, strict=True)
        self.memory = [(joined(k, more_k), joined(v, more_v)) for (k, v), (more_k, more_v) in pairs]
        self.sources = None if bool((sources == longest).all()) else sources

    def _sources(self) -> Tensor:
        keys = self.memory[0][0]
        return torch.full((len(keys),), keys.shape[1], device=keys.device) if self.sources is None else self.sources


class T5(PackedModel):
    """The whole model; its parameters hold whatever was in memory until a checkpoint fills them."""

    KIND = "encoder-decoder"
    Config = T5Config

    def __init__(self, config: T5Config):
        super().__init__()
        self.config = config
        self.shared = Embedding(config.vocab_size, config.d_model)
        self.encoder = Stack(config, config.num_layers, decoder=False)
        self.decoder = Stack(config, config.num_decoder_layers, decoder=True)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.d_model, config.vocab_size, bias=False)

    @property
    def tokens(self) -> Tensor:
        """The token embeddings (V,C)."""
        return self.shared.weight

    @property
    def start_id(self) -> int:
        """What the decoder reads before the first token of an answer."""
        return self.config.decoder_start_token_id  # type: ignore[no-any-return]

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of Hugging Face's T5ForConditionalGeneration → this module's, without copying."""
        own = "lm_head.weight" in weights and not self.config.scale_decoder_outputs
        if own and self._own_head() is None:  # of version 1.1, though a later tool wrote that all heads are tied
            self.lm_head = Linear(self.config.d_model, self.config.vocab_size, bias=False)
        renamed = {}
        for key in weights:
            copied = key.endswith("embed_tokens.weight") or (key == "lm_head.weight" and not own)
            # A release has a bias of positions in the cross attention, which nothing reads.
            if not copied and "EncDecAttention.relative_attention_bias" not in key:
                renamed[_renamed(key, 0, 1)] = weights[key]
        return renamed

    @staticmethod
    def stored(name: str) -> str:
        """Hugging Face's name of a tensor of this module."""
        return _renamed(name, 1, 0)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits for training, of `hidden`: (B,T) → (B,T,V)."""
        return self._project(self.hidden(ids))

    def hidden(self, ids: Tensor) -> Tensor:
        """What the head reads: ids (B,T) → (B,T,C), zeros where the decoder reads nothing.

        A row is the source, then what the decoder reads, each of those ids as ~id (-1 for 0, …), then anything.
        """
        sources = (ids >= 0).cumprod(1).sum(1)
        written = ids < 0
        longest = int(sources.max())
        if not longest or not int(written.any(1).all()):
            raise ValueError("expected rows of a source and of what the decoder reads, each of them as ~id")
        memory = self._memory(self._encode(ids[:, :longest].clamp(min=0), sources))
        N = int(written.sum(1).max())
        places = (sources[:, None] + torch.arange(N, device=ids.device)).clamp(max=ids.shape[1] - 1)
        read = ids.gather(1, places)
        out = self._decode((~read).clamp(min=0), memory, sources, None)
        hidden = out.new_zeros(*ids.shape, out.shape[-1])
        hidden[written] = out[torch.arange(N, device=ids.device) < written.sum(1, keepdim=True)]
        return hidden

    def start(self, ids: Tensor, lengths: Tensor | None = None, *, capacity: int | None = None) -> tuple[Tensor, State]:
        """Read sources: ids (B,S), right-padded when lengths (B,) are given → logits (B,V) of the first token, state.

        capacity is the number of positions of source and answer together (n_positions if not given).
        """
        config = self.config
        ends = [ids.shape[1]] * ids.shape[0] if lengths is None else lengths.tolist()
        limit = config.n_positions if capacity is None else capacity
        if not ends or min(ends) < 1 or max(ends) > ids.shape[1]:
            raise ValueError(f"expected rows of 1 to {ids.shape[1]} tokens; got lengths {ends}")
        if limit > config.n_positions or max(ends) > limit:
            raise ValueError(f"expected {max(ends)} <= capacity {limit} <= n_positions {config.n_positions}")
        encoded = self._encode(ids[:, : max(ends)], lengths)
        cache = KVCache(
            config.num_decoder_layers,
            ids.shape[0],
            limit - min(ends) + 1,
            config.num_heads,
            config.d_kv,
            dtype=encoded.dtype,
            device=encoded.device,
        )
        state = State(cache, self._memory(encoded), lengths)
        return self.step(ids.new_full((ids.shape[0], 1), self.start_id), state), state

    def step(self, ids: Tensor, state: State) -> Tensor:
        """Continue every row: ids (B,T), T >= 1, and the state of `start` → logits (B,V) after the last of them."""
        return self._project(self._decode(ids, state.memory, state.sources, state.cache)[:, -1])

    def _encode(self, ids: Tensor, lengths: Tensor | None) -> Tensor:
        """ids (B,S) → (B,S,C); positions beyond a row's length are not seen by the others."""
        S = ids.shape[1]
        x, bias, norm = F.embedding(ids, self.tokens), self.encoder.biases(0, S, S), self.encoder.norm
        update = torch.zeros_like(x)
        for block in self.encoder.block:
            x, update = block(x, update, bias, lengths)
        return add_rms_norm(update, x, norm.weight, eps=norm.eps)[0]

    def _memory(self, encoded: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The keys and values that each layer of the decoder attends to."""
        return [block.cross.keys(encoded) for block in self.decoder.block]  # type: ignore[operator, union-attr]

    def _decode(
        self, ids: Tensor, memory: list[tuple[Tensor, Tensor]], sources: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """ids (B,T) after those of the cache → what the head reads, (B,T,C)."""
        T, first = ids.shape[1], 0 if cache is None else cache.max_length
        x, bias, norm = F.embedding(ids, self.tokens), self.decoder.biases(first, T, first + T), self.decoder.norm
        update = torch.zeros_like(x)
        for layer, block in enumerate(self.decoder.block):
            x, update = block(x, update, bias, sources, memory[layer], None if cache is None else (cache, layer))
        if cache is not None:
            cache.advance(T)
        out = add_rms_norm(update, x, norm.weight, eps=norm.eps)[0]
        return out * self.config.d_model**-0.5 if self.config.scale_decoder_outputs else out


# Hugging Face's parts of names beside ours; what is the encoder's second layer is the decoder's third.
NAMES = (
    ("block.0.layer.0.SelfAttention.relative_attention_bias.", "position_bias."),
    (".layer.0.SelfAttention.", ".attn."),
    (".layer.0.layer_norm.", ".attn_norm."),
)
STACKS = {
    "encoder": (
        (".layer.1.DenseReluDense.", ".mlp."),
        (".layer.1.layer_norm.", ".mlp_norm."),
        ("encoder.final_layer_norm.", "encoder.norm."),
    ),
    "decoder": (
        (".layer.1.EncDecAttention.", ".cross."),
        (".layer.1.layer_norm.", ".cross_norm."),
        (".layer.2.DenseReluDense.", ".mlp."),
        (".layer.2.layer_norm.", ".mlp_norm."),
        ("decoder.final_layer_norm.", "decoder.norm."),
    ),
}


def _renamed(name: str, old: int, new: int) -> str:
    for pair in (*NAMES, *STACKS.get(name.partition(".")[0], ())):
        if pair[old] in name:
            return name.replace(pair[old], pair[new])
    return name
