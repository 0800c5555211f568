"""Named protocols: what becomes of a text before it is read, and which tokens the model sees when it scores a token.

A new protocol is a frozen dataclass that is a `Rule`, and a row in `PROTOCOLS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from llmcli.errors import InputError
from llmcli.scoring import wikitext

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Window:
    """The model reads tokens [start, stop - 1) and scores tokens [first, stop)."""

    start: int
    first: int
    stop: int


class Rule(Protocol):
    """Which windows a document is scored in, and of what: what a protocol decides."""

    prefixed: ClassVar[bool]  # the end-of-text token stands before the document, so that its first token is scored
    headline: ClassVar[str]  # the figure that people quote under this protocol: "ppl" or "word_ppl"

    @property
    def context(self) -> int:
        """Tokens that a window shows the model, at most."""

    @property
    def least(self) -> int:
        """Tokens that a document must have to be scored at all."""

    def windows(self, n_tokens: int) -> Iterator[Window]:
        """The windows of n_tokens (a prefix counted), in order; none scores a token that another has scored."""

    def read(self, text: str) -> str:
        """The text that the model reads."""

    def count_words(self, text: str, scored: str) -> int:
        """Words to divide by, of a document's text and of the part of it (as read) that is scored."""

    def describe(self) -> dict[str, Any]:
        """Everything that decides the number, for people and for the fingerprint; "name" is what --protocol takes."""


class Plain:
    """What most protocols do: the text as it is, words between white space of the scored part."""

    prefixed: ClassVar[bool] = False
    headline: ClassVar[str] = "ppl"

    @property
    def least(self) -> int:
        """One token of context, one that is scored."""
        return 2

    def read(self, text: str) -> str:
        """The text itself."""
        return text

    def count_words(self, text: str, scored: str) -> int:
        """Words between white space of the scored part."""
        return len(scored.split())


@dataclass(frozen=True)
class Sliding(Plain):
    """Windows of `context` tokens read, `stride` apart: every token after the first is scored exactly once.

    A token t is scored with min(t, context) tokens before it in the first window and with at least
    context + 1 - stride later. There is no BOS token, so the first token of a document is context only.
    With stride < context this is the recipe of the transformers documentation at max_length = context + 1.
    """

    context: int
    stride: int
    family: ClassVar[str] = "sliding"

    def __post_init__(self) -> None:
        if self.context < 1:
            raise InputError(f"context: expected at least 1 token, got {self.context}")
        if not 1 <= self.stride <= self.context:
            raise InputError(
                f"stride: expected 1 to {self.context} (the context), got {self.stride}; a longer one skips tokens"
            )

    @classmethod
    def parse(cls, parameters: str, limit: int | None = None) -> Self:
        """`CTX/STRIDE`, or `CTX` with half of it as the stride."""
        context, stride = numbers(cls.family, parameters, 2)
        return cls(context, stride or default_stride(context))

    def windows(self, n_tokens: int) -> Iterator[Window]:
        """The windows of a document of n_tokens, in order."""
        start, first = 0, 1
        while first < n_tokens:
            stop = min(start + self.context + 1, n_tokens)
            yield Window(start, first, stop)
            start, first = start + self.stride, stop

    def describe(self) -> dict[str, Any]:
        """The fields of a JSON report's "protocol"."""
        return described(f"{self.family}:{self.context}/{self.stride}", self.family, self.context, self.stride)


@dataclass(frozen=True)
class HuggingFace(Sliding):
    """The recipe of the transformers documentation ("Perplexity of fixed-length models") at max_length `context`.

    Windows of `context` tokens of which the last is not read, `stride` apart; a window scores what those before it did
    not hold, and never its own first token. Every scored token counts once, where the recipe weighs a window by one
    token less than it scores.
    """

    family: ClassVar[str] = "hf"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context < 2:
            raise InputError(f"context: expected at least 2 tokens, got {self.context}")

    def windows(self, n_tokens: int) -> Iterator[Window]:
        """The windows of a document of n_tokens, in order."""
        end = 0
        for start in range(0, n_tokens, self.stride):
            stop = min(start + self.context, n_tokens)
            if max(start + 1, end) < stop:
                yield Window(start, max(start + 1, end), stop)
            end = stop
            if stop == n_tokens:
                return

    def describe(self) -> dict[str, Any]:
        """As of `Sliding`; where windows do not overlap, the first token of each is context only."""
        return {**super().describe(), "first_token": "of each window: context only"}


@dataclass(frozen=True)
class LlamaCpp(Plain):
    """llama.cpp's llama-perplexity: disjoint chunks of `context` tokens, the second half of each scored.

    No BOS, as for GPT-2; the rest that fills no chunk is dropped, and fewer than two chunks are refused, as there.
    """

    context: int
    family: ClassVar[str] = "llamacpp"

    def __post_init__(self) -> None:
        if self.context < 4:
            raise InputError(f"context: expected at least 4 tokens, got {self.context}")

    @classmethod
    def parse(cls, parameters: str, limit: int | None = None) -> Self:
        """`CTX`; llama.cpp's default is 512."""
        return cls(numbers(cls.family, parameters, 1)[0])

    @property
    def least(self) -> int:
        """Two chunks."""
        return 2 * self.context

    def windows(self, n_tokens: int) -> Iterator[Window]:
        """One window per chunk."""
        if n_tokens >= self.least:
            for start in range(0, n_tokens - self.context + 1, self.context):
                yield Window(start, start + self.context // 2 + 1, start + self.context)

    def describe(self) -> dict[str, Any]:
        """The fields of a JSON report's "protocol"."""
        row = described(f"{self.family}:{self.context}", self.family, self.context, self.context)
        return {**row, "first_token": "first half of each chunk: context only; rest dropped"}


@dataclass(frozen=True)
class LmEval(Plain):
    """The lm-eval harness's rolling log-likelihood: disjoint windows behind an end-of-text token, the last filled up.

    Words and bytes are those of the whole text; words are the parts between white space, empty ones at the ends
    included, as that harness counts them.
    """

    context: int
    family: ClassVar[str] = "lm-eval"
    prefixed: ClassVar[bool] = True
    headline: ClassVar[str] = "word_ppl"

    def __post_init__(self) -> None:
        if self.context < 1:
            raise InputError(f"context: expected at least 1 token, got {self.context}")

    @classmethod
    def parse(cls, parameters: str, limit: int | None = None) -> Self:
        """Nothing, for all that the model reads, or `CTX`."""
        return cls(numbers(cls.family, parameters, 1, limit)[0])

    @property
    def least(self) -> int:
        """The end-of-text token and one that is scored."""
        return 2

    def windows(self, n_tokens: int) -> Iterator[Window]:
        """The windows of a document of n_tokens, the end-of-text token counted."""
        for first in range(1, n_tokens, self.context):
            stop = min(first + self.context, n_tokens)
            yield Window(max(0, stop - 1 - self.context), first, stop)

    def count_words(self, text: str, scored: str) -> int:
        """The parts of the whole text between white space, empty ones at its ends included."""
        return len(re.split(r"\s+", text))

    def describe(self) -> dict[str, Any]:
        """The fields of a JSON report's "protocol"."""
        row = described(f"{self.family}:{self.context}", self.family, self.context, self.context)
        return {**row, "bos": "end of text", "first_token": "scored", "normalizer": "word"}


@dataclass(frozen=True)
class Gpt2Paper(LmEval):
    """WikiText files as in "Language Models are Unsupervised Multitask Learners": de-tokenised, per original word.

    A line end of the file is a word, too (word-level models predict it). The paper publishes neither its de-tokenisers
    nor its stride: here the windows are disjoint, and the de-tokeniser is `wikitext.detokenize`.
    """

    family: ClassVar[str] = "gpt2-paper"

    def read(self, text: str) -> str:
        """The text with the spaces that WikiText's tokeniser added taken out."""
        return wikitext.detokenize(text)

    def count_words(self, text: str, scored: str) -> int:
        """The words of the file between white space, and its line ends."""
        return len(text.split()) + text.count("\n")

    def describe(self) -> dict[str, Any]:
        """The fields of a JSON report's "protocol"."""
        return {**super().describe(), "normalizer": "word or line end of the file", "detokenizer": wikitext.NAME}


Parser = Callable[[str, "int | None"], Rule]
PROTOCOLS: dict[str, Parser] = {
    Sliding.family: Sliding.parse,
    LlamaCpp.family: LlamaCpp.parse,
    HuggingFace.family: HuggingFace.parse,
    LmEval.family: LmEval.parse,
    Gpt2Paper.family: Gpt2Paper.parse,
}


def default_stride(context: int) -> int:
    """Half of the context: every token sees at least the other half, at twice the work of disjoint windows."""
    return max(1, context // 2)


def protocol(name: str, limit: int | None = None) -> Rule:
    """The protocol called `FAMILY:PARAMETERS` for a model that reads `limit` tokens; else an InputError."""
    family, _, parameters = name.partition(":")
    if family not in PROTOCOLS:
        raise InputError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got '{family}'")
    return PROTOCOLS[family](parameters, limit)


def every(limit: int) -> list[Rule]:
    """Each protocol once, at the sizes of the tool it is named after, or what a model of `limit` tokens allows."""
    stride = default_stride(limit)
    chunk = max(4, min(512, limit))
    return [Sliding(limit, stride), LlamaCpp(chunk), HuggingFace(limit, stride), LmEval(limit), Gpt2Paper(limit)]


def numbers(family: str, parameters: str, most: int, limit: int | None = None) -> list[int]:
    """`most` numbers of `A` or `A/B`, 0 for one left out; nothing at all stands for the limit, where there is one."""
    if not parameters and limit is not None:
        return [limit] + [0] * (most - 1)
    match = re.fullmatch(r"(\d{1,9})" + r"(?:/(\d{1,9}))?" * (most - 1), parameters, re.ASCII)
    if match is None or any(group == "0" * len(group) for group in match.groups() if group):
        form = "CTX/STRIDE"[: 10 if most == 2 else 3]
        raise InputError(f"protocol: expected {family}:{form}, each at least 1, got '{family}:{parameters}'")
    return [int(group or 0) for group in match.groups()]


def described(name: str, family: str, context: int, stride: int) -> dict[str, Any]:
    """A description with the commonest rules."""
    return {
        "name": name, "family": family, "context": context, "stride": stride, "bos": "none",
        "first_token": "context only", "normalizer": "token", "detokenizer": "none",
    }  # fmt: skip
