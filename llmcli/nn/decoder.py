"""A pre-norm decoder's blocks as one operator takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmcli.nn.kv_cache import KVCache
from llmcli.nn.linear import Linear
from llmcli.nn.norm import RMSNorm
from llmcli.ops import argmax, decoder, linear_argmax, linear_screen
from llmcli.ops.cached_attention import CACHE_DTYPES
from llmcli.ops.decoder import ACTIVATIONS
from llmcli.ops.linear import PANEL


@dataclass(frozen=True)
class Block:
    """The layers of one block; qkv gives q, k and v, up of a gated block gate and up; scale multiplies the scores.

    query_norm and key_norm, of each head, are there both or not at all, and all norms have one eps.
    Where several layers give them, one after the other, all but the last of these have a multiple of 64 outputs.
    """

    norm_1: nn.Module
    qkv: Linear | Sequence[Linear]
    out: Linear
    norm_2: nn.Module
    up: Linear | Sequence[Linear]
    down: Linear
    scale: float
    query_norm: RMSNorm | None = None
    key_norm: RMSNorm | None = None


class DecoderStack:
    """Blocks, last norm and head of a packed model: their tensors as `llmcli.ops.decoder` takes them.

    activation is one of that operator's; a norm without a bias is an RMS norm. interleaved: the outputs of `qkv` are
    q, k and v of one head after another. parallel: attention and MLP of a block read norms of the same stream.
    """

    FLOPS = 4e11  # of one call: about half a second of two cores, for which Ctrl-C waits
    SCREENED = 16 << 20  # bytes from which on a head pays for a screen: a smaller one stays in the caches
    PAUSE = 64  # steps without a screen that left out too little

    def __init__(
        self,
        blocks: Sequence[Block],
        norm: nn.Module,
        head: Tensor,
        *,
        vocab_size: int,
        n_heads: int,
        activation: str,
        interleaved: bool = False,
        parallel: bool = False,
    ):
        parts: list[Tensor] = []
        multiplied = 0
        for block in blocks:
            layers = (block.norm_1, block.qkv, block.out, block.norm_2, block.up, block.down)
            tensors = [tensor for layer in layers for tensor in _tensors(layer)]
            none = tensors[0].new_empty(0)
            norms = [none if n is None else n.weight.detach() for n in (block.query_norm, block.key_norm)]
            parts += [*tensors[:4], *norms, *tensors[4:]]
            matrices = [matrix for layer in layers for matrix in _linears(layer)]
            multiplied += sum(matrix.in_features * matrix.out_features for matrix in matrices)
        parts += _tensors(norm)
        self._parts, self._headless = [*parts, head], [*parts, head.new_empty(0)]
        self.max_rows = int(self.FLOPS / (2 * multiplied))
        rms = getattr(norm, "bias", None) is None
        self._sizes = [n_heads, blocks[0].down.in_features, vocab_size, ACTIVATIONS.index(activation), int(rms)]
        self._layout = [int(interleaved), int(parallel)]
        self._constants = [float(norm.eps), *(block.scale for block in blocks)]  # type: ignore[arg-type]
        self._screen: tuple[Tensor, Tensor] | None = None
        self._pause = 0

    def logits(
        self, x: Tensor, update: Tensor, cache: KVCache, rows: Sequence[int], places: Sequence[Tensor] = ()
    ) -> Tensor:
        """Logits (n,V) of the n rows b * T + t of x + update, each (B,T,C), whose positions the cache takes in.

        places: as the operator takes them, where positions enter the blocks.
        """
        result = self._run(x, update, cache, rows, self._parts, places)
        cache.advance(x.shape[1])
        return result

    def likeliest(
        self,
        x: Tensor,
        update: Tensor,
        cache: KVCache,
        rows: Sequence[int],
        limit: int,
        places: Sequence[Tensor] = (),
    ) -> tuple[Tensor, Tensor]:
        """`argmax` of the first `limit` of `logits`: token (n,) int64 and its logit (n,) float32, the same bits.

        Of a large head in full precision only what may hold the likeliest token is read (`linear_argmax`), after a copy
        of 8 bits that the first call makes.
        """
        head = self._parts[-1]
        if not head.is_floating_point() or head.nbytes < self.SCREENED or self._pause:
            self._pause = max(0, self._pause - 1)
            return argmax(self.logits(x, update, cache, rows, places)[:, :limit])
        if self._screen is None:
            self._screen = linear_screen(head, x.shape[-1], self._sizes[2])
        hidden = self._run(x, update, cache, rows, self._headless, places)
        cache.advance(x.shape[1])
        limit = min(limit, self._sizes[2])  # as a slice of logits would be
        token, logit, multiplied = linear_argmax(hidden, head, self._screen, self._sizes[2], limit)
        if 4 * PANEL * int(multiplied) > limit:
            self._pause = self.PAUSE
        return token, logit

    def hidden(self, x: Tensor, update: Tensor, cache: KVCache, places: Sequence[Tensor] = ()) -> Tensor:
        """What the head reads, at every position of x + update: (B,T,C) each → (B,T,C).

        The cache is new and has a single layer, where each layer of the model overwrites the one before.
        """
        rows = range(x.shape[0] * x.shape[1])
        return self._run(x, update, cache, rows, self._headless, places).view(x.shape)

    def _run(
        self,
        x: Tensor,
        update: Tensor,
        cache: KVCache,
        rows: Sequence[int],
        parts: Sequence[Tensor],
        places: Sequence[Tensor],
    ) -> Tensor:
        data, lengths = cache.reserve(x.shape[1])
        if len(data) == 1:  # one layer for all, see `hidden`
            data = data.expand(len(self._constants) - 1, *data.shape[1:])
        sizes = [*self._sizes, cache.head_dim, CACHE_DTYPES.index(cache.dtype), *self._layout]
        return decoder(x, update, data, lengths, list(rows), parts, places, sizes, self._constants)


def joinable(*layers: Linear) -> bool:
    """Whether packed layers of the same inputs can stand as one of a `Block`."""
    widths = [layer.out_features for layer in layers[:-1]]
    kinds = {(layer.packed.dtype, layer.packed.numel() // -(-layer.out_features // PANEL)) for layer in layers}  # type: ignore[union-attr]
    return all(width % PANEL == 0 for width in widths) and len(kinds) == 1


def _linears(layer: nn.Module | Sequence[Linear]) -> Sequence[Linear]:
    if isinstance(layer, nn.Module):
        return [layer] if isinstance(layer, Linear) else []
    return layer


def _tensors(layer: nn.Module | Sequence[Linear]) -> tuple[Tensor, Tensor]:
    """Weight and bias of a norm, or of packed linear layers, which become views of one; empty without a bias."""
    if not isinstance(layer, nn.Module):
        packed = torch.cat([part.packed for part in layer])  # type: ignore[misc]
        for part, view in zip(layer, packed.split([part.packed.numel() for part in layer]), strict=True):  # type: ignore[union-attr]
            part.packed = view
        biases = [part.bias.detach() for part in layer if part.bias is not None]
        return packed, torch.cat(biases) if biases else packed.new_empty(0)
    weight = layer.packed if isinstance(layer, Linear) else layer.weight
    assert isinstance(weight, Tensor)
    bias = getattr(layer, "bias", None)
    return weight.detach(), weight.new_empty(0) if bias is None else bias.detach()
