"""Text to token ids and back, by the files that lie beside a checkpoint; knows no tensors."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from llmcli.errors import InputError, ModelError

END_OF_TEXT = "<|endoftext|>"

# A single space or line end between two ASCII letters always starts a new pre-token in GPT-2's pattern, so that text
# cut there encodes to the same ids in pieces as in one go.
_SAFE_CUT = re.compile(r"(?<=[A-Za-z])(?=[ \n][A-Za-z])")
PIECE_CHARS = 1 << 18
BYTE_PIECE = re.compile("<0x[0-9A-Fa-f]{2}>")


def _byte_alphabet() -> dict[str, int]:
    """The printable characters that byte-level BPE writes for the 256 bytes (GPT-2's bytes_to_unicode, inverted)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTES = _byte_alphabet()
CHARACTERS = {byte: character for character, byte in BYTES.items()}


def pieces(text: str) -> Iterator[str]:
    """Cut a long text where cutting does not change its tokens."""
    start = 0
    while start < len(text):
        found = _SAFE_CUT.search(text, start + PIECE_CHARS)
        end = found.start() if found else len(text)
        yield text[start:end]
        start = end


class Tokenizer:
    """Every id stands for some bytes. To a byte-level tokenizer no text is unknown; others may normalise their text.

    `mask_id` is the token that an encoder fills in, None where there is none.
    """

    def __init__(self, backend: Backend, *, eos_id: int | None = None, mask_id: int | None = None):
        self.backend = backend
        self.eos_id, self.mask_id = eos_id, mask_id
        self._spell = _spelling(backend)
        self._before, self._after = _around(backend)
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        if self.vocab_size and backend.id_to_token(self.vocab_size - 1) is None:  # ids are left out
            self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self._checked([*self._before, *self._after])
        added = backend.get_added_tokens_decoder()
        self._added: dict[int, str] = {i: t.content for i, t in added.items()}
        # GPT-2's own pattern, no normalizer, and no added token that reaches over a space or a line end.
        self._cuts = (
            isinstance(backend.pre_tokenizer, ByteLevel)
            and backend.pre_tokenizer.use_regex
            and backend.normalizer is None
            and not any(t.lstrip or t.rstrip or {" ", "\n"} & {*t.content} for t in added.values())
        )
        # Some write a space before the first word of any text, which is then no part of it.
        first = backend.encode("a", add_special_tokens=False).ids[:1]
        self.leads_with_space = bool(first) and self.token_bytes(first[0])[:1] == b" "

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read tokenizer.json, or vocab.json and merges.txt (encoder.json and vocab.bpe), from a directory.

        Raises ModelError when there is none, or when its tokens cannot be spelt one by one.
        """
        path = Path(path)
        backend = _from_json(path / "tokenizer.json") or _from_merges(path)
        if backend is None:
            raise ModelError(f"{path}: expected tokenizer.json, or vocab.json and merges.txt; found neither")
        backend.no_padding()
        backend.no_truncation()
        try:
            return cls(backend, eos_id=_eos_id(path, backend), mask_id=_mask_id(path, backend))
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None

    def encode(self, text: str) -> list[int]:
        """The ids of a text; nothing is added, and special tokens written out in it are recognised.

        The library holds some hundred bytes for each character of what it encodes at once, so a long text goes
        through in pieces where that changes no id.
        """
        if len(text) <= PIECE_CHARS or not self._cuts:
            return self._checked(self.backend.encode(text, add_special_tokens=False).ids)
        ids: list[int] = []
        rest = pieces(text)
        while batch := list(islice(rest, 8)):
            for encoding in self.backend.encode_batch_fast(batch, add_special_tokens=False):
                ids += encoding.ids
        return self._checked(ids)

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a text that a model is to continue, after the beginning-of-text token that some models expect.

        A text that begins with it gets no second one.
        """
        ids, before = self.encode(text), self._before
        return ids if ids[: len(before)] == before else before + ids

    def encode_whole(self, text: str, limit: int | None = None) -> list[int]:
        """The ids of a text that an encoder reads, between the tokens that its model expects around it.

        At most `limit` of them: a longer text loses its end.
        """
        ids = self.encode(text)
        room = len(ids) if limit is None else max(0, limit - len(self._before) - len(self._after))
        return self._before + ids[:room] + self._after

    @property
    def around(self) -> tuple[int, int]:
        """How many tokens `encode_whole` puts before and after a text."""
        return len(self._before), len(self._after)

    def _checked(self, ids: list[int]) -> list[int]:
        if max(ids, default=0) >= self.vocab_size:
            raise ModelError(
                f"the tokenizer's files lie: id {max(ids)} in a vocabulary of {self.vocab_size}; fetch them again"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included; bytes that are not UTF-8 become U+FFFD."""
        return self.spell(ids).decode("utf-8", "replace")

    def spell(self, ids: Sequence[int]) -> bytes:
        """The bytes of a whole text."""
        data = b"".join(map(self.token_bytes, ids))
        return data.removeprefix(b" ") if self.leads_with_space else data

    def end_of_text(self) -> str:
        """The end-of-text token as it is written. Raises ModelError when there is none."""
        if self.eos_id is None:
            raise ModelError(f"the tokenizer has no {END_OF_TEXT} entry, which ends a text")
        return self.token_bytes(self.eos_id).decode()

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one id stands for, which may be part of a character."""
        added = self._added.get(token)
        if added is not None:
            return added.encode()
        return self._spell(self.piece(token))

    def byte_id(self, byte: int) -> int | None:
        """The id that stands for one byte alone, None where the vocabulary has none."""
        found: int | None = self.backend.token_to_id(
            CHARACTERS[byte] if self._spell is _byte_level else f"<0x{byte:02X}>"
        )
        return found

    def piece(self, token: int) -> str:
        """The id as the vocabulary writes it, with bytes as printable characters; "" for one that it leaves out."""
        if not 0 <= token < self.vocab_size:
            raise InputError(f"token id {token} is out of range; this vocabulary has 0 to {self.vocab_size - 1}")
        return self.backend.id_to_token(token) or ""


def _byte_level(piece: str) -> bytes:
    """GPT-2's spelling: a printable character for each byte."""
    try:
        return bytes(BYTES[character] for character in piece)
    except KeyError:  # a piece that stands for itself, though the files do not list it as added
        return piece.encode()


def _sentencepiece(piece: str) -> bytes:
    """SentencePiece's spelling: a block for a space, and pieces for single bytes."""
    if BYTE_PIECE.fullmatch(piece):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\u2581", " ").encode()


def _wordpiece(piece: str) -> bytes:
    """BERT's spelling: ## before the rest of a word."""
    return piece[2:].encode() if piece.startswith("##") else f" {piece}".encode()


def _word_ends(piece: str) -> bytes:
    """The first GPT's spelling: </w> at the end of a word."""
    return piece.replace("</w>", " ").encode()


def _spelling(backend: Backend) -> Callable[[str], bytes]:
    """How the pieces of a tokenizer spell bytes. Raises ModelError for a decoder that is not known."""
    decoder = backend.decoder
    if isinstance(decoder, ByteLevelDecoder):
        return _byte_level
    state = decoder.__getstate__() if decoder is not None else b""  # the decoder as JSON
    if isinstance(decoder, decoders.Metaspace) or (
        isinstance(decoder, decoders.Sequence) and "\u2581" in state.decode()
    ):
        return _sentencepiece
    if isinstance(decoder, decoders.WordPiece):
        return _wordpiece
    if isinstance(decoder, decoders.BPEDecoder):
        return _word_ends
    raise ModelError(f"expected byte-level, SentencePiece or WordPiece tokens; the tokenizer's decoder is {decoder!r}")


def _around(backend: Backend) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after a text for its model."""
    whole = backend.encode("a", add_special_tokens=True)
    special = whole.special_tokens_mask
    before = next((n for n, mark in enumerate(special) if not mark), len(special))
    after = next((n for n, mark in enumerate(reversed(special)) if not mark), 0)
    return whole.ids[:before], whole.ids[len(special) - after :]


def _from_json(path: Path) -> Backend | None:
    if not path.exists():
        return None
    try:
        return Backend.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{path}: not a readable tokenizer ({error})") from error


def _from_merges(path: Path) -> Backend | None:
    for vocabulary, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        if not ((path / vocabulary).exists() and (path / merges).exists()):
            continue
        try:
            backend = Backend(BPE.from_file(str(path / vocabulary), str(path / merges)))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"{path / vocabulary} and {merges}: not a readable tokenizer ({error})") from error
        backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
        backend.decoder = ByteLevelDecoder()
        if backend.token_to_id(END_OF_TEXT) is not None:
            backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
        return backend
    return None


def _named(path: Path, backend: Backend, key: str) -> int | None:
    """The id of a token that tokenizer_config.json names, None where it names none."""
    name: Any = _read(path / "tokenizer_config.json").get(key)
    if isinstance(name, dict):
        name = name.get("content")
    found: int | None = backend.token_to_id(name) if isinstance(name, str) else None
    return found


def _mask_id(path: Path, backend: Backend) -> int | None:
    """The id that the configuration names as mask, else BERT's or RoBERTa's, if there is one."""
    ids = (_named(path, backend, "mask_token"), *map(backend.token_to_id, ("[MASK]", "<mask>")))
    return next((found for found in ids if found is not None), None)


def _eos_id(path: Path, backend: Backend) -> int | None:
    """The end-of-text id that the configuration names (by text, then by number), else GPT-2's, if there is one."""
    found = _named(path, backend, "eos_token")
    if found is not None:
        return found
    number = _read(path / "config.json").get("eos_token_id")
    if type(number) is int and 0 <= number < backend.get_vocab_size():
        return number
    found = backend.token_to_id(END_OF_TEXT)
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
