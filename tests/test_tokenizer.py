"""The tokenizer: bytes in, the same bytes out, from either form of its files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Backend
from tokenizers.processors import TemplateProcessing

from llmcli.errors import InputError, ModelError
from llmcli.tokenizer import BYTES, Tokenizer
from tests.tiny import write_sentencepiece, write_word_ends, write_wordpiece

GPT2_FILES = os.environ.get("LLMCLI_TEST_GPT2_TOKENIZER")  # a directory with GPT-2's own files, for the slow test


@pytest.fixture(scope="module")
def tokenizer(tiny_gpt2: Path) -> Tokenizer:
    return Tokenizer.open(tiny_gpt2)


def write_merges(source: Path, target: Path, names: tuple[str, str]) -> None:
    """Write the vocabulary and merges of a tokenizer.json as two files, as GPT-2's were."""
    model = json.loads((source / "tokenizer.json").read_text())["model"]
    (target / names[0]).write_text(json.dumps(model["vocab"]))
    (target / names[1]).write_text("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"]))


def test_the_alphabet_is_every_byte_once() -> None:
    assert sorted(BYTES.values()) == list(range(256))
    assert (BYTES["Ġ"], BYTES["Ċ"], BYTES["a"], BYTES["é"]) == (ord(" "), ord("\n"), ord("a"), 0xE9)


@given(text=st.text())
def test_every_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes(token) for token in ids) == text.encode()
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


@given(ids=st.lists(st.integers(0, 319)))
def test_decode_agrees_with_the_library(tokenizer: Tokenizer, ids: list[int]) -> None:
    assert tokenizer.decode(ids) == tokenizer.backend.decode(ids, skip_special_tokens=False)


def test_bytes_of_a_split_character(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.token_bytes(token) for token in tokenizer.encode("👋")]
    assert len(pieces) > 1
    assert b"".join(pieces) == "👋".encode()
    assert tokenizer.decode(tokenizer.encode("👋")[:1]) == "\ufffd"


@pytest.mark.parametrize("added", ["to be", "not\nto", AddedToken("be", rstrip=True), AddedToken("or", lstrip=True)])
def test_a_text_is_not_cut_where_a_token_may_lie(tiny_gpt2: Path, monkeypatch, added: str | AddedToken) -> None:
    backend = Backend.from_file(str(tiny_gpt2 / "tokenizer.json"))
    backend.add_tokens([added])
    text = "to be or not\nto be or so" * 3
    expected = backend.encode(text, add_special_tokens=False).ids
    monkeypatch.setattr("llmcli.tokenizer.PIECE_CHARS", 1)
    assert Tokenizer(backend).encode(text) == expected


def test_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_id == 0
    assert tokenizer.encode("The<|endoftext|>") == [*tokenizer.encode("The"), 0]
    assert tokenizer.token_bytes(0) == b"<|endoftext|>"
    assert tokenizer.piece(0) == "<|endoftext|>"
    assert tokenizer.encode("") == []


def test_a_prompt_begins_as_the_model_expects(tiny_gpt2: Path, tmp_path: Path) -> None:
    backend = Backend.from_file(str(tiny_gpt2 / "tokenizer.json"))
    backend.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    backend.save(str(tmp_path / "tokenizer.json"))
    expecting, plain = Tokenizer.open(tmp_path), Tokenizer.open(tiny_gpt2)
    assert expecting.encode("The sea") == plain.encode("The sea") == plain.encode_prompt("The sea")
    assert expecting.encode_prompt("The sea") == [0, *plain.encode("The sea")]
    assert expecting.encode_prompt("<|endoftext|>The sea") == [0, *plain.encode("The sea")]


def test_pieces(tokenizer: Tokenizer) -> None:
    assert tokenizer.piece(tokenizer.encode(" the sea")[0]).startswith("Ġ")


@pytest.mark.parametrize("token", [-1, 320, 10**6])
def test_ids_out_of_range(tokenizer: Tokenizer, token: int) -> None:
    for method in (tokenizer.piece, tokenizer.token_bytes, lambda token: tokenizer.decode([token])):
        with pytest.raises(InputError, match=rf"token id {token} is out of range; this vocabulary has 0 to 319"):
            method(token)


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
@given(text=st.text())
def test_two_files_equal_one(tokenizer: Tokenizer, tiny_gpt2: Path, tmp_path_factory, names, text: str) -> None:
    directory = tmp_path_factory.getbasetemp() / names[0]
    if not directory.exists():
        directory.mkdir()
        write_merges(tiny_gpt2, directory, names)
    other = Tokenizer.open(directory)
    assert other.encode(text + "<|endoftext|>") == tokenizer.encode(text + "<|endoftext|>")
    assert (other.vocab_size, other.eos_id) == (tokenizer.vocab_size, tokenizer.eos_id)


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("tokenizer_config.json", {"eos_token": "e"}, "e"),
        ("tokenizer_config.json", {"eos_token": {"content": "e"}}, "e"),
        ("tokenizer_config.json", {"eos_token": "not there"}, "<|endoftext|>"),
        ("tokenizer_config.json", ["not", "an", "object"], "<|endoftext|>"),
        ("config.json", {"eos_token_id": 5}, 5),
        ("config.json", {"eos_token_id": 50256}, "<|endoftext|>"),
        ("config.json", {"eos_token_id": None}, "<|endoftext|>"),
    ],
    ids=str,
)
def test_end_of_text(tiny_gpt2: Path, tmp_path: Path, file: str, content: object, expected: str | int) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tiny_gpt2 / "tokenizer.json").read_bytes())
    (tmp_path / file).write_text(json.dumps(content))
    tokenizer = Tokenizer.open(tmp_path)
    assert tokenizer.eos_id == (tokenizer.backend.token_to_id(expected) if isinstance(expected, str) else expected)


def test_a_config_too_deep_to_read_is_none(tiny_gpt2: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tiny_gpt2 / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    assert Tokenizer.open(tmp_path).eos_id == 0


def test_no_end_of_text(tmp_path: Path) -> None:
    backend = Backend(models.BPE({"a": 0}, []))
    backend.decoder = decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.open(tmp_path).eos_id is None


def test_a_piece_outside_the_alphabet_stands_for_itself(tmp_path: Path) -> None:
    backend = Backend(models.BPE({"a": 0, "<end of text>": 1}, []))  # a space is no character of the alphabet
    backend.decoder = decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.open(tmp_path).decode([0, 1]) == "a<end of text>"


def test_absent(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ModelError, match=r"expected tokenizer\.json, or vocab\.json and merges\.txt; found neither"):
        Tokenizer.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"version": "1.0"}'])
def test_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a readable tokenizer \("):
        Tokenizer.open(tmp_path)


def test_damaged_merges(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("b c\n")
    with pytest.raises(ModelError, match=r"vocab\.json and merges\.txt: not a readable tokenizer \("):
        Tokenizer.open(tmp_path)


def test_a_spelling_that_is_not_known(tmp_path: Path) -> None:
    Backend(models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelError, match=r"expected byte-level, SentencePiece or WordPiece tokens; .* decoder is None"):
        Tokenizer.open(tmp_path)


@pytest.mark.parametrize("write", [write_sentencepiece, write_wordpiece])
def test_other_kinds_agree_with_the_library(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    tokenizer = Tokenizer.open(tmp_path)
    text = "the old ship lay on the sea"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text == tokenizer.backend.decode(ids)
    assert tokenizer.leads_with_space
    whole = tokenizer.backend.encode(text).ids
    assert tokenizer.encode_whole(text) == whole
    assert tokenizer.encode_whole(text, 5) == whole[: 5 - len(tokenizer._after)] + tokenizer._after
    assert len(tokenizer.encode_whole(text, 5)) == 5
    assert tokenizer.encode_prompt(text) == tokenizer._before + ids
    assert tokenizer.mask_id == tokenizer.backend.token_to_id("[MASK]")


def test_pieces_of_bytes(tmp_path: Path) -> None:
    """What Llama 2's tokenizer does: blocks for spaces, and bytes where a character has no piece."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"\u2581": 256, "a": 257}
    backend = Backend(models.BPE(vocabulary, [], byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.open(tmp_path)
    for text in ("a a", "é", " a👋\n"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text == backend.decode(ids)
    assert tokenizer.byte_id(0xE9) == 0xE9
    assert tokenizer.token_bytes(0xE9) == b"\xe9"


@pytest.mark.skipif(not GPT2_FILES, reason="LLMCLI_TEST_GPT2_TOKENIZER names no directory")
def test_gpt2(tmp_path: Path) -> None:
    directory = Path(str(GPT2_FILES))
    single = Tokenizer.open(directory)
    for name in ("encoder.json", "vocab.bpe"):
        (tmp_path / name).symlink_to(directory / name)
    double = Tokenizer.open(tmp_path)
    assert single.eos_id == double.eos_id == 50256
    for example in json.loads((directory / "known_examples.json").read_text()):
        for tokenizer in (single, double):
            assert tokenizer.encode(example["text"]) == example["ids"]
            assert tokenizer.decode(example["ids"]) == example["text"]


def test_the_first_gpt_lowers_case_and_ends_words(tmp_path: Path) -> None:
    write_word_ends(tmp_path)
    tokenizer = Tokenizer.open(tmp_path)
    ids = tokenizer.encode("The SEA was calm")
    assert tokenizer.decode(ids) == "the sea was calm "
    assert b"".join(map(tokenizer.token_bytes, ids)) == b"the sea was calm "
    assert tokenizer.piece(ids[-1]).endswith("</w>")
    assert not tokenizer.leads_with_space
