"""A classification head on any decoder: class logits from the last token of a text, which has read all of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmcli.nn.linear import Linear

HEAD = "score.weight"  # the name in a checkpoint, as in transformers' models for sequence classification


class Classifier(nn.Module):
    """A decoder, whose `hidden(ids)` gives (B,T,C), and a matrix from C to N classes, without bias."""

    def __init__(self, decoder: Any, n_labels: int) -> None:
        super().__init__()
        self.decoder, self.config = decoder, decoder.config
        self.score = Linear(decoder.config.n_embd, n_labels, bias=False)

    @torch.no_grad()
    def initialize_head(self, generator: torch.Generator) -> Classifier:
        """Fill the head's weights for training; the decoder keeps those it has."""
        self.score.weight.normal_(0.0, 0.02, generator=generator)
        return self

    def forward(self, ids: Tensor) -> Tensor:
        """Logits after every token, for training: ids (B,T) → (B,T,N)."""
        logits: Tensor = self.score(self.decoder.hidden(ids))
        return logits

    def classify(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Logits of whole texts: ids (B,T), right-padded to lengths (B,) → (B,N).

        A row's bits depend neither on the other rows nor on the padding.
        """
        hidden = self.decoder.hidden(ids)
        logits: Tensor = self.score(hidden[torch.arange(len(ids), device=ids.device), lengths - 1])
        return logits

    def pack(self) -> Classifier:
        """Nothing beyond the linear layers, each of which is packed as it is loaded."""
        return self

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of transformers' model for sequence classification → this module's, without copying."""
        head = {name: weights[name] for name in weights if name == HEAD}
        rest = {name: weights[name] for name in weights if name != HEAD}
        return {f"decoder.{name}": tensor for name, tensor in self.decoder.rename(rest).items()} | head

    def checkpoint(self) -> dict[str, Tensor]:
        """The parameters under those names, for saving: the inverse of `rename`."""
        weights: dict[str, Tensor] = self.decoder.checkpoint()
        return weights | {HEAD: self.score.weight}
