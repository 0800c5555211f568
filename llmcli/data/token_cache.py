"""Token ids of training texts, kept in files that are named by what they were made from, and read through memory maps.

A shard holds the documents of about SHARD_CHARACTERS characters; its name is the hash of tokenizer and texts, so that a
file that was added costs only its own shard. Knows text, tokenizers and files; knows neither models nor terminals.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmcli.data import corpus
from llmcli.data.batches import Shards
from llmcli.data.corpus import Document
from llmcli.tokenizer import Tokenizer

SHARD_CHARACTERS = 64 << 20
WORTH_IT = 4 << 20  # characters; tokenising less takes no time worth a file
MAGIC = b"llmcli tokens 1\n"
HEADER = len(MAGIC) + 32  # and the SHA-256 of the ids, little-endian int32


@dataclass
class Outcome:
    """What became of the shards of one text; problems are sentences for people."""

    reused: int = 0
    written: int = 0
    problems: Sequence[str] = ()


def default_folder() -> Path:
    """`llmcli/tokens` in XDG_CACHE_HOME, or in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "llmcli" / "tokens"


def encode(
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    folder: Path | None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Tensor | Shards, Outcome]:
    """The documents as one stream of ids, from the folder where it has them; those that it lacks are added to it.

    A damaged shard is made anew, and where the folder cannot be written the ids stay in memory: both are problems that
    the outcome names. `progress` gets the number of characters done. Without a folder nothing is read or written.
    """
    outcome, problems, parts, done = Outcome(), [], [], 0
    base = hashlib.sha256(MAGIC + f"{tokenizer.eos_id}\n{tokenizer.backend.to_str()}".encode()) if folder else None
    for group in groups(documents):
        path = None
        if folder is not None and base is not None:
            path = folder / f"{name_of(base, group)}.tokens"
            try:
                parts.append(read(path))
                outcome.reused += 1
                done += sum(len(doc.text) for doc in group)
                progress(done)
                continue
            except FileNotFoundError:
                pass
            except (OSError, ValueError) as error:
                problems.append(f"{path}: {error}; tokenising again")
        ids = []
        for n_characters, some in corpus.encode(tokenizer, group):
            ids.append(some)
            done += n_characters
            progress(done)
        stream = torch.cat(ids)
        if path is not None:
            try:
                write(path, stream)
                stream = read(path)
                outcome.written += 1
            except (OSError, ValueError) as error:
                problems.append(f"cannot keep tokens in {folder}: {error}; going on without")
        parts.append(stream)
    outcome.problems = problems
    return (parts[0] if len(parts) == 1 else Shards(parts)), outcome


def groups(documents: Sequence[Document]) -> Iterator[list[Document]]:
    """Documents side by side, each group of SHARD_CHARACTERS or a little more."""
    group: list[Document] = []
    for document in documents:
        group.append(document)
        if sum(len(doc.text) for doc in group) >= SHARD_CHARACTERS:
            yield group
            group = []
    if group:
        yield group


def name_of(base: hashlib._Hash, group: Sequence[Document]) -> str:
    """Hash of the tokenizer and of the texts, each with its length."""
    digest = base.copy()
    for document in group:
        raw = document.text.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def read(path: Path) -> Tensor:
    """The ids of a shard (n,) int32, mapped. Raises FileNotFoundError, and ValueError for a damaged file."""
    with path.open("rb") as file:
        header = file.read(HEADER)
        if len(header) < HEADER or not header.startswith(MAGIC):
            raise ValueError("expected a file of tokens, got something else or a part of one")
        digest = hashlib.sha256()
        while chunk := file.read(1 << 22):
            digest.update(chunk)
        size = file.tell() - HEADER
    if digest.digest() != header[len(MAGIC) :] or size % 4 or size == 0:
        raise ValueError("its ids do not have the hash that it names, so it is damaged")
    # Copied where it is written to, which nobody does: torch knows no tensors that only can be read.
    return torch.from_numpy(np.memmap(path, np.dtype("<i4"), "c", HEADER))


def write(path: Path, ids: Tensor) -> None:
    """Write a shard beside its place and rename it: it is there whole or not at all. Raises OSError."""
    raw = np.ascontiguousarray(ids.numpy().astype("<i4", copy=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(MAGIC + hashlib.sha256(raw.data).digest())
            file.write(raw.data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
