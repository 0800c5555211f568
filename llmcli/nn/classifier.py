"""Classification heads: on a decoder's last token, which has read all of a text, or on an encoder's first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmcli.nn.linear import Linear


def classifier(model: Any, n_labels: int) -> Classifier | EncoderClassifier:
    """The head that fits the kind of a model."""
    return (EncoderClassifier if model.KIND == "encoder" else Classifier)(model, n_labels)


HEAD = "score.weight"  # the name in a checkpoint, as in transformers' models for sequence classification


class Classifier(nn.Module):
    """A decoder, whose `hidden(ids)` gives (B,T,C), and a matrix from C to N classes, without bias."""

    KIND = "decoder"
    logit_cap = None  # a decoder's own is for its words

    def __init__(self, decoder: Any, n_labels: int) -> None:
        super().__init__()
        self.decoder, self.config = decoder, decoder.config
        self.score = Linear(decoder.config.n_embd, n_labels, bias=False)

    @torch.no_grad()
    def initialize_head(self, generator: torch.Generator) -> Classifier:
        """Fill the head's weights for training; the decoder keeps those it has."""
        self.score.weight.normal_(0.0, 0.02, generator=generator)
        return self

    @property
    def projection(self) -> Tensor:
        """The matrix (N,C) that makes logits of what `hidden` gives."""
        return self.score.weight

    def hidden(self, ids: Tensor) -> Tensor:
        """What the head reads, at every position: ids (B,T) → (B,T,C)."""
        states: Tensor = self.decoder.hidden(ids)
        return states

    def forward(self, ids: Tensor) -> Tensor:
        """Logits after every token, for training: ids (B,T) → (B,T,N)."""
        logits: Tensor = self.score(self.hidden(ids))
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


class EncoderClassifier(nn.Module):
    """An encoder, whose `encode(ids, lengths)` gives (B,T,C), a tanh layer and a matrix from C to N classes."""

    KIND = "encoder"
    logit_cap = None

    def __init__(self, encoder: Any, n_labels: int) -> None:
        super().__init__()
        self.encoder, self.config = encoder, encoder.config
        encoder.drop_head()
        self.dense = Linear(encoder.config.n_embd, encoder.config.n_embd)
        self.out = Linear(encoder.config.n_embd, n_labels)

    @torch.no_grad()
    def initialize_head(self, generator: torch.Generator) -> EncoderClassifier:
        """Fill the head's weights for training; the encoder keeps those it has."""
        for layer in (self.dense, self.out):
            layer.weight.normal_(0.0, 0.02, generator=generator)
            layer.bias.zero_()
        return self

    def forward(self, ids: Tensor) -> Tensor:
        """The logits of a text at every position, for training: ids (B,T) → (B,T,N).

        The last token of a row stands there as ~id; what comes behind it is padding.
        """
        return self.hidden(ids) @ self.projection.T

    @property
    def projection(self) -> Tensor:
        """The matrix (N,C+1) that makes logits of what `hidden` gives: the bias is its last column."""
        return torch.cat([self.out.weight, self.out.bias[:, None]], 1)

    def hidden(self, ids: Tensor) -> Tensor:
        """What the last layer reads of a text, and a one for its bias, at every position: ids (B,T) → (B,T,C+1)."""
        lengths = (ids < 0).int().argmax(1) + 1
        read = self._read(torch.where(ids < 0, ~ids, ids), lengths)
        return torch.cat([read, torch.ones_like(read[:, :1])], 1)[:, None].expand(-1, ids.shape[1], -1)

    def classify(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Logits of whole texts: ids (B,T), right-padded to lengths (B,) → (B,N).

        A row's bits depend neither on the other rows nor on the padding.
        """
        logits: Tensor = self.out(self._read(ids, lengths))
        return logits

    def _read(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """What the last layer reads: (B,T) → (B,C)."""
        return torch.tanh(self.dense(self.encoder.encode(ids, lengths)[:, 0]))

    def pack(self) -> EncoderClassifier:
        """Nothing beyond the linear layers, each of which is packed as it is loaded."""
        return self

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names of transformers' model for sequence classification → this module's, without copying."""
        rest, head = dict.fromkeys(weights), {}
        for ours, theirs in zip(("dense", "out"), self.encoder.classifier_names(), strict=True):
            for leaf in ("weight", "bias"):
                if rest.pop(f"{theirs}.{leaf}", 0) is None:
                    head[f"{ours}.{leaf}"] = weights[f"{theirs}.{leaf}"]
        renamed = self.encoder.rename({name: weights[name] for name in rest})
        return {f"encoder.{name}": tensor for name, tensor in renamed.items()} | head

    def checkpoint(self) -> dict[str, Tensor]:
        """The parameters under those names, for saving: the inverse of `rename`."""
        weights: dict[str, Tensor] = self.encoder.checkpoint()
        dense, out = self.encoder.classifier_names()
        for theirs, layer in ((dense, self.dense), (out, self.out)):
            weights |= {f"{theirs}.weight": layer.weight, f"{theirs}.bias": layer.bias}
        return weights
