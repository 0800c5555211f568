"""Rows of a batch and a model: what the loop needs of one, and how prompts and tokens are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from llmcli.ops import argmax


class Vocabulary(Protocol):
    """What the loop needs of a tokenizer: its size, where a text ends, and the bytes of a token."""

    vocab_size: int
    eos_id: int | None

    def token_bytes(self, token: int, /) -> bytes:
        """The bytes that a token stands for, which may be part of a character."""


class Generates(Protocol):
    """What the loop needs of a model; the state is opaque but for `select(rows)` and `append(state)`."""

    def start(self, ids: Tensor, lengths: Tensor | None = None, *, capacity: int | None = None) -> tuple[Tensor, Any]:
        """ids (B, T), right-padded, and lengths (B,) → logits (B, V) at each row's last token, and the state."""

    def step(self, ids: Tensor, state: Any) -> Tensor:
        """ids (B, 1), the next token of every row → logits (B, V)."""


class Extends(Generates, Protocol):
    """A model whose state can `grow` and, by `set_lengths`, forget what lies behind some positions."""

    def extend(self, ids: Tensor, state: Any) -> Tensor:
        """ids (B, T) → logits (B, T, V) after each of them."""


@runtime_checkable
class Chooses(Protocol):
    """A model that tells the likeliest token of a step for less than its logits."""

    def likeliest(self, ids: Tensor, state: Any, limit: int) -> tuple[Tensor, Tensor]:
        """ids (B, T) → `argmax` of the first `limit` logits after each: tokens (B * T,) and their logits (B * T,).

        T is 1 but for models that `Extends`.
        """


def likeliest(model: Generates | Extends, ids: Tensor, state: Any, limit: int) -> tuple[Tensor, Tensor]:
    """Read ids (B, T): the likeliest that follows each of them, (B * T,), and its logit, (B * T,).

    The same bits whether the model gives logits or chooses itself. T is 1 but for models that `Extends`.
    """
    if isinstance(model, Chooses):
        return model.likeliest(ids, state, limit)
    several = ids.shape[1] > 1
    logits = model.extend(ids, state).flatten(0, 1) if several else model.step(ids, state)  # type: ignore[union-attr]
    return argmax(logits[:, :limit])


@torch.inference_mode()
def start_rows(
    model: Generates,
    vocabulary: Vocabulary,
    prompts: Sequence[Sequence[int]],
    capacity: int,
    device: torch.device | str,
) -> tuple[Tensor, Any]:
    """Read prompts of any lengths as one batch: the logits (B, V) that follow each, and the state.

    V is the tokenizer's size: models pad their vocabulary, and a padding entry stands for no text.
    """
    longest = max(map(len, prompts))
    ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=device)
    lengths = None
    if any(len(prompt) < longest for prompt in prompts):
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    logits, state = model.start(ids, lengths, capacity=capacity)
    return logits[:, : vocabulary.vocab_size], state


@torch.inference_mode()
def continue_rows(
    model: Generates, vocabulary: Vocabulary, tokens: list[int], state: Any, device: torch.device | str
) -> Tensor:
    """Read one token per row: the logits (B, V) that follow."""
    return model.step(torch.tensor(tokens, device=device)[:, None], state)[:, : vocabulary.vocab_size]


@torch.inference_mode()
def choose_rows(
    model: Generates, vocabulary: Vocabulary, tokens: list[int], state: Any, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Read one token per row: the likeliest that follow, (B,), and their logits, (B,)."""
    return likeliest(model, torch.tensor(tokens, device=device)[:, None], state, vocabulary.vocab_size)


def settled(tokens: Tensor, logits: Tensor, vocab_size: int) -> Tensor:
    """Rows (B, V) of which only the chosen token (B,) is possible, with its logit (B,)."""
    rows = logits.new_full((len(tokens), vocab_size), float("-inf"))
    return rows.scatter_(1, tokens[:, None], logits[:, None])


@torch.inference_mode()
def append_rows(state: Any, more: Any) -> None:
    """Put another state's rows behind those of the first."""
    state.append(more)


@torch.inference_mode()
def select_rows(state: Any, rows: Tensor) -> None:
    """Keep, reorder or repeat the state's rows (N,)."""
    state.select(rows)
