"""Llama and its kin (Mistral, Qwen2, Qwen3): rotary positions, RMS norms, gated MLPs, shared keys and values, windows.

"LLaMA: Open and Efficient Foundation Language Models", Touvron et al., 2023. Shapes: B batch, T new positions,
H query heads, G key/value heads, D head size, C width, I inner width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.errors import ModelError
from llmcli.nn import decoder
from llmcli.nn.causal import CausalModel
from llmcli.nn.config import fits, read, refuse
from llmcli.nn.decoder import DecoderStack, joinable
from llmcli.nn.kv_cache import KVCache
from llmcli.nn.linear import Linear
from llmcli.nn.norm import RMSNorm
from llmcli.nn.packed import Embedding
from llmcli.nn.rotations import Rotations
from llmcli.ops import add_rms_norm, attention, rms_norm, rotary, silu_gate

# What a family does differently: its values for keys that config.json leaves out, and those it has no key for.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131072},
    "qwen2": {"qkv_bias": True, "max_position_embeddings": 32768},
    "phi3": {"max_position_embeddings": 4096},
    "mixtral": {"num_key_value_heads": 8, "rope_theta": 1e6, "max_position_embeddings": 131072},
    "qwen3": {"qk_norm": True, "head_dim": 128, "max_position_embeddings": 32768},
}
WINDOWED = ("mistral", "mixtral", "phi3", "gemma2", "gemma3_text")  # whose key sliding_window is computed
# Keys that change the arithmetic in ways this file does not implement, with the value that turns them off.
REFUSED = {"hidden_act": "silu", "mlp_bias": False, "embd_pdrop": 0, "resid_pdrop": 0}


@dataclass(frozen=True)
class LlamaConfig:
    """The keys of `config.json` that decide the arithmetic.

    Of families that have windows in some layers only, the context ends where a window would begin to hide keys.
    """

    CONTEXT = "max_position_embeddings"

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: tuple[tuple[str, Any], ...] = ()  # rope_type and its factors, as sorted items
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None  # positions that a query sees, its own among them

    n_layer = property(lambda self: self.num_hidden_layers)
    n_positions = property(lambda self: self.max_position_embeddings)
    n_head = property(lambda self: self.num_attention_heads)
    n_kv_head = property(lambda self: self.num_key_value_heads)
    n_embd = property(lambda self: self.hidden_size)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """Check the values of a `config.json`; keys that do not change the arithmetic are ignored."""
        family = config.get("model_type") or "llama"
        silent = {key: value for key, value in FAMILIES.get(family, {}).items() if key not in config}
        config = {"model_type": family, **silent, **{key: value for key, value in config.items() if value is not None}}
        refuse(config, REFUSED)
        heads, width = config.get("num_attention_heads"), config.get("hidden_size")
        if isinstance(heads, int) and isinstance(width, int) and heads > 0:
            config.setdefault("head_dim", width // heads)
            config.setdefault("num_key_value_heads", heads)
        bias = config.get("attention_bias", False)
        rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
        refuse({**config, **rope}, {"partial_rotary_factor": 1.0})
        config["rope_theta"] = float(rope.pop("rope_theta", config.get("rope_theta", 10000.0)))
        config |= {"qkv_bias": config.get("qkv_bias", bias), "out_bias": bias and family != "qwen2"}
        config["rope_scaling"] = _scaling(rope)
        window = None if family in WINDOWED else config.pop("sliding_window", None)
        if isinstance(window, int) and config.get("use_sliding_window", True):
            config["max_position_embeddings"] = min(window, config.get("max_position_embeddings", window))
        result = read(cls, config)
        if not result.rope_theta:
            raise ModelError("config.json: rope_theta = 0; expected a positive number")
        if result.num_attention_heads % result.num_key_value_heads or result.head_dim % 2 or result.head_dim > 256:
            raise ModelError(
                f"config.json: {result.num_attention_heads} heads, {result.num_key_value_heads} key/value heads of "
                f"{result.head_dim}; expected a multiple, and an even size up to 256"
            )
        return result

    def describe(self) -> dict[str, Any]:
        """The keys of a `config.json`."""
        names = {"llama": "Llama", "mistral": "Mistral", "mixtral": "Mixtral"}
        return {
            **{key: value for key, value in asdict(self).items() if key not in ("qkv_bias", "out_bias", "qk_norm")},
            "architectures": [f"{names.get(self.model_type, self.model_type.title())}ForCausalLM"],
            "attention_bias": self.out_bias,
            "rope_scaling": dict(self.rope_scaling),
        }


# rope_type: the factors it needs.
SCALINGS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def _scaling(rope: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """rope_scaling of config.json, checked; empty where positions are not scaled."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in SCALINGS:
        raise ModelError(f"config.json: rope_type {kind!r} is not supported; expected one of: {', '.join(SCALINGS)}")
    for name in SCALINGS[kind]:
        if not fits("float", rope.get(name)) or not rope[name]:
            raise ModelError(f"config.json: rope_scaling.{name} = {rope.get(name)!r}; expected a positive number")
    return tuple(sorted({"rope_type": kind, **{name: float(rope[name]) for name in SCALINGS[kind]}}.items()))


def frequencies(config: LlamaConfig) -> Tensor:
    """Radians per position of each pair of a head, (D/2,) float64: theta^(-2i/D), slowed where config scales them.

    llama3 keeps what turns more than high_freq_factor times over the original context, divides by factor what turns
    less than low_freq_factor times, and goes from one to the other in between (the Llama 3.1 release).
    """
    rate: Tensor = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
    scaling: dict[str, Any] = dict(config.rope_scaling)
    if scaling.get("rope_type") == "linear":
        return rate / float(scaling["factor"])
    if scaling.get("rope_type") != "llama3":
        return rate
    turns: Tensor = rate * float(scaling["original_max_position_embeddings"]) / (2 * math.pi)
    low, high, factor = (float(scaling[name]) for name in ("low_freq_factor", "high_freq_factor", "factor"))
    keep: Tensor = ((turns - low) / (high - low)).clamp(0, 1)
    return rate * keep + rate / factor * (1 - keep)


@dataclass(frozen=True)
class Window:
    """Biases of the scores (1 or B,1,T,S) with which attention is computed, and who takes the last one's result.

    A finite number hides the keys that have left the window, since a tile of keys may be hidden as a whole before
    others are seen. Scores with a bias are rounded otherwise than scores without, so a query takes the bias from where
    it hides a key: its bits do not depend on what is read together with it.
    """

    biases: Sequence[Tensor | None]
    late: Tensor  # (1 or B,T,1,1)

    @classmethod
    def of(cls, size: int, ids: Tensor, like: Tensor, cache: KVCache | None) -> Window:
        """For ids (B,T) that come next, in the type of `like`."""
        bias, queries = hiding(size, ids, like, cache)
        late = queries[..., None, None] >= size
        all_late = cache is not None and isinstance(cache.positions(1), slice) and cache.max_length >= size
        return cls([bias] if all_late else [None, bias], late)


def hiding(size: int, ids: Tensor, like: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
    """What hides keys that left a window from ids (B,T): (1 or B,1,T,S) like `like`; their positions (1 or B,T)."""
    T = ids.shape[1]
    keys = torch.arange(T if cache is None else cache.span(T), device=ids.device)
    positions = slice(0, T) if cache is None else cache.positions(T)
    queries = keys[positions][None] if isinstance(positions, slice) else positions
    hidden = keys <= queries[..., None] - size
    bias = like.new_zeros(hidden.shape).masked_fill(hidden, torch.finfo(like.dtype).min / 2)
    return bias[:, None], queries


class Attention(nn.Module):
    """Causal self-attention over the cache: x (B,T,C) and the angles of its positions → (B,T,C)."""

    def __init__(self, config: LlamaConfig, layer: int):
        super().__init__()
        self.layer, self.config = layer, config
        H, G, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.q_proj = Linear(config.hidden_size, H * D, config.qkv_bias)
        self.k_proj = Linear(config.hidden_size, G * D, config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, G * D, config.qkv_bias)
        self.o_proj = Linear(H * D, config.hidden_size, config.out_bias)
        if config.qk_norm:
            self.q_norm, self.k_norm = RMSNorm(D, config.rms_norm_eps), RMSNorm(D, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, window: Window | None) -> Tensor:
        size = self.config.head_dim
        q, k, v = (layer(x).unflatten(-1, (-1, size)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        if self.config.qk_norm:
            q = rms_norm(q, self.q_norm.weight, eps=self.q_norm.eps)
            k = rms_norm(k, self.k_norm.weight, eps=self.k_norm.eps)
        q, k = rotary(q, cos, sin), rotary(k, cos, sin)
        y = q.new_empty(0)
        for bias in (None,) if window is None else window.biases:
            some = (
                attention(q, k, v, causal=True, bias=bias)
                if cache is None
                else cache.attend(self.layer, q, k, v, bias=bias)
            )
            y = some if window is None or not y.numel() else torch.where(window.late, some, y)
        projected: Tensor = self.o_proj(y.flatten(2))
        return projected


class MLP(nn.Module):
    """silu(gate) * up, then down: x (B,T,C) → (B,T,C)."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.down_proj(silu_gate(self.gate_proj(x), self.up_proj(x)))
        return projected


class Block(nn.Module):
    """Attention, then MLP, each on the normed stream; the update of each is added by the norm that comes next."""

    def __init__(self, config: LlamaConfig, layer: int, feed_forward: Callable[[Any], nn.Module] = MLP):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = feed_forward(config)

    def forward(
        self, x: Tensor, update: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, window: Window | None
    ) -> tuple[Tensor, Tensor]:
        norm = self.input_layernorm
        normed, x = add_rms_norm(update, x, norm.weight, eps=norm.eps)
        update, norm = self.self_attn(normed, cos, sin, cache, window), self.post_attention_layernorm
        normed, x = add_rms_norm(update, x, norm.weight, eps=norm.eps)
        return x, self.mlp(normed)


class Llama(CausalModel):
    """The whole model; its parameters hold whatever was in memory until a checkpoint or `initialize` fills them."""

    Config = LlamaConfig
    FEED_FORWARD: Callable[[Any], nn.Module] = MLP  # what stands behind the attention of each block

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        if config.sliding_window is not None and config.sliding_window < config.n_positions:
            self.window = config.sliding_window
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Block(config, layer, self.FEED_FORWARD) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self._rotations = Rotations(partial(frequencies, config))

    @property
    def tokens(self) -> Tensor:
        """The token embeddings (V,C)."""
        return self.embed_tokens.weight

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of Hugging Face's LlamaForCausalLM → this module's, without copying."""
        renamed = {}
        for key in weights:
            name = key.removeprefix("model.")
            tied_head = name == "lm_head.weight" and self.config.tie_word_embeddings
            if not tied_head and not name.endswith("rotary_emb.inv_freq"):  # a table that old checkpoints hold
                renamed[name] = weights[key]
        return renamed

    @staticmethod
    def stored(name: str) -> str:
        """Hugging Face's name of a tensor of this module."""
        return name if name.startswith("lm_head") else f"model.{name}"

    def _embed(self, ids: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        x = F.embedding(ids, self.tokens)
        return x, torch.zeros_like(x)

    def _blocks(self, ids: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        x, update = self._embed(ids, cache)
        cos, sin = self._turns(ids, cache)
        size = self._hides(ids, cache)
        window = None if size is None else Window.of(size, ids, x, cache)
        for block in self.layers:
            x, update = block(x, update, cos, sin, cache, window)
        if cache is not None:
            cache.advance(ids.shape[1])
        return x, update

    def _turns(self, ids: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        return self._rotations.at(ids, cache)

    def _describe(self, head: Tensor) -> DecoderStack | None:
        config, blocks = self.config, []
        for layer in self.layers:
            assert isinstance(layer, Block)
            attn, mlp = layer.self_attn, layer.mlp
            if not isinstance(mlp, MLP):
                return None
            qkv, up = (attn.q_proj, attn.k_proj, attn.v_proj), (mlp.gate_proj, mlp.up_proj)
            if not (joinable(*qkv) and joinable(*up)):
                return None
            norms = layer.input_layernorm, layer.post_attention_layernorm
            scale, of_heads = config.head_dim**-0.5, (attn.q_norm, attn.k_norm) if config.qk_norm else ()
            blocks.append(decoder.Block(norms[0], qkv, attn.o_proj, norms[1], up, mlp.down_proj, scale, *of_heads))
        return DecoderStack(
            blocks, self.norm, head, vocab_size=config.vocab_size, n_heads=config.n_head, activation="silu_gate"
        )

    def _normed(self, x: Tensor, update: Tensor) -> Tensor:
        return add_rms_norm(update, x, self.norm.weight, eps=self.norm.eps)[0]
