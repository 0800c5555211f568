"""How surprised a model is by text: windows, log-probabilities, totals and an interval. Ids in, numbers out.

A protocol says which tokens the model sees when it scores a token; two perplexities compare only when their
fingerprints are equal. A new protocol is a frozen dataclass that is a `Rule`, and a row in `PROTOCOLS`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llmcli.errors import InputError

Floats = npt.NDArray[np.floating[Any]]


class Scores(Protocol):
    """A model that scores: ids (B, T) -> (B, T-first) float32, log p(ids[t] | ids[..t-1]) for t >= first >= 1."""

    def logprobs(self, ids: Tensor, first: int = 1) -> Tensor: ...


class Encodes(Protocol):
    """The half of a tokenizer that scoring needs."""

    def encode(self, text: str) -> list[int]: ...
    def token_bytes(self, token: int) -> bytes: ...


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


@dataclass(frozen=True)
class Document:
    """One text as ids (N,) int32; bytes and words count the scored part, which begins after the first token."""

    name: str
    ids: Tensor
    n_bytes: int
    n_words: int
    sha256: str

    @property
    def n_tokens(self) -> int:
        """Tokens that are scored: all but the first."""
        return max(0, len(self.ids) - 1)


def encode(name: str, text: str, tokenizer: Encodes) -> Document:
    """Tokenise one text and count its scored bytes (UTF-8) and words (between white space)."""
    ids, raw = tokenizer.encode(text), text.encode()
    scored = raw.removeprefix(tokenizer.token_bytes(ids[0])) if ids else b""
    words = len(scored.decode(errors="replace").split())
    return Document(name, torch.tensor(ids, dtype=torch.int32), len(scored), words, hashlib.sha256(raw).hexdigest())


def logprobs(
    model: Scores, ids: Tensor, protocol: Rule, *, batch_size: int = 1, device: torch.device | str = "cpu"
) -> Iterator[Floats]:
    """Yield log p of tokens 1, 2, … of ids (N,) given what the protocol shows, as float32 arrays in order.

    Windows of one shape share a batch of at most `batch_size`; memory holds one batch at a time.
    """

    def shape(window: Window) -> tuple[int, int]:
        return window.stop - window.start, window.first - window.start

    for (length, first), group in groupby(protocol.windows(len(ids)), key=shape):
        while batch := list(islice(group, batch_size)):
            rows = torch.stack([ids[window.start : window.start + length] for window in batch])
            with torch.inference_mode():
                scores = model.logprobs(rows.to(device, torch.int64), first)
            yield scores.float().cpu().flatten().numpy()


@dataclass(frozen=True)
class Total:
    """Negative log-likelihood in nats over so many tokens, bytes and words, or the reason why there is none."""

    nll: float
    n_tokens: int
    n_bytes: int
    n_words: int
    error: str | None = None

    def describe(self) -> dict[str, Any]:
        """The figures that people compare; those that do not exist are None."""

        def ratio(n: int) -> float | None:
            return self.nll / n if self.error is None and n else None

        per_byte = ratio(self.n_bytes)
        figures = {
            "ppl": _exp(ratio(self.n_tokens)),
            "nll_per_token": ratio(self.n_tokens),
            "bits_per_byte": None if per_byte is None else per_byte / math.log(2),
            "n_tokens": self.n_tokens,
            "n_bytes": self.n_bytes,
            "n_words": self.n_words,
            "word_ppl": _exp(ratio(self.n_words)),
        }
        return figures if self.error is None else {**figures, "error": self.error}


def total(document: Document, scores: Floats) -> Total:
    """Sum one document's log-probabilities (n_tokens,) in float64, correctly rounded, so that order has no say."""
    counts = (document.n_tokens, document.n_bytes, document.n_words)
    if document.n_tokens == 0:
        return Total(0.0, *counts, error=f"expected at least two tokens, got {len(document.ids)}")
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        return Total(
            math.nan, *counts, error=f"log-probability of token {bad[0] + 1} is {scores[bad[0]]}, not a finite number"
        )
    return Total(-math.fsum(scores.tolist()), *counts)


def report(documents: Sequence[Document], scores: Sequence[Floats], protocol: Rule, *, seed: int = 0) -> dict[str, Any]:
    """The figures of a corpus and of its documents; a document too short to score is listed and left out.

    One log-probability that is not finite makes the corpus figures None: a mean of the rest would be another corpus.
    """
    totals = [total(document, row) for document, row in zip(documents, scores, strict=True)]
    used = [i for i, document in enumerate(documents) if document.n_tokens]
    broken = next((i for i in used if totals[i].error), None)
    error = "no document has two tokens" if not used else None
    if broken is not None:
        error = f"{documents[broken].name}: {totals[broken].error}"
    corpus = Total(
        math.fsum(totals[i].nll for i in used),
        sum(totals[i].n_tokens for i in used),
        sum(totals[i].n_bytes for i in used),
        sum(totals[i].n_words for i in used),
        error,
    )
    interval = bootstrap([] if error else [-scores[i].astype(np.float64) for i in used], seed=seed)
    if error:
        interval["method"] = "no perplexity"
    return {
        **corpus.describe(),
        "ci": {**interval, "low": _exp(interval["low"]), "high": _exp(interval["high"])},
        "protocol": protocol.describe(),
        "fingerprint": fingerprint(documents, protocol),
        "documents": [
            {"name": document.name, **row.describe()} for document, row in zip(documents, totals, strict=True)
        ],
    }


def fingerprint(documents: Sequence[Document], protocol: Rule) -> str:
    """SHA-256 over the protocol and the texts in order: equal fingerprints, comparable perplexities."""
    data = hashlib.sha256("".join(document.sha256 for document in documents).encode()).hexdigest()
    return hashlib.sha256(json.dumps({**protocol.describe(), "data": data}, sort_keys=True).encode()).hexdigest()


def bootstrap(values: Sequence[Floats], *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Interval of the mean over all values, by the studentised block bootstrap (Davison & Hinkley 1997, 2.4, 8.2).

    Neighbouring tokens are correlated, so blocks are drawn: whole documents when there are at least 30, else
    stretches of about sqrt(n) tokens. Fewer than 8 values give no interval (None).
    """
    n = sum(map(len, values))
    answer = {"level": level, "low": None, "high": None, "method": "fewer than 8 tokens"}
    if n < 8:
        return answer
    by_document = len(values) >= 30
    length = min(max(1, math.isqrt(n)), n // 8)
    if by_document:
        sums, counts = [float(v.sum()) for v in values], [len(v) for v in values]
    else:
        blocks = [b for v in values for b in np.array_split(v, max(1, round(len(v) / length)))]
        sums, counts = [float(b.sum()) for b in blocks], [len(b) for b in blocks]
    # More than a thousand blocks cost time and add nothing: neighbours are merged.
    groups = np.array_split(np.arange(len(sums)), min(len(sums), 1024))
    s = np.array([sum(sums[i] for i in group) for group in groups])
    c = np.array([sum(counts[i] for i in group) for group in groups], dtype=np.float64)
    low, high = _studentised(s, c, level, np.random.default_rng(seed).integers(0, len(s), (resamples, len(s))))
    unit = "documents" if by_document else f"{length} tokens"
    method = f"studentised bootstrap, {resamples} resamples of {len(s)} blocks of {unit}, seed {seed}"
    return {"level": level, "low": low, "high": high, "method": method}


def _studentised(
    s: npt.NDArray[np.float64], c: npt.NDArray[np.float64], level: float, draws: npt.NDArray[np.int64]
) -> tuple[float, float]:
    """Interval of sum(s) / sum(c) from block sums s (M,), counts c (M,) and resampled rows draws (R, M)."""
    m = len(s)
    mean = float(s.sum() / c.sum())
    error = math.sqrt(m / (m - 1) * float(((s - mean * c) ** 2).sum())) / float(c.sum())
    if error == 0:
        return mean, mean
    drawn_s, drawn_c = s[draws], c[draws]
    means = drawn_s.sum(1) / drawn_c.sum(1)
    squares = ((drawn_s - means[:, None] * drawn_c) ** 2).sum(1)
    errors = np.sqrt(m / (m - 1) * squares) / drawn_c.sum(1)
    # A draw of one block only has no spread; the floor keeps its quotient finite.
    low, high = np.quantile((means - mean) / np.maximum(errors, 1e-3 * error), [(1 - level) / 2, (1 + level) / 2])
    return max(0.0, mean - float(high) * error), mean - float(low) * error


def _exp(x: float | None) -> float | None:
    """exp(x), or None where there is no x or no float as large."""
    try:
        return None if x is None else math.exp(x)
    except OverflowError:
        return None
