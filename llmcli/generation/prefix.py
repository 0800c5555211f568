"""Prompts that begin alike are read once: the state of the last one is kept, and the next goes on where they part.

A prompt read in pieces has the bits of one read whole, so nothing changes but the time to the first token.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from llmcli.generation.rows import Extends, likeliest


class Remembering:
    """A model as the loop takes it, one sequence at a time, that remembers the tokens `ids` and their state."""

    def __init__(self, model: Extends, ids: Sequence[int] = (), state: Any = None):
        self._model, self._state = model, state
        self.ids = list(ids)
        self.reused = 0  # tokens of the last prompt that did not have to be read

    def start(self, ids: Tensor, lengths: Tensor | None = None, *, capacity: int | None = None) -> tuple[Tensor, Any]:
        """Read what is new of a prompt (1, T): at least its last token, whose logits (1, V) are wanted."""
        if len(ids) != 1:
            raise ValueError(f"expected one sequence at a time, got {len(ids)}")
        prompt = ids[0].tolist()
        self.reused = shared(self.ids, prompt[:-1])
        if self.reused:
            self._state.set_lengths([self.reused])
            self._state.grow(max(len(prompt), capacity or 0))
            logits = self._model.step(ids[:, self.reused :], self._state)
        else:
            logits, self._state = self._model.start(ids, lengths, capacity=capacity)
        self.ids = prompt
        # The loop drops the rows of its state when they end; the keys and values themselves are not copied.
        return logits, copy.copy(self._state)

    def step(self, ids: Tensor, state: Any) -> Tensor:
        """ids (1, 1) → logits (1, V); `took` says later what has become of them."""
        return self._model.step(ids, state)

    def extend(self, ids: Tensor, state: Any) -> Tensor:
        """ids (1, T) → logits (1, T, V)."""
        return self._model.extend(ids, state)

    def likeliest(self, ids: Tensor, state: Any, limit: int) -> tuple[Tensor, Tensor]:
        """ids (1, T) → the likeliest of the first `limit` tokens after each, (T,), and their logits, (T,)."""
        return likeliest(self._model, ids, state, limit)

    def took(self, tokens: Sequence[int]) -> None:
        """Remember tokens that steps have read behind the prompt."""
        self.ids += tokens

    def details(self) -> dict[str, Any]:
        """OpenAI's count of what was not read again, for `usage`."""
        return {"prompt_tokens_details": {"cached_tokens": self.reused}}


def shared(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the common beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def one_row(tokens: Sequence[int], device: torch.device | str) -> Tensor:
    """Tokens as a model takes those of one sequence: (1, T)."""
    return torch.tensor([tokens], device=device)
