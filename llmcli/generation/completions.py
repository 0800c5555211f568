"""Between text and the decoding loop: records to requests, events to documents with OpenAI's completion field names.

Knows tokenizers and JSON fields; knows neither files nor terminals.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from llmcli.errors import InputError
from llmcli.generation.beam_search import beam_search, check_beams
from llmcli.generation.constraint import KINDS, Constraints
from llmcli.generation.loop import Batch, Event, Request, TokenLogprob, fit, generate
from llmcli.generation.prefix import Remembering
from llmcli.generation.sampling import Sampling
from llmcli.generation.speculation import Speculating
from llmcli.generation.text_stream import spell
from llmcli.loading import DEFAULT, Loaded
from llmcli.tokenizer import Tokenizer

SCHEMA = "llmcli/generation/1"
SAMPLING = tuple(setting.name for setting in fields(Sampling))
MAX_BEAMS = 1024
SETTINGS = ("max_tokens", "num_samples", "seed", "stop", "logprobs", *KINDS, *SAMPLING)


@dataclass(frozen=True)
class Policy:
    """What holds for every request of a run: the context's size, the overflow rule, the width of a beam search.

    Raises InputError for values that cannot be used.
    """

    context: int
    overflow: str = "error"
    beams: int = 1
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        usable = {
            "context": type(self.context) is int and self.context > 0,
            "overflow": self.overflow in ("error", "truncate", "slide"),
            "beams": type(self.beams) is int and 0 < self.beams <= MAX_BEAMS,
            "length_penalty": type(self.length_penalty) in (int, float) and abs(self.length_penalty) <= 100,
        }
        for name, holds in usable.items():
            if not holds:
                raise InputError(f"policy: {name} cannot be {getattr(self, name)!r:.60}")


@dataclass
class Completion:
    """One sample of a request, as far as its events have come."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None
    matches: bool | None = None

    def add(self, event: Event) -> None:
        """Take the sequence's next event."""
        self.text += event.text
        if event.token is not None:
            self.tokens.append(event.token)
        if event.logprob is not None:
            self.logprobs.append(event.logprob)
        self.finish_reason, self.matches = event.finish_reason, event.matches


@dataclass
class Stopwatch:
    """Seconds that a batch took to read its prompts (up to the first token), and to write the rest."""

    load: float = 0.0
    prompt: float = 0.0
    predicted: float = 0.0
    _begin: float = field(default_factory=time.perf_counter)

    def tick(self) -> None:
        """Note an event."""
        now = time.perf_counter() - self._begin
        self.prompt = self.prompt or now
        self.predicted = now - self.prompt


@dataclass
class Session:
    """A loaded model under one policy; a reader stands before the model, reads sooner, and takes one text at a time."""

    loaded: Loaded
    policy: Policy
    load_seconds: float = 0.0
    reader: Speculating | Remembering | None = None

    def request(self, prompt: str, settings: Mapping[str, Any]) -> Request:
        """A prompt and settings (names of SETTINGS) as a request. Raises InputError for what cannot be used."""
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"expected text, got a lone surrogate at character {error.start} of the prompt") from None
        given = {name: value for name, value in settings.items() if name not in (*SAMPLING, *KINDS)}
        stop = given.pop("stop", ())
        if not isinstance(stop, (str, list, tuple)):
            raise InputError(f"stop must be text or a list of texts, got {stop!r}")
        sampling = {name: value for name, value in settings.items() if name in SAMPLING and value is not None}
        sampling.setdefault("repetition_penalty", self.loaded.repetition_penalty)
        tokenizer, answers = self.loaded.tokenizer, self.loaded.answers
        request = Request(
            ids=tokenizer.encode_whole(prompt) if answers else tokenizer.encode_prompt(prompt),
            anew=answers and tokenizer.leads_with_space,
            sampling=Sampling(**sampling),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            constraint=self._constraints.of(settings),
            **given,
        )
        if self.policy.beams > 1:
            check_beams(request, self.policy.beams)
        if isinstance(self.reader, Speculating) and request.num_samples > 1:
            raise InputError(
                f"num_samples: expected 1 with guesses (--lookup, --draft-model), got {request.num_samples}"
            )
        return replace(request, ids=fit(request.ids, request.max_tokens, self.policy.context, self.policy.overflow))

    def events(
        self,
        requests: Sequence[Request],
        interrupted: Callable[[], bool] = lambda: False,
        *,
        batch_size: int | None = None,
    ) -> Iterator[Event]:
        """The events of all requests: batch_size of them at a time (all by default), or one beam search by one."""
        loaded, policy = self.loaded, self.policy
        common: dict[str, Any] = {"context": policy.context, "interrupted": interrupted, "device": loaded.device}
        if policy.beams == 1:
            common |= {"slide": policy.overflow == "slide", "batch_size": batch_size}
            yield from generate(self.reader or loaded.model, requests, loaded.tokenizer, **common)
            return
        search: dict[str, Any] = {"beams": policy.beams, "length_penalty": policy.length_penalty, **common}
        for index, request in enumerate(requests):
            for event in beam_search(loaded.model, request, loaded.tokenizer, **search):
                yield replace(event, request=index)

    def batch(self) -> Batch:
        """An empty batch under this policy."""
        loaded, policy = self.loaded, self.policy
        slide = policy.overflow == "slide"
        return Batch(
            self.reader or loaded.model, loaded.tokenizer, context=policy.context, slide=slide, device=loaded.device
        )

    @functools.cached_property
    def _constraints(self) -> Constraints:
        return Constraints(self.loaded.tokenizer, anew=self.loaded.answers and self.loaded.tokenizer.leads_with_space)

    @property
    def name(self) -> str:
        """The model as documents name it."""
        return "default" if self.loaded.path == DEFAULT else self.loaded.name

    def collect(self, requests: Sequence[Request], *, batch_size: int) -> list[dict[str, Any]]:
        """The document of every request, once all of them have ended."""
        watch = Stopwatch(load=self.load_seconds)
        completions = [[Completion() for _ in range(request.num_samples)] for request in requests]
        for event in self.events(requests, batch_size=batch_size):
            watch.tick()
            completions[event.request][event.sample].add(event)
        return [self.document(request, done, watch) for request, done in zip(requests, completions, strict=True)]

    @functools.cached_property
    def engine(self) -> dict[str, Any]:
        """What computes the texts: the same for every document of a run."""
        return self.loaded.engine()

    def document(self, request: Request, completions: Sequence[Completion], watch: Stopwatch) -> dict[str, Any]:
        """The document of one request; its timings are those of the batch that it shared."""
        written = sum(len(completion.tokens) for completion in completions)
        return {
            "schema": SCHEMA,
            "id": identity(self.name, request),
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.name,
            "choices": [
                {
                    "index": index,
                    "text": completion.text,
                    "finish_reason": completion.finish_reason,
                    **({} if completion.matches is None else {"matches": completion.matches}),
                    "logprobs": None if request.logprobs is None else _logprobs(self.loaded.tokenizer, completion),
                }
                for index, completion in enumerate(completions)
            ],
            "usage": {
                "prompt_tokens": len(request.ids),
                "completion_tokens": written,
                "total_tokens": len(request.ids) + written,
                **(self.reader.details() if self.reader else {}),
            },
            "timings": {
                "load_ms": round(1e3 * watch.load, 3),
                "prompt_ms": round(1e3 * watch.prompt, 3),
                "predicted_ms": round(1e3 * watch.predicted, 3),
                "prompt_per_second": rate(len(request.ids), watch.prompt),
                # The first token of each sample comes with the prompt's last logits.
                "predicted_per_second": rate(written - len(completions), watch.predicted),
            },
            "llmcli": {"seed": request.seed, **self.engine},
        }


def rate(count: int, seconds: float) -> float | None:
    """Tokens per second, None where nothing was timed."""
    return round(count / seconds, 3) if count > 0 and seconds > 0 else None


def _logprobs(tokenizer: Tokenizer, completion: Completion) -> dict[str, Any]:
    """OpenAI's four lists, and the ids, which are unambiguous where two tokens read alike."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    offsets, offset = [], 0
    for token in completion.tokens:
        offsets.append(offset)
        offset += len(decoder.decode(tokenizer.token_bytes(token)))
    return {
        "tokens": [spell(tokenizer.token_bytes(token)) for token in completion.tokens],
        "token_ids": completion.tokens,
        "token_logprobs": [logprob.chosen for logprob in completion.logprobs],
        "top_logprobs": [
            {spell(tokenizer.token_bytes(token)): value for token, value in logprob.top}
            for logprob in completion.logprobs
        ],
        "text_offset": offsets,
    }


def identity(name: str, request: Request) -> str:
    """An id that the same model, prompt and settings give again."""
    decides = (name, request) if request.constraint is None else (name, request, request.constraint)
    return "cmpl-" + hashlib.sha256(repr(decides).encode()).hexdigest()[:24]
