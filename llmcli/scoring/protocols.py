"""Named protocols: which tokens the model sees when it scores a token.

A new protocol is a frozen dataclass that is a `Rule`, and a row in `PROTOCOLS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from llmcli.errors import InputError


@dataclass(frozen=True)
class Window:
    """The model reads tokens [start, stop - 1) and scores tokens [first, stop)."""

    start: int
    first: int
    stop: int


class Rule(Protocol):
    """Which windows a document is scored in: what a protocol decides."""

    @property
    def context(self) -> int:
        """Tokens that a window shows the model, at most."""

    def windows(self, n_tokens: int) -> Iterator[Window]:
        """The windows of a document of n_tokens, in order, which score each token that is scored once."""

    def describe(self) -> dict[str, Any]:
        """Everything that decides the number, for people and for the fingerprint; "name" is what --protocol takes."""


@dataclass(frozen=True)
class Sliding:
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
    def parse(cls, parameters: str) -> Sliding:
        """`CTX/STRIDE`, or `CTX` with half of it as the stride."""
        match = re.fullmatch(r"(\d{1,9})(?:/(\d{1,9}))?", parameters, re.ASCII)
        if match is None:
            raise InputError(f"protocol: expected {cls.family}:CTX/STRIDE, got '{cls.family}:{parameters}'")
        context = int(match[1])
        return cls(context, int(match[2]) if match[2] else default_stride(context))

    def windows(self, n_tokens: int) -> Iterator[Window]:
        """The windows of a document of n_tokens, in order."""
        start, first = 0, 1
        while first < n_tokens:
            stop = min(start + self.context + 1, n_tokens)
            yield Window(start, first, stop)
            start, first = start + self.stride, stop

    def describe(self) -> dict[str, Any]:
        """The fields of a JSON report's "protocol"."""
        return {
            "name": f"{self.family}:{self.context}/{self.stride}",
            "family": self.family,
            "context": self.context,
            "stride": self.stride,
            "bos": "none",
            "first_token": "context only",
            "normalizer": "token",
        }


PROTOCOLS: dict[str, Callable[[str], Rule]] = {Sliding.family: Sliding.parse}


def default_stride(context: int) -> int:
    """Half of the context: every token sees at least the other half, at twice the work of disjoint windows."""
    return max(1, context // 2)


def protocol(name: str) -> Rule:
    """The protocol called `FAMILY:PARAMETERS`; an unknown family is an InputError."""
    family, _, parameters = name.partition(":")
    if family not in PROTOCOLS:
        raise InputError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got '{family}'")
    return PROTOCOLS[family](parameters)
