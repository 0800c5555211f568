"""Where in a text each token stands and how surprising it is: for lists, lint hits and heat maps."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from llmcli.scoring.documents import Document, Encodes, Floats

LEVELS = 8
BITS_PER_LEVEL = 2.0


@dataclass(frozen=True)
class Token:
    """A token of a text: line and column (from 1, in characters) and byte offset of its first byte.

    A token that begins inside a character has that character's column. logprob is in nats; None where the protocol
    gives none.
    """

    id: int
    data: bytes
    offset: int
    line: int
    column: int
    logprob: float | None

    @property
    def bits(self) -> float | None:
        """Surprisal: -log2 p."""
        return None if self.logprob is None else -self.logprob / math.log(2)


def locate(document: Document, scores: Floats, tokenizer: Encodes, text: str) -> list[Token]:
    """The tokens of a document with their places in its text; scores (n_tokens,) are those of all but the first.

    A space that the tokenizer writes before any text belongs to no token.
    """
    tokens = []
    offset, line, column = 0, 1, 1
    ids, raw = document.ids.tolist(), text.encode()
    spelt = [tokenizer.token_bytes(token) for token in ids]
    if spelt and spelt[0][:1] == b" " and (raw[:1] != b" " or b"".join(spelt) == b" " + raw):
        spelt[0] = spelt[0][1:]
    for token, data, logprob in zip(ids, spelt, [None, *scores.tolist()], strict=False):
        inside = data[:1] > b"\x7f" and data[0] < 0xC0  # a UTF-8 continuation byte
        tokens.append(Token(token, data, offset, line, max(1, column - inside), logprob))
        offset += len(data)
        line += data.count(b"\n")
        last = data[data.rfind(b"\n") + 1 :]
        column = (1 if b"\n" in data else column) + sum(byte & 0xC0 != 0x80 for byte in last)
    return tokens


def surprises(tokens: Iterable[Token], over: float) -> Iterator[tuple[Token, float]]:
    """The tokens of more than `over` bits, and their bits; NaN counts, since nothing is known of it."""
    for token in tokens:
        if token.bits is not None and not token.bits <= over:
            yield token, token.bits


def characters(tokens: Sequence[Token]) -> Iterator[tuple[str, float | None]]:
    """The text in pieces of whole characters, and the bits of each: those of the tokens that spell it, summed."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    bits: float | None = None
    for n, token in enumerate(tokens):
        text = decoder.decode(token.data, n == len(tokens) - 1)
        bits = token.bits if bits is None else bits + (token.bits or 0.0)
        if text:
            yield text, bits
            bits = None


def level(bits: float | None) -> int:
    """0 for no surprise (or none known) to LEVELS - 1, in steps of BITS_PER_LEVEL."""
    if bits is None:
        return 0
    return LEVELS - 1 if math.isnan(bits) else int(min(LEVELS - 1, max(0.0, bits // BITS_PER_LEVEL)))
