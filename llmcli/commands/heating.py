"""`llmcli score --heat`: a text coloured by surprise, on a terminal, as a page or as a picture."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from llmcli.commands.terminal import Writer, note, wants_color
from llmcli.errors import InputError

if TYPE_CHECKING:
    from llmcli.scoring.heat import Texts

# One per level, of the 256 colours that terminals share: nothing, then pale yellow to dark red.
STYLES = ("", "48;5;230;38;5;0", "48;5;229;38;5;0", "48;5;222;38;5;0", "48;5;215;38;5;0", "48;5;208;38;5;0",
          "48;5;196;38;5;15", "48;5;88;38;5;15")  # fmt: skip


def suffix(output: str | None) -> str:
    """What -o asks for: ".html", ".png", or "" for a terminal's colours on stdout. Raises InputError."""
    if output is None or output in ("-", "/dev/stdout"):
        return ""
    kind = os.path.splitext(output)[1].lower()
    kind = ".html" if kind == ".htm" else kind
    if kind not in (".html", ".png"):
        raise InputError(f"--heat: expected -o FILE.html or FILE.png, got '{output}'")
    return kind


def paint(located: Texts, page: str, out: Writer) -> None:
    """Write the coloured texts; without colour (a pipe, NO_COLOR) they are as they were. Raises as `heat` does."""
    from llmcli.scoring import heat, surprisal

    if page:
        out.write(heat.to_png(located) if page == ".png" else heat.to_html(located, "Surprise per token"))
        return
    color = wants_color(sys.stdout)
    for name, tokens in located:
        if len(located) > 1:
            out.write(f"{name}\n")
        for text, bits in surprisal.characters(tokens):
            if color:  # among the colours no other escape sequence of the text's own
                text = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
            style = STYLES[surprisal.level(bits)] if color else ""
            out.write("\n".join(f"\x1b[{style}m{part}\x1b[0m" if style and part else part for part in text.split("\n")))
    if color:
        shades = (f"\x1b[{style}m {heat.label(n)} \x1b[0m" for n, style in enumerate(STYLES))
        note(f"bits: {''.join(shades)}")
