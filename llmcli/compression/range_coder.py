"""A range coder in integers only (Martin 1979; carries as in LZMA): symbols as (start, size) of a total, to bytes.

A symbol costs log2(total / size) bits plus at most 2^-23 bits of rounding, and the end at most two bytes.
"""

from __future__ import annotations

BITS = 64
TOP = 1 << (BITS - 8)
MASK = (1 << BITS) - 1
MAX_TOTAL = 1 << 33  # so that range // total keeps 23 bits at least


class Encoder:
    """Collects symbols; `finish` gives the bytes."""

    def __init__(self) -> None:
        self._low, self._range = 0, MASK
        self._held, self._nines = -1, 0  # the last byte, which a carry may still change, and the 0xFF after it
        self._out = bytearray()

    def encode(self, start: int, size: int, total: int) -> None:
        """Append the symbol [start, start + size) of [0, total)."""
        assert 0 <= start < start + size <= total <= MAX_TOTAL
        step = self._range // total
        self._low += start * step
        self._range = step * size
        while self._range < TOP:
            self._range <<= 8
            self._shift()

    def finish(self) -> bytes:
        """The bytes of all symbols: as few as tell them from any others, zeros at the end left out."""
        for zeros in range(BITS - 1, -1, -1):  # the roundest number in [low, low + range)
            rounded = -(-self._low >> zeros) << zeros
            if rounded < self._low + self._range:
                self._low = rounded
                break
        for _ in range(BITS // 8 + 1):
            self._shift()
        return bytes(self._out).rstrip(b"\0")

    def _shift(self) -> None:
        """Move the top byte of low out; while it is 0xFF a carry can still run through it."""
        if self._low < 0xFF << (BITS - 8) or self._low > MASK:
            carry = self._low >> BITS
            if self._held >= 0:
                self._out.append((self._held + carry) & 0xFF)
            self._out.extend([(0xFF + carry) & 0xFF] * self._nines)
            self._nines, self._held = 0, (self._low >> (BITS - 8)) & 0xFF
        else:
            self._nines += 1
        self._low = (self._low << 8) & MASK


class Decoder:
    """Gives the symbols back in order; what lies behind the last byte is zeros."""

    def __init__(self, data: bytes) -> None:
        self._data, self._next, self._range = data, BITS // 8, MASK
        self._code = int.from_bytes(data[: BITS // 8].ljust(BITS // 8, b"\0"), "big")

    def peek(self, total: int) -> int:
        """A number in [start, start + size) of the next symbol, for the total that it was encoded with."""
        return min(self._code // (self._range // total), total - 1)

    def take(self, start: int, size: int, total: int) -> None:
        """Go past the symbol that `peek` pointed into."""
        step = self._range // total
        self._code -= start * step
        self._range = step * size
        while self._range < TOP:
            byte = self._data[self._next] if self._next < len(self._data) else 0
            self._code, self._range, self._next = (self._code << 8) | byte, self._range << 8, self._next + 1
