"""Training text: files become documents, documents become one stream of token ids, and the stream becomes windows.

Knows text, tokenizers and ids; knows neither models nor terminals.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from llmcli.errors import InputError, ModelError
from llmcli.tokenizer import CHARACTERS, END_OF_TEXT, Tokenizer, pieces

Item = TypeVar("Item")


@dataclass(frozen=True)
class Document:
    """One text and the name that error messages use for it."""

    name: str
    text: str

    @property
    def n_bytes(self) -> int:
        """Length in UTF-8 bytes."""
        return len(self.text.encode())


def decode_utf8(raw: bytes, name: str) -> str:
    """Strict UTF-8; InputError gives the offset of the first bad byte."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}; convert the file first"
        ) from None


def read_files(path: str, suffixes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, text) of a file, or of every file with such a suffix below a directory, in name order."""
    files = [Path(path)]
    if files[0].is_dir():
        files = sorted(file for file in files[0].rglob("*") if file.suffix in suffixes and file.is_file())
        if not files:
            raise ModelError(
                f"no {' or '.join(suffixes)} file below {path}: give files, or a directory that holds some"
            )
    for file in files:
        try:
            raw = file.read_bytes()
        except OSError as error:
            raise ModelError(f"cannot read {file}: {error.strerror}") from None
        yield str(file), decode_utf8(raw, str(file))


def read_documents(path: str) -> list[Document]:
    """Read a file, or every *.txt below a directory in name order; one file is one document.

    Empty files are refused, since they are nearly always a mistake upstream.
    """
    return [document(text, name) for name, text in read_files(path, (".txt",))]


def document(text: str, name: str) -> Document:
    """A document that has text in it; InputError otherwise."""
    if not text.strip():
        raise InputError(f"{name} is empty: training needs text")
    return Document(name, text)


def split(documents: Sequence[Document], fraction: float, seed: int) -> tuple[list[Document], list[Document]]:
    """Hold out `fraction` of the documents, drawn by the seed, or the end of each: (training, validation).

    Fewer documents than make one whole one of the fraction lose the last `fraction` of their characters instead. That
    cut moves on to the next white space, so that no word is torn; a document without one there is kept whole.
    """
    if not 0 <= fraction < 1:
        raise InputError(f"the validation fraction must be in [0, 1), not {fraction}")
    if len(documents) * fraction >= 1:
        return hold_out(documents, fraction, seed)
    kept, held = [], []
    for doc in documents:
        cut = len(doc.text) - round(len(doc.text) * fraction)
        while cut < len(doc.text) and not doc.text[cut].isspace():
            cut += 1
        kept.append(Document(doc.name, doc.text[:cut]))
        if doc.text[cut:].strip():
            held.append(Document(doc.name, doc.text[cut:]))
    return kept, held


def hold_out(items: Sequence[Item], fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """(training, validation), in order: a share of the items drawn by the seed, at least one if there are two."""
    n_held = min(len(items) - 1, max(1, round(len(items) * fraction))) if fraction else 0
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
    held = set(order[:n_held])
    training = [item for place, item in enumerate(items) if place not in held]
    return training, [item for place, item in enumerate(items) if place in held]


def train_tokenizer(documents: Iterable[Document], vocab_size: int) -> Tokenizer:
    """Byte-level BPE in GPT-2's manner with <|endoftext|> as id 0; fewer entries when the text has fewer pairs."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(alphabet):
        raise InputError(f"a byte-level vocabulary needs more than {len(alphabet)} entries, not {vocab_size}")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator((piece for doc in documents for piece in pieces(doc.text)), trainer)
    return byte_level(backend)


def character_tokenizer(documents: Iterable[Document]) -> Tokenizer:
    """Byte-level BPE that joins the bytes of each character of the texts and nothing else; <|endoftext|> is id 0.

    A character that they lack is known by its bytes.
    """
    merges: dict[tuple[str, str], str] = {}
    for character in sorted(set().union(*(doc.text for doc in documents))):
        first, *rest = (CHARACTERS[byte] for byte in character.encode())
        for byte in rest:
            merges[first, byte] = first + byte
            first += byte
    entries = [END_OF_TEXT, *sorted(pre_tokenizers.ByteLevel.alphabet()), *merges.values()]
    return byte_level(Backend(models.BPE({entry: number for number, entry in enumerate(entries)}, list(merges))))


def byte_level(backend: Backend) -> Tokenizer:
    """A tokenizer of byte-level BPE with <|endoftext|> as id 0, cutting words as GPT-2 does."""
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END_OF_TEXT])
    return Tokenizer(backend, eos_id=0)


def encode(tokenizer: Tokenizer, documents: Sequence[Document]) -> Iterator[tuple[int, Tensor]]:
    """Encode in parallel; yields (characters encoded, ids (n,) int32) in order, <|endoftext|> before each document."""
    if tokenizer.eos_id is None:
        raise ModelError(f"the tokenizer has no {END_OF_TEXT} entry, which separates documents")
    end_of_text = np.array([tokenizer.eos_id], np.int32)
    batch: list[str] = []
    opens: list[bool] = []

    def flush() -> tuple[int, Tensor]:
        parts = []
        encodings = tokenizer.backend.encode_batch_fast(batch, add_special_tokens=False)
        for opening, encoding in zip(opens, encodings, strict=True):
            if opening:
                parts.append(end_of_text)
            parts.append(np.array(encoding.ids, np.int32))
        result = sum(map(len, batch)), torch.from_numpy(np.concatenate(parts))
        batch.clear()
        opens.clear()
        return result

    for doc in documents:
        for i, piece in enumerate(pieces(doc.text)):
            batch.append(piece)
            opens.append(i == 0)
            if len(batch) == 8:
                yield flush()
    if batch:
        yield flush()


def tokenizer_files(tokenizer: Tokenizer, context: int | None = None) -> dict[str, str]:
    """The texts that make a tokenizer's directory, by file name; `context` is the length that a model reads."""
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        **({} if context is None else {"model_max_length": context}),
    }
    return {
        "tokenizer.json": tokenizer.backend.to_str(),
        "tokenizer_config.json": json.dumps(described, indent=2) + "\n",
    }


def side_files(tokenizer: Tokenizer, config: dict[str, Any]) -> dict[str, str]:
    """The texts that make weights a model directory in the Hugging Face layout, by file name."""
    return {
        "config.json": json.dumps(config, indent=2) + "\n",
        **tokenizer_files(tokenizer, config.get("n_positions")),
    }


def copied_files(
    known: dict[str, Any], tokenizer: Tokenizer, config: dict[str, Any], settings: dict[str, Any]
) -> dict[str, str]:
    """As `side_files`, for a model made from another one, whose tokenizer_config.json is kept as far as `known`.

    `settings` are added to that.
    """
    made = side_files(tokenizer, config)
    known = known or json.loads(made["tokenizer_config.json"])
    return made | {"tokenizer_config.json": json.dumps({**known, **settings}, indent=2) + "\n"}
