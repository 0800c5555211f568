"""A text coloured by surprisal, as an HTML page or a PNG picture; terminals are the command's own business."""

from __future__ import annotations

import html
import io
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from llmcli.errors import InputError, ResourceError
from llmcli.scoring.surprisal import BITS_PER_LEVEL, LEVELS, Token, characters, level

# ColorBrewer's YlOrRd (Harrower & Brewer 2003), one colour per level: paper, then paper to red.
COLORS = ("#ffffff", "#ffffcc", "#ffeda0", "#fed976", "#feb24c", "#fd8d3c", "#e31a1c", "#800026")
WHITE_FROM = 6  # the first level whose text is white
COLUMNS, MAX_LINES, MARGIN = 100, 2000, 12

Texts = Sequence[tuple[str, Sequence[Token]]]  # (name, tokens) of each document


def to_html(texts: Texts, title: str) -> str:
    """A page that needs nothing beside itself; hovering over a piece shows its bits."""
    styles = "".join(
        f".s{n}{{background:{color};color:{'#fff' if n >= WHITE_FROM else '#000'}}}" for n, color in enumerate(COLORS)
    )
    legend = "".join(f'<span class="s{n}"> {label(n)} </span>' for n in range(LEVELS))
    parts = []
    for name, tokens in texts:
        spans = "".join(
            f'<span class="s{level(bits)}" title="{"context only" if bits is None else f"{bits:.2f} bits"}">'
            f"{html.escape(text)}</span>"
            for text, bits in characters(tokens)
        )
        parts.append(f"<h2>{html.escape(name)}</h2>\n<pre>{spans}</pre>\n")
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>body{{background:#fff;color:#000;margin:2em}}pre{{white-space:pre-wrap;line-height:1.6}}{styles}</style>\n"
        f"<h1>{html.escape(title)}</h1>\n<p>bits: {legend}</p>\n{''.join(parts)}</html>\n"
    )


def label(n: int) -> str:
    """The bits of level n."""
    low = f"{n * BITS_PER_LEVEL:g}"
    return f"{low}+" if n == LEVELS - 1 else f"{low}–{(n + 1) * BITS_PER_LEVEL:g}"


def to_png(texts: Texts) -> bytes:
    """A picture in a fixed-width font, folded at COLUMNS.

    Raises ResourceError without Pillow, InputError for a text of more than MAX_LINES lines.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise ResourceError(
            "expected Pillow to draw a PNG, got none; install llmcli[image], or write HTML (-o FILE.html)"
        ) from None
    font: Any
    try:
        font = ImageFont.truetype("DejaVuSansMono.ttf", 16)
    except OSError:
        font = ImageFont.load_default(16)
    legend = fold([("bits: ", 0), *((f" {label(n)} ", n) for n in range(LEVELS)), ("\n\n", 0)])
    lines = [
        *legend,
        *(line for name, tokens in texts for line in [*fold([(f"{name}\n", 0)]), *fold(levels(tokens)), []]),
    ]
    if len(lines) > MAX_LINES:
        raise InputError(f"expected at most {MAX_LINES} lines for a PNG, got {len(lines)}; write HTML (-o FILE.html)")
    width, height = int(font.getlength("M") + 0.999), 22
    image = Image.new("RGB", (2 * MARGIN + COLUMNS * width, 2 * MARGIN + len(lines) * height), COLORS[0])
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        x, y = MARGIN, MARGIN + row * height
        for character, n in line:
            step = columns(character) * width
            draw.rectangle((x, y, x + step - 1, y + height - 1), fill=COLORS[n])
            draw.text((x, y), character, font=font, fill=COLORS[0] if n >= WHITE_FROM else "#000000")
            x += step
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def levels(tokens: Sequence[Token]) -> Iterable[tuple[str, int]]:
    """The pieces of a text with their levels."""
    return ((text, level(bits)) for text, bits in characters(tokens))


def fold(pieces: Iterable[tuple[str, int]]) -> list[list[tuple[str, int]]]:
    """Lines of (character, level), broken at line ends and at COLUMNS; what no font draws becomes a space."""
    lines: list[list[tuple[str, int]]] = [[]]
    used = 0
    for text, n in pieces:
        for character in text:
            if character == "\n" or used + columns(character) > COLUMNS:
                lines.append([])
                used = 0
            if character != "\n":
                lines[-1].append((character if character.isprintable() else " ", n))
                used += columns(character)
    return lines if lines[-1] else lines[:-1]


def columns(character: str) -> int:
    """Cells that a character takes: two for East Asian wide ones, none for a combining mark."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
