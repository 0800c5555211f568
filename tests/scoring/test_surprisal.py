"""Places of tokens, hits, and pieces of whole characters, against the text itself."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from llmcli import scoring
from llmcli.errors import InputError
from llmcli.scoring import heat, surprisal
from llmcli.tokenizer import Tokenizer
from tests.scoring.test_figures import Bytes
from tests.tiny import write_sentencepiece


def tokens_of(text: str, tokenizer: scoring.Encodes, bits: float = 1.0) -> list[surprisal.Token]:
    document = scoring.encode("text", text, tokenizer)
    scores = np.full(document.n_tokens, -bits * math.log(2), dtype=np.float32)
    return surprisal.locate(document, scores, tokenizer, text)


@given(st.text("a\n é漢🙂\r", max_size=40))
def test_places_are_those_of_the_text(text: str) -> None:
    raw = text.encode()
    for token in tokens_of(text, Bytes()):
        before = raw[: token.offset].decode(errors="ignore")
        assert token.data == raw[token.offset : token.offset + 1]
        # A byte inside a character stands where the character does.
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        assert (token.line, token.column) == (line, column)


def test_tokens_of_several_characters(tiny_gpt2: Path) -> None:
    tokenizer = Tokenizer.open(tiny_gpt2)
    text = 'The sea was calm,\nand the old ship.\n\n"Where" é'
    tokens = tokens_of(text, tokenizer)
    assert b"".join(token.data for token in tokens).decode() == text
    assert [t.logprob is None for t in tokens] == [True] + [False] * (len(tokens) - 1)
    for token in tokens:
        before = text.encode()[: token.offset].decode(errors="ignore")
        assert token.line == before.count("\n") + 1
        assert token.column == len(before) - before.rfind("\n")


@pytest.mark.parametrize("always", [False, True], ids=["Metaspace, unless there is one", "Prepend, always"])
@pytest.mark.parametrize("text", ["The sea was calm,\nand far.", " The sea", "  sea", "\nthe sea", "é", " "])
def test_a_space_that_the_tokenizer_writes_first_has_no_place(tmp_path: Path, text: str, always: bool) -> None:
    write_sentencepiece(tmp_path)
    tokenizer = Tokenizer.open(tmp_path)
    if always:
        tokenizer.backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.backend.pre_tokenizer = None
    assert tokenizer.leads_with_space
    if not {*tokenizer.encode(text)} & {2}:  # <unk>
        tokens = tokens_of(text, tokenizer)
        assert b"".join(token.data for token in tokens).decode() == text
        for token in tokens:
            before = text.encode()[: token.offset].decode()
            assert (token.line, token.column) == (before.count("\n") + 1, len(before) - before.rfind("\n"))


@given(st.text(max_size=30))
def test_pieces_are_the_text_and_keep_all_bits(text: str) -> None:
    tokens = tokens_of(text, Bytes(), bits=3.0)
    pieces = list(surprisal.characters(tokens))
    assert "".join(piece for piece, _ in pieces) == text
    assert all(len(piece) == 1 for piece, _ in pieces)
    assert sum(bits or 0 for _, bits in pieces) == pytest.approx(3.0 * max(0, len(tokens) - 1), rel=1e-6)


def test_hits_are_above_the_threshold() -> None:
    document = scoring.encode("text", "abcd", Bytes())
    scores = np.array([-1.0, -3.0, math.nan], np.float32) * math.log(2)
    tokens = surprisal.locate(document, scores, Bytes(), "abcd")
    assert [token.data for token, _ in surprisal.surprises(tokens, 2.0)] == [b"c", b"d"]
    assert [token.data for token, _ in surprisal.surprises(tokens, 4.0)] == [b"d"]


@pytest.mark.parametrize(
    ("bits", "level"), [(None, 0), (0.0, 0), (1.99, 0), (2.0, 1), (13.9, 6), (14.0, 7), (1e9, 7), (math.nan, 7)]
)
def test_levels(bits: float | None, level: int) -> None:
    assert surprisal.level(bits) == level


def test_html_escapes_the_text_and_says_the_bits() -> None:
    page = heat.to_html([("<a>", tokens_of("x<b>&", Bytes(), bits=15.0))], "T & U")
    assert "<title>T &amp; U</title>" in page
    assert "<h2>&lt;a&gt;</h2>" in page
    assert '<span class="s0" title="context only">x</span><span class="s7" title="15.00 bits">&lt;</span>' in page


def test_png_is_coloured_and_folded() -> None:
    from io import BytesIO

    from PIL import Image

    picture = Image.open(BytesIO(heat.to_png([("n", tokens_of("a" * 250 + "\n漢", Bytes(), bits=15.0))])))
    assert picture.height == 2 * heat.MARGIN + 22 * (2 + 1 + 4 + 1)  # the legend, the name, the text, a gap
    colors = {f"#{r:02x}{g:02x}{b:02x}" for _, (r, g, b) in picture.getcolors(1 << 16)}
    assert set(heat.COLORS) <= colors
    with pytest.raises(InputError, match="at most 2000 lines"):
        heat.to_png([("n", tokens_of("\n" * 2001, Bytes()))])
