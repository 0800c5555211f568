"""The file: some 45 bytes that say which model, kernels and windows it takes, then the coder's bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from llmcli.errors import InputError, ModelError

MAGIC = b"LLMZ\x01"  # the last byte is the version of all that decides a probability
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZED = (None, "int8", "int4")
DIGEST = 8  # bytes kept of a SHA-256


@dataclass(frozen=True)
class Header:
    """What the other end needs: digests of weights and data, precision and kernels, windows, the number of tokens."""

    model: bytes
    data: bytes
    dtype: str
    quantized: str | None
    kernels: str
    context: int
    stride: int
    n_tokens: int


def digest(data: bytes) -> bytes:
    """The first bytes of SHA-256."""
    return hashlib.sha256(data).digest()[:DIGEST]


def pack(header: Header, body: bytes) -> bytes:
    """One file."""
    name = header.kernels.encode()
    numbers = b"".join(map(_varint, (header.context, header.stride, header.n_tokens)))
    precision = 4 * QUANTIZED.index(header.quantized) + DTYPES.index(header.dtype)
    kind = bytes([precision, len(name)])
    return MAGIC + header.model + header.data + kind + name + numbers + body


def unpack(file: bytes) -> tuple[Header, bytes]:
    """The header and the coder's bytes. Raises InputError for another format or version, ModelError for a torn file."""
    if file[: len(MAGIC)] != MAGIC:
        if file[:4] == MAGIC[:4]:
            raise InputError(
                f"expected version {MAGIC[4]} of the format, got {file[4:5].hex() or 'nothing'}; "
                "decompress it with the llmcli that wrote it"
            )
        raise InputError(f"expected a file that 'llmcli compress' wrote, got one that begins with {file[:5]!r}")
    rest = file[len(MAGIC) :]
    model, data, rest = rest[:DIGEST], rest[DIGEST : 2 * DIGEST], rest[2 * DIGEST :]
    try:
        quantized, dtype, length = QUANTIZED[rest[0] // 4], DTYPES[rest[0] % 4], rest[1]
        kernels, rest = rest[2 : 2 + length].decode(), rest[2 + length :]
        numbers = []
        for _ in range(3):
            number, rest = _read_varint(rest)
            numbers.append(number)
    except (IndexError, UnicodeDecodeError):
        raise ModelError("the compressed file is damaged: its header ends early or makes no sense") from None
    return Header(model, data, dtype, quantized, kernels, *numbers), rest


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _read_varint(data: bytes) -> tuple[int, bytes]:
    """A number of at most nine bytes, and what follows. Raises IndexError where the data end."""
    number = 0
    for n in range(9):
        number |= (data[n] & 0x7F) << (7 * n)
        if data[n] < 0x80:
            return number, data[n + 1 :]
    raise IndexError
