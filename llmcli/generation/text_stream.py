"""From token bytes to text that may be shown: whole UTF-8 characters only, and never a byte of a stop string.

This room knows neither models nor terminals.
"""

from __future__ import annotations

import codecs
import copy
from collections.abc import Sequence

from llmcli.errors import InputError


class TextStream:
    """One sequence's text, decided piece by piece.

    What comes out, concatenated, is the bytes decoded as UTF-8 (invalid ones as U+FFFD) up to the stop string that is
    complete first, the longest of those that end together. It does not depend on how the bytes were split.
    With `anew`, a space at the beginning is dropped: some tokenizers write one before the first word of any text.
    """

    def __init__(self, stops: Sequence[str] = (), *, anew: bool = False) -> None:
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                raise InputError(f"a stop string must be text of at least one character, got {stop!r}")
        self.stopped = False
        self._stops = tuple(stops)
        self._anew = anew
        self._held = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, data: bytes) -> str:
        """Take a token's bytes and return the text that they decide; sets `stopped` at a stop string."""
        if self._anew and data:
            self._anew, data = False, data.removeprefix(b" ")
        return self._decide(self._decoder.decode(data))

    def finish(self) -> str:
        """Return what is still held back: no more bytes will come."""
        if self.stopped:
            return ""
        text = self._decide(self._decoder.decode(b"", True)) + self._held
        self._held = ""
        return text

    def fork(self) -> TextStream:
        """An independent stream that continues from here, for a hypothesis that branches."""
        other = copy.copy(self)
        other._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        other._decoder.setstate(self._decoder.getstate())
        return other

    def _decide(self, text: str) -> str:
        if not self._stops or self.stopped:
            return "" if self.stopped else text
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        held = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def spell(data: bytes) -> str:
    r"""A token as text, or its bytes (bytes:\xe2\x80) when they are only a part of a character."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that begins stop."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
