"""GPT-2: token and position embeddings, pre-norm blocks, a head tied to the token embedding.

"Language Models are Unsupervised Multitask Learners", Radford et al., 2019. Shapes: B batch, T new positions, S all
positions, H heads, D head size, C width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.errors import ModelError
from llmcli.nn import decoder
from llmcli.nn.causal import CausalModel
from llmcli.nn.config import read
from llmcli.nn.decoder import DecoderStack
from llmcli.nn.kv_cache import KVCache
from llmcli.nn.linear import Linear
from llmcli.nn.packed import Embedding
from llmcli.ops import add_layer_norm, attention, gelu, transformer_block

ACTIVATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu_new": lambda x, bias: gelu(x, bias, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x, bias: gelu(x, bias, approximate="tanh"),
    "gelu": lambda x, bias: gelu(x, bias),
    "relu": lambda x, bias: F.relu(x + bias),
    "silu": lambda x, bias: F.silu(x + bias),
    "swish": lambda x, bias: F.silu(x + bias),
}

# GELU's `approximate` in those of them that are GELU.
GELUS = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "none"}

# What the operator for a whole step calls those of them that it has.
FUSED = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


@dataclass(frozen=True)
class GPT2Config:
    """The keys of `config.json` that decide the arithmetic, with that format's defaults.

    position_embedding_type is "learned" or "sinusoidal" (Vaswani et al., 2017: no parameters).
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True
    position_embedding_type: str = "learned"

    CONTEXT = "n_positions"  # the key of the context length

    @property
    def n_kv_head(self) -> int:
        """Heads of keys and values: as many as of queries."""
        return self.n_head

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.n_embd // self.n_head

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> GPT2Config:
        """Check the values of a `config.json`; keys that do not change the arithmetic are ignored.

        `reorder_and_upcast_attn` is one of those: the attention kernel always accumulates in float32.
        """
        config = dict(config)
        if config.get("position_embedding_type") == "absolute":
            config["position_embedding_type"] = "learned"
        result = read(cls, config)
        if result.activation_function not in ACTIVATIONS:
            raise ModelError(
                f"config.json: activation_function {result.activation_function!r} is not supported; "
                f"expected one of: {', '.join(ACTIVATIONS)}"
            )
        if result.position_embedding_type not in ("learned", "sinusoidal"):
            raise ModelError(
                f"config.json: position_embedding_type {result.position_embedding_type!r} is not supported; "
                "expected learned or sinusoidal"
            )
        if result.n_embd % result.n_head:
            raise ModelError(f"config.json: n_embd {result.n_embd} is not a multiple of n_head {result.n_head}")
        return result

    def describe(self) -> dict[str, Any]:
        """The keys of a `config.json`."""
        return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **asdict(self)}


class Attention(nn.Module):
    """Causal self-attention over the cache: x (B,T,C) → (B,T,C)."""

    def __init__(self, config: GPT2Config, layer: int):
        super().__init__()
        self.layer, self.n_head = layer, config.n_head
        self.scale = (config.n_embd // config.n_head) ** -0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1
        self.attn_pdrop = config.attn_pdrop
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, cache: KVCache | None) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).unbind(2)  # each (B,T,H,D)
        if self.training and self.attn_pdrop:
            # The fused kernel keeps no attention weights that could be dropped; only training with dropout comes here.
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_pdrop, is_causal=True, scale=self.scale)
            y = y.transpose(1, 2)
        elif cache is None:
            y = attention(q, k, v, scale=self.scale, causal=True)
        else:
            y = cache.attend(self.layer, q, k, v, scale=self.scale)
        projected: Tensor = self.c_proj(y.reshape(B, T, C))
        return projected


class MLP(nn.Module):
    """Two linear layers around the activation: x (B,T,C) → (B,T,C)."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        inner = config.n_inner or 4 * config.n_embd
        self.activation = ACTIVATIONS[config.activation_function]
        self.c_fc = Linear(config.n_embd, inner)
        self.c_proj = Linear(inner, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.c_fc.project(x), self.c_fc.bias)  # (B,T,4C)
        projected: Tensor = self.c_proj(hidden)
        return projected


class Block(nn.Module):
    """Attention, then MLP, each on the normed residual stream.

    A block receives the stream x and the update that the block before left to add, so that each addition fuses with the
    norm that follows it. Where all of it learns, it is one operator.
    """

    def __init__(self, config: GPT2Config, layer: int):
        super().__init__()
        self.resid_pdrop = config.resid_pdrop
        self.gelu = GELUS.get(config.activation_function)
        self.ln_1 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, update: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        weights = self._learning() if cache is None and torch.is_grad_enabled() else []
        if weights and self.gelu:
            heads, scale = self.attn.n_head, self.attn.scale
            return transformer_block(
                x, update, *weights, heads=heads, scale=scale, eps=self.ln_1.eps, approximate=self.gelu
            )
        normed, x = add_layer_norm(update, x, self.ln_1.weight, self.ln_1.bias, eps=self.ln_1.eps)
        update = self._drop(self.attn(normed, cache))
        normed, x = add_layer_norm(update, x, self.ln_2.weight, self.ln_2.bias, eps=self.ln_2.eps)
        return x, self._drop(self.mlp(normed))

    def describe(self) -> decoder.Block:
        """The layers as `DecoderStack` takes them."""
        attn, mlp = self.attn, self.mlp
        return decoder.Block(self.ln_1, attn.c_attn, attn.c_proj, self.ln_2, mlp.c_fc, mlp.c_proj, attn.scale)

    def _learning(self) -> list[Tensor]:
        """The weights as `transformer_block` takes them; none where one is frozen or adapted, or there is dropout."""
        attn, mlp = self.attn, self.mlp
        layers = (self.ln_1, attn.c_attn, attn.c_proj, self.ln_2, mlp.c_fc, mlp.c_proj)
        if any(type(layer) not in (Linear, nn.LayerNorm) for layer in layers):
            return []
        weights = [weight for layer in layers for weight in (layer.weight, layer.bias)]
        dropout = self.training and (self.resid_pdrop or attn.attn_pdrop)
        return [] if dropout or any(weight is None or not weight.requires_grad for weight in weights) else weights

    def _drop(self, update: Tensor) -> Tensor:
        return F.dropout(update, self.resid_pdrop) if self.training else update


class GPT2(CausalModel):
    """The whole model; its parameters hold whatever was in memory until a checkpoint or `initialize` fills them."""

    Config = GPT2Config

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.wte = Embedding(config.vocab_size, config.n_embd)
        if config.position_embedding_type == "learned":
            self.wpe = Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        self._sinusoids: Tensor | None = None

    @property
    def tokens(self) -> Tensor:
        """The token embeddings (V,C)."""
        return self.wte.weight

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> GPT2:
        """Fill the parameters for training from scratch (section 2.3 of the paper).

        Normal weights of initializer_range, zero biases; projections into the residual stream are smaller by
        sqrt(2 * n_layer), because so many of them add up.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif ".ln_" in name or name.startswith("ln_"):
                parameter.fill_(1.0)
            else:
                residual = name.endswith("c_proj.weight")
                scale = 1 / math.sqrt(2 * self.config.n_layer) if residual else 1.0
                parameter.normal_(0.0, self.config.initializer_range * scale, generator=generator)
        return self

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names and layouts of Hugging Face's GPT2LMHeadModel or GPT2Model → this module's, without copying."""
        renamed = {}
        for key in weights:
            name = key.removeprefix("transformer.")
            if name.endswith((".attn.bias", ".attn.masked_bias")):  # the causal mask, saved as a buffer
                continue
            if name == "lm_head.weight" and self.config.tie_word_embeddings:
                continue
            tensor = weights[key]
            # Conv1D stores (in, out), Linear (out, in).
            renamed[name] = tensor.t() if name.endswith(CONV1D) and tensor.dim() == 2 else tensor
        return renamed

    def checkpoint(self) -> dict[str, Tensor]:
        """The parameters under Hugging Face's names and layouts, for saving: the inverse of `rename`."""
        return {
            self.stored(name): tensor.t().contiguous() if name.endswith(CONV1D) else tensor
            for name, tensor in self.state_dict().items()
        }

    @staticmethod
    def stored(name: str) -> str:
        """Hugging Face's name of a tensor of this module."""
        return name if name.startswith("lm_head") else f"transformer.{name}"

    def _blocks(self, ids: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        """ids (B,T) → the residual stream (B,T,C) and the last update to it, not yet added."""
        x, update = self._embed(ids, cache)
        if self.training and self.config.embd_pdrop:
            x, update = F.dropout(x + update, self.config.embd_pdrop), torch.zeros_like(x)
        for block in self.h:
            x, update = block(x, update, cache)
        if cache is not None:
            cache.advance(ids.shape[1])
        return x, update

    def _embed(self, ids: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor]:
        """ids (B,T) → token embeddings and position embeddings, each (B,T,C)."""
        x = F.embedding(ids, self.wte.weight)
        positions = slice(0, ids.shape[1]) if cache is None else cache.positions(ids.shape[1])
        return x, self._positions(x)[positions].expand_as(x)

    def _normed(self, x: Tensor, update: Tensor) -> Tensor:
        """The last norm, of x + update."""
        return add_layer_norm(update, x, self.ln_f.weight, self.ln_f.bias, eps=self.ln_f.eps)[0]

    def _describe(self, head: Tensor) -> DecoderStack | None:
        """The packed model as one operator takes it; None if it lacks the activation."""
        config = self.config
        if config.activation_function not in FUSED:
            return None
        return DecoderStack(
            [block.describe() for block in self.h],  # type: ignore[operator]
            self.ln_f,
            head,
            vocab_size=config.vocab_size,
            n_heads=config.n_head,
            activation=FUSED[config.activation_function],
        )

    def _positions(self, like: Tensor) -> Tensor:
        """The table of position embeddings, (n_positions, C)."""
        if self.config.position_embedding_type == "learned":
            return self.wpe.weight
        if self._sinusoids is None or self._sinusoids.dtype != like.dtype or self._sinusoids.device != like.device:
            with torch.inference_mode(False):  # training may use what an evaluation made
                self._sinusoids = sinusoids(self.config.n_positions, self.config.n_embd).to(like)
        return self._sinusoids


CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")


def sinusoids(n_positions: int, width: int) -> Tensor:
    """Sines at even columns, cosines at odd ones ("Attention Is All You Need", section 3.5) → (n_positions, width)."""
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10000.0) / width))
    angle = torch.arange(n_positions, dtype=torch.float64)[:, None] * rate
    table = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :width]
    return table.float()
