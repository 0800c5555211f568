"""Cleaning: texts are normalised, and those that are no use or were there before are dropped, each for a named reason.

Knows text and records; knows neither files nor terminals.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcli.errors import InputError

Shingles = npt.NDArray[np.uint64]

WORDS = 5  # of a shingle, the unit in which two texts are compared
BANDS, BAND_ROWS = 32, 4  # of a signature: texts that share 0.8 of their shingles meet with probability 1 - 5e-8
NAMED = 5  # dropped records that a report names for each reason


@dataclass(frozen=True)
class Rules:
    """What stays. Lengths in characters; shares from 0 to 1; `near` is the Jaccard similarity of word shingles."""

    normalize: bool = True
    min_chars: int = 1
    max_chars: int | None = None
    min_letters: float = 0.0
    near: float = 0.8  # 0 lets near duplicates stay
    charset: str | None = None  # an encoding, such as ascii or latin-1, that has every character

    def __post_init__(self) -> None:
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise InputError(f"max_chars {self.max_chars} is below min_chars {self.min_chars}")
        try:
            "".encode(self.charset or "utf-8")
        except LookupError:
            raise InputError(
                f"expected a charset that Python knows, such as ascii or latin-1, got {self.charset}"
            ) from None


@dataclass
class Report:
    """What came in, what stayed, and why the rest went."""

    rules: Rules
    n_in: int = 0
    n_out: int = 0
    n_chars_in: int = 0
    n_chars_out: int = 0
    dropped: dict[str, dict[str, Any]] = field(default_factory=dict)

    def drop(self, reason: str, name: str) -> None:
        """Count a record, and name it if it is among the first of its reason."""
        one = self.dropped.setdefault(reason, {"n": 0, "first": []})
        one["n"] += 1
        if len(one["first"]) < NAMED:
            one["first"].append(name)

    def document(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return {"schema": "llmcli/data-report/1", **asdict(self)}


def clean(records: Iterable[tuple[str, Any]], rules: Rules, report: Report) -> Iterator[dict[str, Any]]:
    """(name, text or JSON object) → the objects that stay, in order; of texts that are alike the first one stays.

    A text becomes {"text": …}. Only plain texts are normalised: in prompts and completions every space counts.
    """
    seen: set[bytes] = set()
    near = NearDuplicates(rules.near)
    for name, record in records:
        record = {"text": record} if isinstance(record, str) else record
        text = text_of(record, name)
        report.n_in += 1
        report.n_chars_in += len(text)
        if rules.normalize and "text" in record:
            text = normalize(text)
            record = {**record, "text": text}
        key = blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).digest()
        reason = unfit(text, rules)
        if reason is None and key in seen:
            reason = "duplicate"
        if reason is None and rules.near and near.known(text):
            reason = "near duplicate"
        if reason is not None:
            report.drop(reason, name)
            continue
        seen.add(key)
        report.n_out += 1
        report.n_chars_out += len(text)
        yield record


def text_of(record: dict[str, Any], name: str) -> str:
    """What of a record is compared and measured: its text, its prompt and completion, or what its messages say."""
    parts: list[Any]
    if "messages" in record:
        messages = record["messages"] if isinstance(record["messages"], list) else [None]
        parts = [message.get("content") if isinstance(message, dict) else None for message in messages]
    elif "text" in record:
        parts = [record["text"]]
    else:
        parts = [record.get("prompt"), record.get("completion")]
    if not all(isinstance(part, str) for part in parts):
        raise InputError(f"{name}: expected text, prompt and completion, or messages, as strings")
    text = "\n".join(parts)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"{name}: half of a surrogate pair, which is no text")
    return text


def normalize(text: str) -> str:
    """Composed characters (NFC), \\n as line end, no control characters, no white space around lines' ends and text."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = "".join(c for c in text if c in "\n\t" or (unicodedata.category(c) != "Cc" and c != "\ufeff"))
    return re.sub(r"[^\S\n]+\n", "\n", text).strip()


def unfit(text: str, rules: Rules) -> str | None:
    """Why a text by itself does not stay; None if it does."""
    length = len(text.strip())
    if not length:
        return "empty"
    if length < rules.min_chars:
        return "too short"
    if rules.max_chars is not None and length > rules.max_chars:
        return "too long"
    if rules.charset is not None:
        try:
            text.encode(rules.charset)
        except UnicodeError:
            return f"not in {rules.charset}"
    letters = sum(character.isalpha() or character.isspace() for character in text)
    return "too few letters" if letters < rules.min_letters * len(text) else None


class NearDuplicates:
    """The texts that stayed, found again by MinHash and compared by their shingles.

    Broder 1997, "On the resemblance and containment of documents"; bands as in Leskovec, Rajaraman and Ullman, "Mining
    of Massive Datasets", section 3.4.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        draw = np.random.default_rng(0)
        n = BANDS * BAND_ROWS
        self._factors = draw.integers(1, 2**63, n, np.uint64) * np.uint64(2) + np.uint64(1)
        self._offsets = draw.integers(0, 2**63, n, np.uint64)
        self._buckets: dict[tuple[int, bytes], list[int]] = {}
        self._texts: list[Shingles] = []

    def known(self, text: str) -> bool:
        """Whether a text that stayed shares so much with this one; if none does, this one stays from now on."""
        here = shingles(text)
        bands = self._signature(here).reshape(BANDS, BAND_ROWS)
        places = [(band, values.tobytes()) for band, values in enumerate(bands)]
        candidates = sorted({number for place in places for number in self._buckets.get(place, ())})
        if any(jaccard(here, self._texts[number]) >= self.share for number in candidates):
            return True
        for place in places:
            self._buckets.setdefault(place, []).append(len(self._texts))
        self._texts.append(here)
        return False

    def _signature(self, hashes: Shingles) -> npt.NDArray[np.uint32]:
        """The least value of each of the hash functions over all shingles (multiply-shift on 64 bits)."""
        least = np.full(len(self._factors), 2**32 - 1, np.uint32)
        for some in np.array_split(hashes, max(1, len(hashes) // 4096)):
            values = (some[:, None] * self._factors + self._offsets) >> np.uint64(32)
            least = np.minimum(least, values.min(0).astype(np.uint32))
        return least


def shingles(text: str) -> Shingles:
    """Hashes of all runs of WORDS words, sorted and each once; a shorter text is one run."""
    words = re.findall(r"\w+", text.casefold())
    runs = {" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1))}
    hashes = b"".join(blake2b(run.encode(), digest_size=8).digest() for run in runs)
    return np.unique(np.frombuffer(hashes, "<u8").astype(np.uint64))


def jaccard(one: Shingles, other: Shingles) -> float:
    """The share of all shingles of two texts that both have."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)
