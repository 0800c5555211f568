"""The GGUF format: metadata and tensors in one file; read through a memory map, written atomically.

Every length, offset and size is compared with the file before it is used; arrays are decoded when asked for. The layout
is that of the specification in the ggml project (docs/gguf.md).
"""

from __future__ import annotations

import functools
import math
import mmap
import os
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from llmcli.checkpoints.file import trim
from llmcli.errors import ModelError

if TYPE_CHECKING:  # the header needs no torch
    import torch
    from torch import Tensor

MAGIC = b"GGUF"
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
LENGTH = struct.Struct("<Q")  # of a text
ALIGNMENT = 32  # bytes
# Sizes that no model reaches, so that a lie costs little time and memory.
LIMITS = {"tensors": 1 << 16, "keys": 1 << 16, "elements": 1 << 24, "bytes of a name": 1 << 10, "bytes": 1 << 26}


class Size(NamedTuple):
    """So many weights in so many bytes."""

    weights: int
    bytes: int


NUMBERS = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 12: "Q4_K", 13: "Q5_K"}
NUMBERS |= {14: "Q6_K", 30: "BF16"}
UNREAD = {10: "Q2_K", 11: "Q3_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S"}
UNREAD |= {22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0"}
PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
SIZES = {"F32": Size(1, 4), "F16": Size(1, 2), "BF16": Size(1, 2)}
SIZES |= {"Q4_0": Size(32, 18), "Q4_1": Size(32, 20), "Q5_0": Size(32, 22), "Q5_1": Size(32, 24), "Q8_0": Size(32, 34)}
SIZES |= {"Q4_K": Size(256, 144), "Q5_K": Size(256, 176), "Q6_K": Size(256, 210)}


@dataclass(frozen=True)
class Stored:
    """A tensor in the file: its type, its shape with the row last, and its bytes."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Items:
    """An array of the metadata, in the file."""

    kind: int
    length: int
    begin: int
    end: int


def recognised(path: Path) -> bool:
    """Whether a path is a GGUF file, by its name or its first bytes."""
    if not path.is_file():
        return False
    if path.suffix in (".gguf", ".safetensors", ".json"):
        return path.suffix == ".gguf"
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def open(path: Path) -> File:
    """The file's header, checked. Raises ModelError for one that is missing, truncated, malformed or not supported."""
    try:
        state = path.stat()
        return _open(path.resolve(), state.st_mtime_ns, state.st_size)
    except OSError as error:
        raise ModelError(f"{path}: not readable ({error.strerror})") from None


@functools.lru_cache(maxsize=1)  # configuration, tokenizer and weights come from the same header
def _open(path: Path, changed: int, size: int) -> File:
    return File(path)


class File:
    """The metadata and the places of the tensors of one file."""

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < 24:
                raise self._damaged("shorter than a header")
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 4
        if self.map[:4] != MAGIC:
            raise self._damaged("does not begin with 'GGUF'")
        version = self._number("I")
        if version not in (2, 3):
            kind = "a big-endian file" if version in (2 << 24, 3 << 24) else f"version {version}"
            raise ModelError(f"{path}: expected GGUF version 2 or 3, got {kind}: convert the model anew with llama.cpp")
        n_tensors, n_keys = self._count("tensors"), self._count("keys")
        self.metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self._name(self.metadata)
            self.metadata[key] = self._value(self._number("I"))
        alignment = self.get("general.alignment", int, ALIGNMENT)
        if not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {alignment}, expected a power of two")
        if self.get("split.count", int, 1) > 1:
            raise ModelError(f"{path}: one of several files; join them first: llama-gguf-split --merge")
        self.tensors: dict[str, Stored] = {}
        headers: dict[str, tuple[str, tuple[int, ...], int]] = {}
        for _ in range(n_tensors):
            name = self._name(headers)
            headers[name] = self._tensor()
        data = -(-self._at // alignment) * alignment
        for name, (kind, shape, offset) in headers.items():
            if offset % alignment:
                raise self._damaged(f"tensor {name} begins at {offset}, expected a multiple of {alignment}")
            size = math.prod(shape) // SIZES[kind].weights * SIZES[kind].bytes
            if data + offset + size > len(self.map):
                raise self._damaged(f"tensor {name} ends at {data + offset + size} of {len(self.map)} bytes")
            self.tensors[name] = Stored(kind, shape, data + offset, data + offset + size)
        end = data
        for name, stored in sorted(self.tensors.items(), key=lambda item: item[1].begin):
            if stored.begin < end:
                raise self._damaged(f"tensor {name} overlaps another")
            end = stored.end

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """A scalar of the metadata, checked to be of a Python type. Raises ModelError, also for one that is missing."""
        value = self.metadata.get(key, default)
        if type(value) is int and kind is float:
            value = float(value)
        if type(value) is not kind or value != value or value in (math.inf, -math.inf):
            shown = f"an array of {value.length}" if isinstance(value, Items) else repr(value)[:80]
            wanted = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}[kind]
            raise ModelError(f"{self.path}: expected {key} to be {wanted}, got {shown}: convert the model anew")
        return value

    def items(self, key: str, kind: type) -> list[Any]:
        """An array of the metadata, empty where there is none; its elements are checked to be of a Python type."""
        found = self.metadata.get(key)
        if found is None:
            return []
        if not isinstance(found, Items):
            raise ModelError(f"{self.path}: expected {key} to be an array, got {repr(found)[:80]}: convert it anew")
        if found.kind == STRING:
            # No cursor: another thread may read another array.
            data, at, values, number = self.map[found.begin : found.end], 0, [], LENGTH.unpack_from
            try:
                for _ in range(found.length):
                    stop = at + 8 + number(data, at)[0]
                    values.append(data[at + 8 : stop].decode())
                    at = stop
            except UnicodeDecodeError:
                raise self._damaged(f"text that is not UTF-8 at {found.begin + at + 8}") from None
        else:
            values = list(struct.unpack_from(f"<{found.length}{SCALARS[found.kind]}", self.map, found.begin))
        if values and type(values[0]) is not kind:  # they are of one type
            raise ModelError(f"{self.path}: expected {key} to hold {kind.__name__}, got others: convert the model anew")
        return values

    def _damaged(self, reason: str) -> ModelError:
        return ModelError(
            f"{self.path}: not a readable GGUF file, truncated or damaged ({reason}): fetch or convert it again"
        )

    def _skip(self, size: int) -> int:
        """Move on by so many bytes, if the file has them → where they begin."""
        begin = self._at
        if size > len(self.map) - begin:
            raise self._damaged(f"{size} bytes wanted at {begin} of {len(self.map)}")
        self._at = begin + size
        return begin

    def _number(self, form: str) -> Any:
        value = struct.unpack_from(f"<{form}", self.map, self._skip(struct.calcsize(f"<{form}")))[0]
        return shortest(value) if form == "f" else value

    def _count(self, what: str) -> int:
        count = int(self._number("Q"))
        if count > LIMITS[what]:
            raise self._damaged(f"{count} {what}, expected at most {LIMITS[what]}")
        return count

    def _text(self) -> str:
        size = self._count("bytes")
        return self._decoded(self._skip(size), size)

    def _decoded(self, begin: int, size: int) -> str:
        try:
            return self.map[begin : begin + size].decode()
        except UnicodeDecodeError:
            raise self._damaged(f"text that is not UTF-8 at {begin}") from None

    def _name(self, taken: Mapping[str, object]) -> str:
        self._count("bytes of a name")
        self._at -= 8
        name = self._text()
        if not name.isprintable():  # it may be shown on a terminal
            raise self._damaged(f"the name {name!r}")
        if name in taken:
            raise self._damaged(f"{name} is there twice")
        return name

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._text()
        if kind in SCALARS:
            return self._number(SCALARS[kind])
        if kind != ARRAY:
            raise self._damaged(f"a value of the unknown type {kind}")
        kind, length = self._number("I"), self._count("elements")
        begin = self._at
        if kind == STRING:
            self._skip_texts(length)
        elif kind in SCALARS:
            self._skip(length * struct.calcsize(f"<{SCALARS[kind]}"))
        else:
            raise self._damaged(f"an array of the type {kind}, expected numbers or texts")
        return Items(kind, length, begin, self._at)

    def _skip_texts(self, length: int) -> None:
        """Move on by so many texts, of which a vocabulary has some hundred thousand."""
        data, at, room, most, number = self.map, self._at, len(self.map) - 8, LIMITS["bytes"], LENGTH.unpack_from
        for _ in range(length):
            if at > room or (size := number(data, at)[0]) > most or size > room - at:
                self._at = at
                self._skip(self._count("bytes"))  # raises, for one of these reasons
            at += 8 + size
        self._at = at

    def _tensor(self) -> tuple[str, tuple[int, ...], int]:
        n_dims = self._number("I")
        if not 1 <= n_dims <= 4:
            raise self._damaged(f"a tensor of {n_dims} dimensions, expected 1 to 4")
        shape = tuple(reversed([self._number("Q") for _ in range(n_dims)]))
        number, offset = self._number("I"), self._number("Q")
        if number not in NUMBERS:
            raise ModelError(
                f"{self.path}: a tensor is of the type {UNREAD.get(number, number)}; expected one of: "
                f"{', '.join(SIZES)}: get the model in another quantisation"
            )
        if shape[-1] % SIZES[NUMBERS[number]].weights or not all(0 < size < 1 << 63 for size in shape):
            raise self._damaged(f"a tensor of the shape {list(shape)} and the type {NUMBERS[number]}")
        return NUMBERS[number], shape, offset


def shortest(value: float) -> float:
    """The number that was meant by one of 32 bits: 1e-05 instead of 9.999999747378752e-06."""
    stored = struct.pack("<f", value)
    return next((short for n in range(1, 9) if struct.pack("<f", short := float(f"{value:.{n}g}")) == stored), value)


class Weights(Mapping[str, "Tensor"]):
    """Lazy tensors of a file: mapped where they are plain numbers, unpacked to `dtype` where they are blocks.

    A matrix in one of the types `in_place` is not unpacked: its rows are numbers (N,1) that `blocks` and `unpacked`
    understand, so that whoever turns, splits or reorders rows need not know.
    """

    def __init__(self, file: File, dtype: torch.dtype, in_place: Collection[str] = ()):
        self.file, self._dtype, self._in_place = file, dtype, in_place
        with file.path.open("rb") as opened:  # private: who writes to a tensor leaves the file alone
            self._map = mmap.mmap(opened.fileno(), len(file.map), access=mmap.ACCESS_COPY)

    def __getitem__(self, name: str) -> Tensor:
        return self._read(self.file.tensors[name])

    def slice(self, name: str, index: int) -> Tensor:
        """One of the tensors that lie in another, one behind the other, along its first dimension."""
        whole = self.file.tensors[name]
        size = (whole.end - whole.begin) // whole.shape[0]
        begin = whole.begin + index * size
        return self._read(Stored(whole.kind, whole.shape[1:], begin, begin + size))

    def _read(self, stored: Stored) -> Tensor:
        import torch

        from llmcli.ops import blocks

        if stored.kind in self._in_place and len(stored.shape) == 2:
            return torch.arange(stored.begin, stored.end, (stored.end - stored.begin) // stored.shape[0])[:, None]
        data = torch.frombuffer(self._map, dtype=torch.uint8, count=stored.end - stored.begin, offset=stored.begin)
        if stored.kind not in PLAIN:
            return blocks(data, stored.kind, self._dtype).view(stored.shape)
        aligned = data.clone() if stored.begin % 4 else data
        return aligned.view(getattr(torch, PLAIN[stored.kind])).view(stored.shape)

    def blocks(self, rows: Tensor) -> tuple[Tensor, str, int]:
        """All bytes of the file, in which rows (N,1) of a matrix are where each begins; its type and its columns."""
        import torch

        first = int(rows[0, 0])
        found = next(stored for stored in self.file.tensors.values() if stored.begin <= first < stored.end)
        return torch.frombuffer(self._map, dtype=torch.uint8), found.kind, found.shape[-1]

    def unpacked(self, rows: Tensor) -> Tensor:
        """The weights of rows (N,1), neighbours in the file, in `dtype`: (N,K)."""
        from llmcli.ops import blocks

        data, kind, columns = self.blocks(rows)
        size = columns // SIZES[kind].weights * SIZES[kind].bytes
        begin = int(rows.min())
        own = data[begin : int(rows.max()) + size]
        if len(own) != len(rows) * size or (rows[1:] < rows[:-1]).any():  # not as they lie
            own = own.view(-1, size)[rows[:, 0].sub(begin).div(size, rounding_mode="floor")].flatten()
        return blocks(own, kind, self._dtype).view(len(rows), columns)

    def __iter__(self) -> Iterator[str]:
        return iter(self.file.tensors)

    def __len__(self) -> int:
        return len(self.file.tensors)

    def release(self) -> None:
        """Hand the pages that were read so far back to the system; a tensor read again is read from the file again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
        trim()


def write(file: BinaryIO, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[Tensor, str]]) -> None:
    """Write metadata (texts, numbers, lists of either) and tensors, each with one of the types that `blocks` packs.

    Whole numbers are written with 32 bits, as the specification has most of them, and those of lists with a sign.
    """
    import torch

    from llmcli.checkpoints import blocks

    file.write(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        number, data = _encoded(value)
        file.write(_string(key) + struct.pack("<I", number) + data)
    numbers, at = {kind: number for number, kind in NUMBERS.items()}, 0
    for name, (tensor, kind) in tensors.items():
        shape = tensor.shape[::-1]
        file.write(_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, numbers[kind], at))
        size = tensor.numel() // SIZES[kind].weights * SIZES[kind].bytes
        at += size + -size % ALIGNMENT
    for tensor, kind in tensors.values():
        file.write(bytes(-file.tell() % ALIGNMENT))
        plain = tensor.detach().cpu()
        whole = plain.to(getattr(torch, PLAIN[kind])).contiguous() if kind in PLAIN else blocks.write(plain, kind)
        file.write(whole.view(-1).view(torch.uint8).numpy().data)
    file.write(bytes(-file.tell() % ALIGNMENT))


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _encoded(value: Any) -> tuple[int, bytes]:
    """A value of the metadata: its type, and its bytes."""
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, str):
        return STRING, _string(value)
    if isinstance(value, int):
        return 4, struct.pack("<I", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value[0], str):
        return ARRAY, struct.pack("<IQ", STRING, len(value)) + b"".join(map(_string, value))
    kind = 5 if isinstance(value[0], int) else 6
    return ARRAY, struct.pack(f"<IQ{len(value)}{SCALARS[kind]}", kind, len(value), *value)
