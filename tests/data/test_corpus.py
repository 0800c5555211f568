"""Training text: reading, holding out, cutting, tokenising."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmcli.data import corpus
from llmcli.errors import InputError, ModelError
from llmcli.tokenizer import Tokenizer, pieces
from tests.tiny import TEXT


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return corpus.train_tokenizer([corpus.Document("text", TEXT)], 300)


def test_reads_a_directory_in_name_order(tmp_path: Path) -> None:
    for name, text in (("b.txt", "second"), ("a.txt", "first"), ("sub/c.txt", "third"), ("notes.md", "not text")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert [doc.text for doc in corpus.read_documents(str(tmp_path))] == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"", InputError, "empty"),
        (b" \n\t", InputError, "empty"),
        (b"caf\xe9 au lait", InputError, "0xe9 at offset 3"),
        (None, ModelError, "No such file"),
    ],
)
def test_refuses_what_is_not_text(tmp_path: Path, content: bytes | None, error: type[Exception], words: str) -> None:
    file = tmp_path / "book.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(error, match=words):
        corpus.read_documents(str(file))


def test_refuses_a_directory_without_text(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no \.txt file"):
        corpus.read_documents(str(tmp_path))


@given(st.lists(st.text("ab \n", min_size=1, max_size=60), min_size=1, max_size=3), st.floats(0, 0.33))
def test_split_loses_nothing_and_tears_no_word(texts: list[str], fraction: float) -> None:
    documents = [corpus.Document(str(i), text) for i, text in enumerate(texts)]
    kept, held = corpus.split(documents, fraction, 0)
    ends = {doc.name: doc.text for doc in held}
    for whole, part in zip(documents, kept, strict=True):
        end = ends.get(whole.name, "")
        assert part.text + (end or whole.text[len(part.text) :]) == whole.text
        assert len(end) <= round(len(whole.text) * fraction)
        assert not end or end[0].isspace()


def test_split_holds_out_the_end() -> None:
    kept, held = corpus.split([corpus.Document("x", "word " * 1000)], 0.02, 0)
    assert kept[0].n_bytes == 4904
    assert held[0].n_bytes == 96


def test_many_documents_are_held_out_whole() -> None:
    documents = [corpus.Document(str(i), f"text {i}") for i in range(100)]
    kept, held = corpus.split(documents, 0.02, 0)
    assert (len(kept), len(held)) == (98, 2)
    assert sorted(kept + held, key=documents.index) == documents
    assert kept == sorted(kept, key=documents.index)
    assert corpus.split(documents, 0.02, 0) == (kept, held) != corpus.split(documents, 0.02, 1)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_split_refuses_absurd_fractions(fraction: float) -> None:
    with pytest.raises(InputError, match="fraction"):
        corpus.split([], fraction, 0)


def test_tokenizer_has_its_size_and_end_of_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 300
    assert tokenizer.eos_id == 0
    assert tokenizer.decode(tokenizer.encode("the naïve sea ☃")) == "the naïve sea ☃"


def test_tokenizer_is_the_same_every_time(tokenizer: Tokenizer) -> None:
    again = corpus.train_tokenizer([corpus.Document("text", TEXT)], 300)
    assert again.backend.to_str() == tokenizer.backend.to_str()


def test_tokenizer_needs_room_for_every_byte() -> None:
    with pytest.raises(InputError, match="more than 256"):
        corpus.train_tokenizer([], 256)


@given(text=st.text(st.sampled_from("ab Z1.,'\n\té☃<|"), max_size=80), n_characters=st.integers(1, 20))
def test_cutting_changes_no_token(text: str, n_characters: int) -> None:
    tokenizer = corpus.train_tokenizer([corpus.Document("text", TEXT)], 300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmcli.tokenizer.PIECE_CHARS", n_characters)
        cut, in_pieces = list(pieces(text)), tokenizer.encode(text)
    assert "".join(cut) == text
    assert [token for piece in cut for token in tokenizer.encode(piece)] == tokenizer.encode(text) == in_pieces


def test_encode_starts_every_document_with_end_of_text(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmcli.tokenizer.PIECE_CHARS", 7)
    documents = [corpus.Document("a", TEXT), corpus.Document("b", "sea")]
    parts = list(corpus.encode(tokenizer, documents))
    assert sum(n_characters for n_characters, _ in parts) == len(TEXT) + 3
    expected = [0, *tokenizer.encode(TEXT), 0, *tokenizer.encode("sea")]
    assert torch.cat([ids for _, ids in parts]).tolist() == expected
