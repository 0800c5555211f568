"""The same text sooner: guesses of what comes next are read together with the token that has come, in one step.

A step of T tokens has the bits of T steps of one token, so the loop gets the very logits that it would have got, or the
likeliest tokens where it wants no more, and chooses as it would have chosen, greedily or by its own random numbers: no
guess changes a byte. What is won is that the weights are read from memory once for all the guesses that come true
(Leviathan et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmcli.generation.prefix import Remembering, one_row
from llmcli.generation.rows import Extends, likeliest
from llmcli.ops import argmax

ORDER = 3  # tokens that must have occurred before for what followed them to be a guess
PATIENCE = 64  # steps without a guess, at most, after guesses that failed

Propose = Callable[[Sequence[int], int], list[int]]  # the text so far and n >= 1 → at most n tokens that may follow


@dataclass
class _Ahead:
    """The state of one sequence, which may have read guesses."""

    state: Any
    text: list[int]  # the tokens that the loop gave to read
    propose: Propose
    most: int
    width: int  # guesses at once
    guesses: list[int] = field(default_factory=list)  # read, and not yet come true
    answers: list[Any] = field(default_factory=list)  # after each of them: logits (1, V), or the likeliest, and its own
    limit: int | None = None  # below which the likeliest were asked for, in place of logits
    read: int = 0  # guesses in the last step
    true: int = 0  # of those
    silence: int = 1  # steps without guesses after the next ones that all fail
    wait: int = 0  # such steps that are left

    def select(self, rows: Tensor) -> None:
        """What the loop asks of a state: it keeps the sequence, or drops it."""
        self.state.select(rows)

    def settle(self) -> None:
        """Forget guesses that did not come true, and learn from those that were read last how bold to be."""
        if self.guesses:
            self.state.set_lengths([len(self.text)])
            self.guesses, self.answers, self.width = [], [], self.true + 1
        else:
            self.width = 2 * self.width
        self.width = min(self.width, self.most)
        if self.true:
            self.silence = max(1, self.silence // 2)
        else:
            self.wait, self.silence = self.silence, min(2 * self.silence, PATIENCE)

    def guess(self) -> list[int]:
        """What to read beside the last token of the text."""
        if self.wait:
            self.wait -= 1
            return []
        room = min(self.width, self.state.capacity - 1 - len(self.text))  # nothing follows the last position
        return self.propose(self.text, room) if room > 0 else []


class Speculating:
    """A model as the loop takes it, one sequence at a time, that reads at most `most` guesses ahead.

    There are twice as many once all of them have come true. Guesses that all fail silence the next 1, 2, 4, … steps, so
    that a text which cannot be guessed costs little.
    """

    def __init__(self, model: Extends, begin: Callable[[], Propose], most: int):
        self._model, self._begin, self._most = model, begin, most
        self._proposed = self._accepted = 0

    def start(
        self, ids: Tensor, lengths: Tensor | None = None, *, capacity: int | None = None
    ) -> tuple[Tensor, _Ahead]:
        """Read a prompt (1, T)."""
        if len(ids) != 1:
            raise ValueError(f"expected one sequence at a time, got {len(ids)}")
        logits, state = self._model.start(ids, lengths, capacity=capacity)
        return logits, _Ahead(state, ids[0].tolist(), self._begin(), self._most, min(2, self._most))

    def step(self, ids: Tensor, state: _Ahead) -> Tensor:
        """ids (1, 1) → logits (1, V), which are there already if the token was guessed."""

        def read(ids: Tensor) -> Sequence[Tensor]:
            if ids.shape[1] == 1:
                return [self._model.step(ids, state.state)]
            return self._model.extend(ids, state.state).unbind(1)

        logits: Tensor = self._next(ids, state, None, read)
        return logits

    def likeliest(self, ids: Tensor, state: _Ahead, limit: int) -> tuple[Tensor, Tensor]:
        """ids (1, 1) → `argmax` of the first `limit` logits of `step`, (1,) each."""

        def read(ids: Tensor) -> Sequence[tuple[Tensor, ...]]:
            return list(zip(*(part.split(1) for part in likeliest(self._model, ids, state.state, limit)), strict=True))

        token, logit = self._next(ids, state, limit, read)
        return token, logit

    def _next(self, ids: Tensor, state: _Ahead, limit: int | None, read: Callable[[Tensor], Sequence[Any]]) -> Any:
        """What follows the token ids (1, 1): read(ids) gives it for each of (1, T), and the rest is kept for later."""
        token = int(ids)
        if state.guesses and state.guesses[0] == token and state.limit == limit:
            state.text.append(state.guesses.pop(0))
            state.true += 1
            self._accepted += 1
            return state.answers.pop(0)
        if state.read:
            state.settle()
        state.text.append(token)
        guesses = state.guess()
        state.read, state.true, state.limit = len(guesses), 0, limit
        self._proposed += len(guesses)
        first, *state.answers = read(one_row([token, *guesses], ids.device) if guesses else ids)
        state.guesses = guesses
        return first

    def details(self) -> dict[str, Any]:
        """OpenAI's counts of guesses since the last call, for `usage`, and those of the model behind."""
        counts = {
            "accepted_prediction_tokens": self._accepted,
            "rejected_prediction_tokens": self._proposed - self._accepted,
        }
        self._proposed = self._accepted = 0
        behind = self._model.details() if isinstance(self._model, Remembering) else {}
        return {**behind, "completion_tokens_details": counts}


class Lookup:
    """Guesses what followed the last ORDER tokens where they last occurred (prompt look-up, Saxena 2023)."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # ORDER tokens → the place behind them
        self._known = ORDER  # places before this one are in there

    def __call__(self, text: Sequence[int], n: int) -> list[int]:
        for place in range(self._known, len(text)):
            self._after[tuple(text[place - ORDER : place])] = place
        self._known = max(self._known, len(text))
        begin = self._after.get(tuple(text[-ORDER:]))
        if begin is None:
            return []
        # Where the repetition is shorter than n it goes on with itself.
        period = len(text) - begin
        return [text[begin + i % period] for i in range(n)]


class Draft:
    """Guesses what a smaller model with the same vocabulary finds likeliest."""

    def __init__(self, model: Extends, vocab_size: int, context: int, device: torch.device | str):
        self._model, self._vocab_size, self._context, self._device = Remembering(model), vocab_size, context, device

    def __call__(self, text: Sequence[int], n: int) -> list[int]:
        n = min(n, self._context - len(text))
        if n < 1:
            return []
        capacity = min(self._context, 1 << (len(text) + n - 1).bit_length())  # grows in a few large steps
        logits, state = self._model.start(one_row(text, self._device), capacity=capacity)
        guesses = [int(argmax(logits[:, : self._vocab_size])[0])]
        while len(guesses) < n:
            last = one_row(guesses[-1:], self._device)
            guesses.append(int(self._model.likeliest(last, state, self._vocab_size)[0]))
        self._model.took(guesses[:-1])
        return guesses
