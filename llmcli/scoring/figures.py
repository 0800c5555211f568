"""From log-probabilities to the figures that people compare, and the fingerprint that says whether they may."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmcli.scoring.documents import Document, Floats
from llmcli.scoring.protocols import Rule
from llmcli.scoring.resampling import blocks, bootstrap


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


def total(document: Document, scores: Floats, protocol: Rule | None = None) -> Total:
    """Sum one document's log-probabilities (n_tokens,) in float64, correctly rounded, so that order has no say."""
    counts = (document.n_tokens, document.n_bytes, document.n_words)
    if document.n_tokens == 0:
        return Total(0.0, *counts, error=too_short(document, 2 if protocol is None else protocol.least))
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        return Total(
            math.nan, *counts, error=f"log-probability of token {bad[0] + 1} is {scores[bad[0]]}, not a finite number"
        )
    return Total(-math.fsum(scores.tolist()), *counts)


def too_short(document: Document, least: int) -> str:
    """What is wrong with a document that has no token to score."""
    return f"expected at least {'two' if least == 2 else least} tokens, got {len(document.ids)}"


def report(documents: Sequence[Document], scores: Sequence[Floats], protocol: Rule, *, seed: int = 0) -> dict[str, Any]:
    """The figures of a corpus and of its documents; a document too short to score is listed and left out.

    One log-probability that is not finite makes the corpus figures None: a mean of the rest would be another corpus.
    """
    totals = [total(document, row, protocol) for document, row in zip(documents, scores, strict=True)]
    used = [i for i, document in enumerate(documents) if document.n_tokens]
    broken = next((i for i in used if totals[i].error), None)
    least = "two" if protocol.least == 2 else protocol.least
    error = f"no document has {least} tokens" if not used else None
    if broken is not None:
        error = f"{documents[broken].name}: {totals[broken].error}"
    corpus = Total(
        math.fsum(totals[i].nll for i in used),
        sum(totals[i].n_tokens for i in used),
        sum(totals[i].n_bytes for i in used),
        sum(totals[i].n_words for i in used),
        error,
    )
    surprise = [] if error else [-scores[i].astype(np.float64) for i in used]
    interval, drawn = bootstrap(surprise, seed=seed), blocks(surprise)
    if error:
        interval["method"] = "no perplexity"
    figures = corpus.describe()
    # The same nats by another number: an interval of nats per token is one of nats per word.
    share = corpus.n_tokens / corpus.n_words if protocol.headline == "word_ppl" and corpus.n_words else 1.0
    ends = {end: _exp(None if interval[end] is None else interval[end] * share) for end in ("low", "high")}
    return {
        **figures,
        "headline": {"figure": protocol.headline, "value": figures[protocol.headline], **ends},
        "macro": macro([totals[i] for i in used] if not error else []),
        "ci": {**interval, "low": _exp(interval["low"]), "high": _exp(interval["high"])},
        "protocol": protocol.describe(),
        "fingerprint": fingerprint(documents, protocol),
        "documents": [
            {"name": document.name, **row.describe()} for document, row in zip(documents, totals, strict=True)
        ],
        "blocks": {"unit": drawn.unit, "n_tokens": drawn.counts.astype(int).tolist(), "nll": drawn.sums.tolist()},
    }


def macro(totals: Sequence[Total]) -> dict[str, float | None]:
    """Averages in which each document counts once: of its nats per token, and of its bits per byte."""

    def mean(name: str) -> float | None:
        values = [value for total in totals if (value := total.describe()[name]) is not None]
        return math.fsum(values) / len(values) if values else None

    nll = mean("nll_per_token")
    return {"ppl": _exp(nll), "nll_per_token": nll, "bits_per_byte": mean("bits_per_byte")}


def fingerprint(documents: Sequence[Document], protocol: Rule) -> str:
    """SHA-256 over the protocol and the texts in order: equal fingerprints, comparable perplexities.

    Where the protocol divides by tokens, their ids count, too: another tokenizer makes another number of them.
    """
    covered = {**protocol.describe(), "data": _joint(document.sha256 for document in documents)}
    if protocol.headline == "ppl":
        covered["tokens"] = _joint(hashlib.sha256(document.ids.numpy().tobytes()).hexdigest() for document in documents)
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


def _joint(digests: Iterable[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _exp(x: float | None) -> float | None:
    """exp(x), or None where there is no x or no float as large."""
    try:
        return None if x is None else math.exp(x)
    except OverflowError:
        return None
