"""TensorFlow's checkpoints, as OpenAI published GPT-2: an index of names, and files of numbers, read through a map.

The index is a sorted table of LevelDB's (doc/table_format.md there), whose values are messages of TensorFlow's
core/protobuf/tensor_bundle.proto. Nothing of it is executed, and TensorFlow is not needed.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmcli.checkpoints.file import trim
from llmcli.errors import ModelError

if TYPE_CHECKING:  # naming a checkpoint's files needs no torch
    from torch import Tensor

SUFFIX = ".ckpt.index"
MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
FOOTER, TRAILER = 48, 5  # bytes: of the table; of a block, its compression and a checksum
DTYPES = {1: "float32", 14: "bfloat16", 19: "float16"}  # of core/framework/types.proto
WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
# Sizes that no index reaches, so that a lie costs little time and memory.
MOST_BYTES, MOST_TENSORS, MOST_SHARDS, MOST_DIMENSIONS = 1 << 26, 1 << 16, 1 << 10, 8
NAME = re.compile(r"[\w./-]{1,1000}")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file of numbers."""

    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int  # bytes


def recognised(path: Path) -> bool:
    """Whether a path is an index, or a directory that has one and no safetensors."""
    if path.is_dir():
        return bool(_indices(path)) and not any(path.glob("*.safetensors*"))
    return path.name.endswith(SUFFIX) and path.is_file()


def files(path: Path) -> list[Path]:
    """The index, then the files of numbers. Raises ModelError where one is missing or the index is damaged."""
    return _Index(path).files


def open(path: Path) -> Weights:
    """The tensors of a checkpoint by TensorFlow's names. Raises ModelError for a missing or malformed file."""
    return Weights(path)


class Weights(Mapping[str, "Tensor"]):
    """Lazy tensors, each mapped when asked for, or copied where it lies askew; the map is private."""

    def __init__(self, path: Path):
        index = _Index(path)
        self._stored, self._maps = index.tensors, []
        for file in index.files[1:]:
            with file.open("rb") as opened:
                self._maps.append(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY))
        for name, stored in self._stored.items():
            if stored.offset + stored.size > len(self._maps[stored.shard]):
                room = len(self._maps[stored.shard])
                raise index.damaged(f"{name} ends at {stored.offset + stored.size} of {room} bytes")

    def __getitem__(self, name: str) -> Tensor:
        import torch

        stored = self._stored[name]
        mapped = torch.frombuffer(self._maps[stored.shard], dtype=torch.uint8, count=stored.size, offset=stored.offset)
        if stored.offset % WIDTHS[stored.dtype]:
            mapped = mapped.clone()
        return mapped.view(getattr(torch, stored.dtype)).view(stored.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def release(self) -> None:
        """Hand what was read and freed so far back to the system; undoes any writing to the tensors."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)
        trim()


class _Index:
    """What an index says, checked but for the lengths of the other files."""

    def __init__(self, path: Path):
        self.path = path
        if path.is_dir():
            found = _indices(path)
            if len(found) != 1:
                several = ", ".join(file.name for file in found) or "none"
                raise ModelError(f"{path}: expected one *{SUFFIX}, got {several}; name the one that is meant")
            self.path = found[0]
        try:
            if self.path.stat().st_size > MOST_BYTES:
                raise self.damaged(f"more than {MOST_BYTES} bytes")
            self._data = self.path.read_bytes()
        except OSError as error:
            raise ModelError(f"{self.path}: not readable ({error.strerror})") from None
        if len(self._data) < FOOTER or not self._data.endswith(MAGIC):
            raise self.damaged("it does not end as a table")
        self.tensors: dict[str, Stored] = {}
        n_shards = self._read()
        stem = self.path.name.removesuffix(".index")
        names = [f"{stem}.data-{n:05}-of-{n_shards:05}" for n in range(n_shards)]
        self.files = [self.path, *(self.path.with_name(name) for name in names)]
        for file in self.files[1:]:
            if not file.is_file() or not file.stat().st_size:
                raise ModelError(f"{file}: missing or empty; it belongs to {self.path.name}: fetch it again")

    def damaged(self, reason: str) -> ModelError:
        return ModelError(f"{self.path}: not a readable index of a TensorFlow checkpoint ({reason}): fetch it again")

    def _read(self) -> int:
        """Fill `tensors`; the number of files of numbers."""
        footer = len(self._data) - FOOTER
        _, at = self._handle(self._data, footer)  # of an index of indices
        handle, _ = self._handle(self._data, at)
        n_shards = 0
        for _, value in self._entries(*handle):
            block, _ = self._handle(value, 0)
            for key, entry in self._entries(*block):
                fields = self._message(entry)
                if not key:
                    n_shards = self._whole(fields, 1)
                    if self._whole(fields, 2) or not 0 < n_shards <= MOST_SHARDS:
                        raise self.damaged(f"{n_shards} files, or numbers with their high bytes first")
                    continue
                name = key.decode("utf-8", "replace")
                if not NAME.fullmatch(name) or name in self.tensors or len(self.tensors) == MOST_TENSORS:
                    raise self.damaged(f"the name {name[:80]!r}")
                self.tensors[name] = self._tensor(name, fields, n_shards)
        if not n_shards:
            raise self.damaged("no header")
        return n_shards

    def _tensor(self, name: str, fields: Mapping[int, list[int | bytes]], n_shards: int) -> Stored:
        number = self._whole(fields, 1)
        if number not in DTYPES:
            raise ModelError(f"{self.path}: {name} is of TensorFlow's type {number}; expected floating-point numbers")
        if 7 in fields:
            raise ModelError(f"{self.path}: {name} is stored in slices, which are not supported")
        shape = []
        for described in fields.get(2, []):
            sizes = self._message(described) if isinstance(described, bytes) else {}
            shape += [self._whole(self._message(size), 1) for size in sizes.get(2, []) if isinstance(size, bytes)]
        stored = Stored(DTYPES[number], tuple(shape), *(self._whole(fields, n) for n in (3, 4, 5)))
        whole = len(shape) <= MOST_DIMENSIONS and 0 < math.prod(shape) * WIDTHS[stored.dtype] == stored.size
        if not whole or stored.shard >= n_shards or stored.offset >= 1 << 63:
            raise self.damaged(
                f"{name} has the shape {shape[:MOST_DIMENSIONS]} and {stored.size} bytes at {stored.offset}"
            )
        return stored

    def _entries(self, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
        """The keys and values of a block."""
        if offset + size + TRAILER > len(self._data) or size < 4:
            raise self.damaged(f"a block of {size} bytes at {offset}")
        if self._data[offset + size]:
            raise ModelError(f"{self.path}: a compressed index, which is not supported; save the checkpoint again")
        block = self._data[offset : offset + size]
        end = size - 4 - 4 * int.from_bytes(block[-4:], "little")  # where the places of whole keys begin
        at, key = 0, b""
        while at < end:
            shared, at = self._number(block, at)
            fresh, at = self._number(block, at)
            length, at = self._number(block, at)
            if shared > len(key) or at + fresh + length > end:
                raise self.damaged(f"an entry that is longer than its block at {offset}")
            key = key[:shared] + block[at : at + fresh]
            at += fresh
            yield key, block[at : at + length]
            at += length

    def _handle(self, data: bytes, at: int) -> tuple[tuple[int, int], int]:
        """The offset and the size of a block, and what follows them."""
        offset, at = self._number(data, at)
        size, at = self._number(data, at)
        return (offset, size), at

    def _message(self, data: int | bytes) -> dict[int, list[int | bytes]]:
        """The fields of a message of protocol buffers, by number."""
        found: dict[int, list[int | bytes]] = {}
        at = 0
        if isinstance(data, int):
            raise self.damaged("a number in place of a message")
        while at < len(data):
            tag, at = self._number(data, at)
            kind, value = tag & 7, b""
            if kind == 0:
                number, at = self._number(data, at)
                found.setdefault(tag >> 3, []).append(number)
                continue
            size = {1: 8, 5: 4}.get(kind, -1)
            if kind == 2:
                size, at = self._number(data, at)
            if size < 0 or at + size > len(data):
                raise self.damaged("a message that is cut off")
            value = data[at : at + size]
            found.setdefault(tag >> 3, []).append(value)
            at += size
        return found

    def _whole(self, fields: Mapping[int, list[int | bytes]], number: int) -> int:
        """A field that is a whole number, 0 where it is left out."""
        value = fields.get(number, [0])[-1]
        if not isinstance(value, int):
            raise self.damaged(f"field {number} of a message is no number")
        return value

    def _number(self, data: bytes, at: int) -> tuple[int, int]:
        """A number of seven bits a byte, the lowest first, and what follows it."""
        value = 0
        for n in range(10):
            if at + n >= len(data):
                break
            value |= (data[at + n] & 127) << 7 * n
            if data[at + n] < 128:
                return value, at + n + 1
        raise self.damaged(f"no number at {at}")


def _indices(path: Path) -> list[Path]:
    return sorted(path.glob(f"*{SUFFIX}"))
