"""The decoding loop: prompts as ids in, an iterator of events out.

Models see ids and tensors only; the single piece of text knowledge here is the bytes of a token, because a stop string
can end a sequence between any two tokens. Nothing here prints, and nothing is kept between calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmcli.errors import InputError
from llmcli.generation.constraint import Constraint, Guide
from llmcli.generation.rows import (
    Generates,
    Vocabulary,
    append_rows,
    choose_rows,
    continue_rows,
    select_rows,
    settled,
    start_rows,
)
from llmcli.generation.sampling import SEED_LIMIT, Sampling, largest, permit, require_finite, uniform
from llmcli.generation.text_stream import TextStream
from llmcli.nn.recorded import recorded
from llmcli.ops import softmax

MAX_SAMPLES = 4096  # of one prompt: they decode as one batch


@dataclass(frozen=True)
class Request:
    """One prompt and how to continue it. Raises InputError for values that cannot be used."""

    ids: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    max_tokens: int = 128
    num_samples: int = 1
    stop: Sequence[str] = ()
    logprobs: int | None = None
    anew: bool = field(
        default=False, repr=False
    )  # the text does not continue the prompt: no space before its first word
    constraint: Constraint | None = field(default=None, repr=False)  # what the text must match

    def __post_init__(self) -> None:
        if not self.ids:
            raise InputError("the prompt is empty: expected at least one token")
        for name, least in (("max_tokens", 1), ("num_samples", 1), ("seed", 0)):
            _require_whole(name, getattr(self, name), least)
        if self.num_samples > MAX_SAMPLES:
            raise InputError(f"num_samples must be at most {MAX_SAMPLES}, got {self.num_samples}")
        if self.seed >= SEED_LIMIT:
            raise InputError(f"seed must be below 2^63, got {self.seed}")
        if self.logprobs is not None:
            _require_whole("logprobs", self.logprobs, 0)
        TextStream(self.stop)
        if self.stop and self.constraint is not None:
            raise InputError("stop: expected none beside a regex or JSON schema, which says where the text ends")


@dataclass(frozen=True)
class TokenLogprob:
    """Natural log-probability of a chosen token and of the likeliest ones, before penalties and temperature."""

    chosen: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Event:
    """One step of one sequence: the token chosen (None if interrupted before one) and the text that it decided."""

    request: int
    sample: int
    token: int | None
    text: str
    logprob: TokenLogprob | None = None
    finish_reason: str | None = None  # "stop", "length", "interrupt" or, under a constraint, "dead_end"
    matches: bool | None = None  # whether a constrained text that has ended matches


def fit(ids: Sequence[int], max_tokens: int, context: int, overflow: str) -> Sequence[int]:
    """Apply the overflow rule to a prompt: prompt and completion together hold at most `context` tokens.

    "error" raises InputError for a prompt that leaves no room for one token; "truncate" drops the prompt's first
    tokens until max_tokens fit, but keeps at least half the context; "slide" keeps the last half of the context.
    """
    if overflow == "truncate":
        return ids[-max(context - max_tokens, context // 2, 1) :]
    if len(ids) < context:
        return ids
    if overflow == "slide":
        return ids[-max(context // 2, 1) :]
    raise InputError(
        f"the prompt has {len(ids)} tokens and the context holds {context}, one of them for the completion: "
        "shorten the prompt, or choose --ctx-overflow truncate or slide to drop its beginning"
    )


def generate(
    model: Generates,
    requests: Sequence[Request],
    vocabulary: Vocabulary,
    *,
    context: int,
    slide: bool = False,
    batch_size: int | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    device: torch.device | str = "cpu",
) -> Iterator[Event]:
    """Continue requests, token by token; each sequence's last event carries its finish_reason.

    All of them together, or batch_size at a time: the next request takes the place of one that has ended.
    """
    batch, waiting = Batch(model, vocabulary, context=context, slide=slide, device=device), enumerate(requests)
    while True:
        room = len(requests) if batch_size is None else batch_size - batch.size
        batch.add(list(itertools.islice(waiting, room)))
        if not batch.size:
            return
        yield from batch.step()
        if interrupted():
            yield from batch.interrupt()
            return
        batch.read()


class Batch:
    """Sequences that are continued together: requests join at any step, sequences leave when they end.

    A sequence that reaches `context` ends with "length", or, with slide, goes on from the last half of its context.
    Its text depends on its own request, seed and sample number only. Raises ModelError for non-finite logits.
    """

    def __init__(
        self,
        model: Generates,
        vocabulary: Vocabulary,
        *,
        context: int,
        slide: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self._model: Generates = recorded(model, device)
        self._vocabulary, self._context, self._slide, self._device = vocabulary, context, slide, device
        self._rows: list[_Row] = []
        self._state: Any = None
        self._logits: Tensor = torch.empty(0)
        self._likeliest: tuple[Tensor, Tensor] | None = None  # in place of logits, where all rows take the likeliest
        self._chooser = _Chooser()

    @property
    def size(self) -> int:
        """Requests of which a sequence has not ended."""
        return len({row.index for row in self._rows})

    def add(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Read prompts; their events come under the numbers given here."""
        if not requests:
            return
        rows = [
            _Row.begin(number, sample, request) for number, request in requests for sample in range(request.num_samples)
        ]
        logits, state = self._start(rows, [request.ids for _, request in requests])
        if len(rows) > len(requests):
            places = [place for place, (_, request) in enumerate(requests) for _ in range(request.num_samples)]
            repeats = torch.tensor(places, device=self._device)
            logits = logits[repeats]
            select_rows(state, repeats)
        if self._rows:
            append_rows(self._state, state)
            if self._likeliest is not None:
                self._logits = settled(*self._likeliest, logits.shape[1]).to(logits.dtype)
            logits, state = torch.cat([self._logits, logits]), self._state
        self._rows, self._logits, self._state, self._likeliest = self._rows + rows, logits, state, None
        self._chooser.add(rows, logits)

    def step(self) -> Iterator[Event]:
        """Choose the next token of every sequence; those that end leave the batch."""
        rows, going = self._rows, []
        if self._likeliest is None:
            tokens, logprobs = self._chooser(rows, self._logits)
        else:
            require_finite(self._likeliest[1])
            tokens, logprobs = self._likeliest[0].tolist(), [None] * len(rows)
        for n, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            event = row.take(token, logprobs[n], self._vocabulary, None if self._slide else self._context)
            if event.finish_reason is None:
                going.append(n)
            yield event
        if len(going) < len(rows):
            keep = torch.tensor(going, dtype=torch.int64, device=self._device)
            self._rows = [rows[n] for n in going]
            select_rows(self._state, keep)
            self._chooser.select(self._rows, keep)

    def read(self) -> None:
        """Read the tokens that `step` chose."""
        rows, context = self._rows, self._context
        if not rows:
            return
        if self._slide and any(len(row.context) >= context for row in rows):
            for row in rows:
                if len(row.context) >= context:
                    del row.context[: -max(context // 2, 1)]
            self._likeliest = None
            self._logits, self._state = self._start(rows, [row.context for row in rows])
            return
        following = self._model, self._vocabulary, [row.context[-1] for row in rows], self._state, self._device
        if all(row.greedy for row in rows):
            self._likeliest = choose_rows(*following)
        else:
            self._likeliest, self._logits = None, continue_rows(*following)

    def interrupt(self) -> Iterator[Event]:
        """End every sequence as it is."""
        for row in self._rows:
            yield row.interrupt()
        self._rows = []

    def _start(self, rows: Sequence[_Row], prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Any]:
        room = max(len(row.request.ids) + row.request.max_tokens for row in rows)
        return start_rows(self._model, self._vocabulary, prompts, min(room, self._context), self._device)


@dataclass
class _Row:
    """A sequence in the batch."""

    index: int
    sample: int
    request: Request
    stream: TextStream
    context: list[int]  # the tokens that the model has seen or sees next
    guide: Guide | None = None
    generated: int = 0

    @classmethod
    def begin(cls, index: int, sample: int, request: Request) -> _Row:
        """A request's sample before its first token."""
        guide = None if request.constraint is None else request.constraint.begin()
        return cls(index, sample, request, TextStream(request.stop, anew=request.anew), list(request.ids), guide)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, and nothing else asked for."""
        return self.request.sampling.greedy and self.request.logprobs is None and self.guide is None

    def take(self, token: int, logprob: TokenLogprob | None, vocabulary: Vocabulary, limit: int | None) -> Event:
        """Append token; limit is the context's size, None if it slides."""
        self.generated += 1
        self.context.append(token)
        text, reason = "", None
        if token == vocabulary.eos_id:
            reason = "stop"
        else:
            text = self.stream.push(vocabulary.token_bytes(token))
            if self.guide is not None:
                self.guide.take(token)
            if self.stream.stopped:
                reason = "stop"
            elif self.guide is not None and self.guide.ended:
                reason = "stop" if self.guide.matches else "dead_end"
            elif self.generated == self.request.max_tokens or len(self.context) == limit:
                reason = "length"
        if reason is not None:
            text += self.stream.finish()
        return Event(self.index, self.sample, token, text, logprob, reason, self._matches(reason))

    def interrupt(self) -> Event:
        return Event(self.index, self.sample, None, self.stream.finish(), None, "interrupt", self._matches("interrupt"))

    def _matches(self, reason: str | None) -> bool | None:
        return None if reason is None or self.guide is None else self.guide.matches


class _Chooser:
    """Picks every row's next token, rows with equal settings together, and keeps the counts that penalties need."""

    def __init__(self) -> None:
        self._members: list[_Row] = []
        self._groups: list[tuple[Sampling, list[int]]] = []
        self._counts: tuple[Tensor, Tensor] | None = None

    def add(self, rows: Sequence[_Row], logits: Tensor) -> None:
        """Take in the batch's new last rows; logits (B,V) of all."""
        before = len(self._members)
        self._group([*self._members, *rows])
        if self._counts is None and not any(row.request.sampling.penalises for row in rows):
            return
        prompt = torch.stack([_count(row.request.ids, logits) for row in rows])
        counts = prompt, torch.zeros_like(prompt)
        if self._counts is None:  # the rows before have no use for theirs
            self._counts = (prompt.new_zeros(before, prompt.shape[1]),) * 2
        self._counts = tuple(torch.cat(pair) for pair in zip(self._counts, counts, strict=True))  # type: ignore[assignment]

    def select(self, rows: Sequence[_Row], keep: Tensor) -> None:
        """Only these rows stay, from the positions keep (N,)."""
        self._group(rows)
        if self._counts is not None:
            prompt, completion = self._counts
            self._counts = prompt[keep], completion[keep]

    def _group(self, rows: Sequence[_Row]) -> None:
        groups: dict[Sampling, list[int]] = {}
        for n, row in enumerate(rows):
            groups.setdefault(row.request.sampling, []).append(n)
        self._members, self._groups = list(rows), list(groups.items())

    @torch.inference_mode()
    def __call__(self, rows: Sequence[_Row], logits: Tensor) -> tuple[list[int], list[TokenLogprob | None]]:
        tokens = [0] * len(rows)
        permitted = logits
        if any(row.guide is not None for row in rows):
            free = torch.ones(logits.shape[-1], dtype=torch.bool)
            allowed = torch.stack([free if row.guide is None else row.guide.allowed for row in rows])
            permitted = permit(logits, allowed.to(logits.device))
        for sampling, members in self._groups:
            whole = len(members) == len(rows)
            group = torch.tensor(members, device=logits.device) if not whole else slice(None)
            counts = None if self._counts is None else (self._counts[0][group], self._counts[1][group])
            uniforms = (
                [uniform(rows[n].request.seed, rows[n].sample, rows[n].generated) for n in members]
                if sampling.temperature
                else []
            )
            chosen = sampling.choose(permitted if whole else permitted[group], uniforms, counts).tolist()
            for n, token in zip(members, chosen, strict=True):
                tokens[n] = token
        if self._counts is not None:
            completion = self._counts[1]
            completion[torch.arange(len(rows)), torch.tensor(tokens)] += 1
        if all(row.request.logprobs is None for row in rows):
            return tokens, [None] * len(rows)
        logprobs = softmax(logits.float(), log=True)
        return tokens, [token_logprob(logprobs[n], tokens[n], row.request.logprobs) for n, row in enumerate(rows)]


def token_logprob(logprobs: Tensor, token: int, k: int | None) -> TokenLogprob | None:
    """What a request for k log-probabilities gets of a row (V,): the likeliest falling, ties to the lowest id."""
    if k is None:
        return None
    top = largest(logprobs, k) if k else logprobs.new_zeros(0, dtype=torch.int64)
    return TokenLogprob(float(logprobs[token]), list(zip(top.tolist(), logprobs[top].tolist(), strict=True)))


def _count(ids: Sequence[int], like: Tensor) -> Tensor:
    """How often each token of the vocabulary occurs in ids: (V,) float32."""
    ids_ = torch.tensor(ids, device=like.device)
    return torch.bincount(ids_, minlength=like.shape[-1]).float()


def _require_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")
