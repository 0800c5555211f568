"""What every architecture does with its matrices and its vocabulary projection: pack, quantise, multiply."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmcli.nn.linear import Linear
from llmcli.nn.quantized import Release
from llmcli.ops import linear, linear_pack, softcap


class Embedding(nn.Embedding):
    """nn.Embedding without random weights: they come from a checkpoint or from a model's `initialize`."""

    def reset_parameters(self) -> None:
        """Leave the memory as it is, so that a model on the meta device costs nothing."""


class PackedModel(nn.Module, ABC):
    """Linear layers, and a head over the vocabulary that may share the token embedding.

    The model itself gives `config` (vocab_size, …), `tokens`, and `lm_head` where the head is not tied.
    """

    KIND = "decoder"  # or "encoder-decoder", which answers a prompt, or "encoder", which reads texts whole

    config: Any
    lm_head: Linear
    quantized: str | None = None  # "int8" or "int4"
    logit_cap: float | None = None  # of `softcap`, which bounds the logits
    headless = False  # True of a model that has no use for a vocabulary projection

    def __init__(self) -> None:
        super().__init__()
        self._packed_head: Tensor | None = None

    @property
    @abstractmethod
    def tokens(self) -> Tensor:
        """The token embeddings (V,C)."""

    @property
    def projection(self) -> Tensor:
        """The matrix (V,C) that makes logits of what `hidden` gives."""
        own = self._own_head()
        return self.tokens if own is None else own.weight

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> PackedModel:
        """Fill the parameters for training from scratch: normal matrices of initializer_range, norms 1, biases 0."""
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, self.config.initializer_range, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        return self

    def checkpoint(self) -> dict[str, Tensor]:
        """The parameters under a checkpoint's names, for saving: the inverse of the model's `rename`."""
        return {self.stored(name): tensor for name, tensor in self.state_dict().items()}

    def pack(self) -> PackedModel:
        """Pack every matrix for the CPU kernel; from now on the model only runs forward and cannot be saved."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.pack()
        self.settle_tied(None)
        return self

    def settle_tied(self, kind: str | None, release: Release = None) -> None:
        """Pack the embeddings as the head that they are too, once, or quantise them; not where it has its own matrix.

        Done first, while a model is read: what is mapped of them and what is made of them is much of the whole.
        """
        if self._own_head() is not None or self._packed_head is not None or self.headless:
            return
        if kind is None:
            self._packed_head = linear_pack(self.tokens.detach())
        elif head := dict(self.matrices()).get("lm_head"):
            head.quantize(self.bits(kind, "lm_head"), "lm_head.weight", release)

    def quantize(self, kind: str) -> PackedModel:
        """Bring every matrix to 8 or 4 bits ("int8", "int4"), once; from now on the model only runs forward.

        Embeddings, positions, norms and biases stay as they are; a tied head gets a matrix of its own, but
        for an encoder, which multiplies by it at few positions.
        Raises ModelError for a matrix that has NaN, infinity or a group of zeros.
        """
        self.quantized = kind
        for name, layer in self.matrices():
            layer.quantize(self.bits(kind, name), f"{name}.weight")
        return self

    def matrices(self) -> list[tuple[str, Linear]]:
        """What `quantize` changes, by name: the linear layers, among them a head of its own for a tied one."""
        if self._own_head() is None and self.KIND != "encoder":
            self.lm_head = Linear(self.tokens.shape[1], self.config.vocab_size, bias=False)
            self.lm_head.register_parameter("weight", self.tokens)  # type: ignore[arg-type]
        return [(name, layer) for name, layer in self.named_modules() if isinstance(layer, Linear)]

    @staticmethod
    def bits(kind: str, name: str) -> int:
        """Bits of a matrix under "int8" or "int4"; the head, which costs most (docs/quantize.md), has 8 in either."""
        return 8 if kind == "int8" or name == "lm_head" else 4

    @staticmethod
    def stored(name: str) -> str:
        """A checkpoint's name of a tensor of this module."""
        return name

    def _own_head(self) -> Linear | None:
        """The head's own matrix; None where it is the embedding."""
        return self._modules.get("lm_head")  # type: ignore[return-value]

    @property
    def _head_as_packed(self) -> Tensor | None:
        """The packed matrix of the vocabulary projection, in any precision; None of a model that is not packed."""
        own = self._own_head()
        return self._packed_head if own is None else own.packed

    def _project(self, x: Tensor) -> Tensor:
        """The vocabulary projection: (...,C) → (...,V)."""
        if (own := self._own_head()) is not None:
            logits = own.project(x)
        elif self._packed_head is not None:
            logits = linear(x, self._packed_head, None, self.config.vocab_size)
        else:
            logits = F.linear(x, self.tokens)
        return logits if self.logit_cap is None else softcap(logits, self.logit_cap)
