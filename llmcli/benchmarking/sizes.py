"""Lists of sizes as they are written on a command line: `128`, `1,8,64`, `0-1024+256`, `1-512*2`."""

from __future__ import annotations

import re

from llmcli.errors import InputError

LIMIT = 10_000
ITEM = re.compile(r"(?P<first>[0-9]+)(?:-(?P<last>[0-9]+)(?:(?P<by>[+*])(?P<step>[0-9]+))?)?")


def parse_sizes(text: str, *, minimum: int = 0) -> list[int]:
    """The sizes that `text` lists, in order and without repeats.

    Items are `a`, `a-b` (step 1), `a-b+s` (adding s) or `a-b*m` (multiplying by m); b itself is included when it is
    met. Raises InputError for anything else, for a value below `minimum`, and for lists of more than 10,000.
    """
    sizes: dict[int, None] = {}
    for item in text.split(","):
        for size in _expand(item.strip(), text):
            if size < minimum:
                raise InputError(f"{size} in {text!r} is too small: expected {minimum} or more")
            sizes[size] = None
    return list(sizes)


def _expand(item: str, text: str) -> list[int]:
    match = ITEM.fullmatch(item)
    if match is None:
        raise InputError(f"{item!r} in {text!r} is not a size: expected a number, a-b, a-b+s or a-b*m")
    first = _integer(match["first"], text)
    if match["last"] is None:
        return [first]
    last, by, step = _integer(match["last"], text), match["by"] or "+", _integer(match["step"] or "1", text)
    if last < first:
        raise InputError(f"{item!r} runs backwards: expected a-b with a <= b")
    if step < 1 or (by == "*" and (step < 2 or first < 1)):
        raise InputError(f"{item!r} never ends: expected +s with s >= 1, or *m with m >= 2 and a start of at least 1")
    sizes: list[int] = []
    while first <= last:
        if len(sizes) == LIMIT:
            raise InputError(f"{item!r} lists more than {LIMIT} sizes")
        sizes.append(first)
        first = first + step if by == "+" else first * step
    return sizes


def _integer(digits: str, text: str) -> int:
    if len(digits) > 12:
        raise InputError(f"{digits[:12]}… in {text!r} is too large: expected at most twelve digits")
    return int(digits)
