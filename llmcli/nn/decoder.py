"""A pre-norm decoder's blocks as one operator takes them, for steps of a few rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from llmcli.nn.kv_cache import KVCache
from llmcli.nn.linear import Linear
from llmcli.ops import decoder
from llmcli.ops.decoder import ACTIVATIONS


@dataclass(frozen=True)
class Block:
    """The layers of one block; qkv gives q, k and v one after the other, scale multiplies the scores."""

    norm_1: nn.Module
    qkv: Linear
    out: Linear
    norm_2: nn.Module
    up: Linear
    down: Linear
    scale: float


class DecoderStack:
    """Blocks, last norm and head of a packed model: their tensors as `llmcli.ops.decoder` takes them.

    activation is one of that operator's; a norm without a bias is an RMS norm.
    """

    ROWS = 64  # beyond these a step's time is arithmetic, and one operator after the other loses nothing

    def __init__(
        self, blocks: Sequence[Block], norm: nn.Module, head: Tensor, *, vocab_size: int, n_heads: int, activation: str
    ):
        self._parts: list[Tensor] = []
        for block in blocks:
            layers = (block.norm_1, block.qkv, block.out, block.norm_2, block.up, block.down)
            self._parts += [tensor for layer in layers for tensor in _tensors(layer)]
        self._parts += [*_tensors(norm), head]
        rms = getattr(norm, "bias", None) is None
        self._sizes = [n_heads, blocks[0].up.out_features, vocab_size, ACTIVATIONS.index(activation), int(rms)]
        if activation == "silu_gate":
            self._sizes[1] //= 2
        self._constants = [float(norm.eps), *(block.scale for block in blocks)]  # type: ignore[arg-type]

    def step(self, x: Tensor, update: Tensor, cache: KVCache) -> Tensor:
        """Logits (B,V) after the last position of x + update, each (B,T,C), which the cache takes in."""
        data, lengths = cache.reserve(x.shape[1])
        logits = decoder(x, update, data, lengths, self._parts, self._sizes, self._constants)
        cache.advance(x.shape[1])
        return logits


def _tensors(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a norm or of a packed linear layer; empty where there is no bias."""
    weight = layer.packed if isinstance(layer, Linear) else layer.weight
    assert isinstance(weight, Tensor)
    bias = getattr(layer, "bias", None)
    return weight.detach(), weight.new_empty(0) if bias is None else bias.detach()
