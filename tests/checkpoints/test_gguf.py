"""The GGUF reader: every number format as the ggml project's package has it, and lies in the file."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf as package
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from hypothesis import event, given
from hypothesis import strategies as st

from llmcli.checkpoints import gguf
from llmcli.errors import ModelError
from tests.gguf_files import finish

PACKED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]


@pytest.mark.parametrize("kind", PACKED)
def test_unpacked_values_have_the_same_bits(kind: str, tmp_path: Path) -> None:
    """Any bytes that could be blocks, with scales that are finite."""
    number, size = GGMLQuantizationType[kind], gguf.SIZES[kind]
    data = np.random.default_rng(3).integers(0, 256, (37, 3 * size.bytes), np.uint8)
    fields = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(kind, (0,))
    for begin in fields:
        data.reshape(-1, size.bytes)[:, begin + 1] &= 0xBB  # no exponent of ones, which is infinity or none
    file = GGUFWriter(tmp_path / "x.gguf", "none")
    file.add_tensor("x", data, raw_dtype=number)
    finish(file)
    got = gguf.Weights(gguf.open(tmp_path / "x.gguf"), torch.float32)["x"]
    expected = torch.from_numpy(package.dequantize(data, number))
    assert got.isfinite().all()
    assert torch.equal(got, expected)
    assert got.shape == (37, 3 * size.weights)


TENSORS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.linspace(-1, 1, 10, dtype=np.float16).reshape(2, 5),
    "scales": np.ones(7, np.float32),
}
METADATA = {"text": "naïve", "number": 7, "fraction": 0.5, "truth": True, "list": ["a", "bc", ""], "many": [1, 2, 3]}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a small file."""
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    file = GGUFWriter(path, "none")
    file.add_string("text", "naïve")
    file.add_uint32("number", 7)
    file.add_float32("fraction", 0.5)
    file.add_bool("truth", True)
    file.add_array("list", ["a", "bc", ""])
    file.add_array("many", [1, 2, 3])
    for name, tensor in TENSORS.items():
        file.add_tensor(name, tensor)
    finish(file)
    return path.read_bytes()


def opened(path: Path, data: bytes) -> gguf.File:
    path.write_bytes(data)
    return gguf.File(path)


def test_metadata_and_plain_tensors(good: bytes, tmp_path: Path) -> None:
    file = opened(tmp_path / "x.gguf", good)
    for key, value in METADATA.items():
        if isinstance(value, list):
            assert file.items(key, type(value[0])) == value
        else:
            assert file.get(key, type(value)) == value
    assert file.items("absent", str) == []
    weights = gguf.Weights(file, torch.float32)
    assert [*weights] == [*TENSORS]
    for name, tensor in TENSORS.items():
        assert torch.equal(weights[name], torch.from_numpy(tensor))
    weights["a"].fill_(7.0)
    assert (tmp_path / "x.gguf").read_bytes() == good
    weights.release()
    assert weights["a"][0, 1] == 1.0


def test_recognised_by_name_or_first_bytes(good: bytes, tmp_path: Path) -> None:
    for name, data, expected in (("a.gguf", b"", True), ("blob", good, True), ("b", b"GG", False), ("c", b"", False)):
        (tmp_path / name).write_bytes(data)
        assert gguf.recognised(tmp_path / name) == expected
    assert not gguf.recognised(tmp_path)
    assert not gguf.recognised(tmp_path / "absent.gguf")


def string(text: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if size is None else size) + text


def file_of(*parts: bytes, tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    """A header and what follows it, with zeros behind."""
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts) + bytes(64)


def tensor(name: bytes = b"t", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HUGE = (1 << 64) - 1
LIES = {
    "no magic": (b"GGML" + bytes(40), "does not begin with 'GGUF'"),
    "empty": (b"", "shorter than a header"),
    "big-endian": (file_of(version=3 << 24), "got a big-endian file"),
    "old": (file_of(version=1), "expected GGUF version 2 or 3, got version 1"),
    "many tensors": (file_of(tensors=HUGE), "18446744073709551615 tensors, expected at most"),
    "many keys": (file_of(keys=HUGE), "18446744073709551615 keys, expected at most"),
    "more keys than bytes": (file_of(keys=60000), "there twice"),
    "a long key": (file_of(string(b"k", HUGE), keys=1), "bytes of a name"),
    "a key beyond the end": (file_of(string(b"k", 1000), keys=1), "1000 bytes wanted"),
    "a key that a terminal would obey": (file_of(string(b"a\x1b[2J"), keys=1), r"the name 'a\\x1b\[2J'"),
    "a key that is no text": (file_of(string(b"\xff\xfe"), keys=1), "text that is not UTF-8"),
    "a type that is none": (file_of(string(b"k"), struct.pack("<I", 99), keys=1), "unknown type 99"),
    "a long text": (file_of(string(b"k"), struct.pack("<I", 8), string(b"", HUGE), keys=1), "bytes, expected at most"),
    "a text beyond the end": (file_of(string(b"k"), struct.pack("<I", 8), string(b"", 5000), keys=1), "5000 bytes"),
    "a long array": (file_of(string(b"k"), struct.pack("<IIQ", 9, 0, HUGE), keys=1), "elements, expected at most"),
    "an array beyond the end": (file_of(string(b"k"), struct.pack("<IIQ", 9, 12, 1 << 20), keys=1), "bytes wanted"),
    "texts beyond the end": (file_of(string(b"k"), struct.pack("<IIQ", 9, 8, 1 << 20), keys=1), "bytes wanted"),
    "a long text among texts": (
        file_of(string(b"k"), struct.pack("<IIQ", 9, 8, 2), string(b"a"), string(b"", HUGE), keys=1),
        "bytes, expected at most",
    ),
    "a text among texts beyond the end": (
        file_of(string(b"k"), struct.pack("<IIQ", 9, 8, 2), string(b"a"), string(b"", 5000), keys=1),
        "5000 bytes wanted",
    ),
    "an array in an array": (file_of(string(b"k"), struct.pack("<IIQ", 9, 9, 1), keys=1), "an array of the type 9"),
    "a key twice": (file_of(*[string(b"k") + struct.pack("<IB", 0, 1)] * 2, keys=2), "k is there twice"),
    "alignment": (file_of(string(b"general.alignment"), struct.pack("<II", 4, 24), keys=1), "is 24, expected a power"),
    "no alignment": (file_of(string(b"general.alignment"), struct.pack("<II", 4, 0), keys=1), "is 0, expected a power"),
    "no dimensions": (file_of(tensor(shape=()), tensors=1), "0 dimensions, expected 1 to 4"),
    "many dimensions": (file_of(tensor(shape=(1,) * 5), tensors=1), "5 dimensions"),
    "an empty tensor": (file_of(tensor(shape=(0,)), tensors=1), r"a tensor of the shape \[0\]"),
    "a huge tensor": (file_of(tensor(shape=(1 << 40, 1 << 40)), tensors=1), "tensor t ends at"),
    "sizes that wrap around": (file_of(tensor(shape=(1 << 32, 1 << 32)), tensors=1), "tensor t ends at"),
    "a negative size": (file_of(tensor(shape=(HUGE,)), tensors=1), r"a tensor of the shape \[18446744073709551615\]"),
    "an offset beyond the end": (file_of(tensor(offset=1 << 20), tensors=1), "tensor t ends at"),
    "a negative offset": (file_of(tensor(offset=HUGE - 31), tensors=1), "tensor t ends at"),
    "an odd offset": (file_of(tensor(offset=1), tensors=1), "begins at 1, expected a multiple of 32"),
    "overlap": (file_of(tensor(shape=(9,)), tensor(b"u", offset=32), tensors=2), "tensor u overlaps another"),
    "the same place": (file_of(tensor(), tensor(b"u"), tensors=2), "overlaps another"),
    "the same name": (file_of(tensor(), tensor(offset=32), tensors=2), "t is there twice"),
    "a type without a reader": (file_of(tensor(shape=(256,), kind=10), tensors=1), "of the type Q2_K; expected one of"),
    "a type that nobody knows": (file_of(tensor(kind=77), tensors=1), "of the type 77; expected one of: F32"),
    "part of a block": (file_of(tensor(shape=(31,), kind=2), tensors=1), r"the shape \[31\] and the type Q4_0"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_file_that_lies(case: str, tmp_path: Path) -> None:
    data, message = LIES[case]
    with pytest.raises(ModelError, match=message) as caught:
        opened(tmp_path / "x.gguf", data)
    assert "\n" not in str(caught.value)


def test_texts_of_an_array_that_are_none(tmp_path: Path) -> None:
    """They are told by their place, when they are asked for."""
    head = file_of(string(b"k"), struct.pack("<IIQ", 9, 8, 2), string(b"ab"), string(b"\xff"), keys=1)
    file = opened(tmp_path / "x.gguf", head)
    with pytest.raises(ModelError, match=f"text that is not UTF-8 at {head.index(0xFF)}"):
        file.items("k", str)


def test_an_array_of_another_type(good: bytes, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected many to hold str"):
        opened(tmp_path / "x.gguf", good).items("many", str)


def test_truncated_anywhere(good: bytes, tmp_path: Path) -> None:
    end = len(good) - len(good) % 32  # what follows the last tensor is padding
    for keep in range(end - 32):
        with pytest.raises(ModelError, match=r"truncated or damaged|expected GGUF version"):
            opened(tmp_path / "x.gguf", good[:keep])


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.gguf: not readable \(No such file or directory\)"):
        gguf.open(tmp_path / "absent.gguf")


def read_all(path: Path, data: bytes) -> None:
    """Everything a loader may ask of a file."""
    file = opened(path, data)
    for key, value in file.metadata.items():
        if isinstance(value, gguf.Items):
            file.items(key, str if value.kind == gguf.STRING else int)
    weights: Any = gguf.Weights(file, torch.float32)
    for name in weights:
        assert weights[name].numel() > 0


@given(st.data())
def test_mutated_headers_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, good: bytes, data: Any) -> None:
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        fresh = data.draw(st.one_of(st.binary(min_size=1, max_size=9), st.sampled_from([b"\xff" * 8, b"\0" * 8])))
        if data.draw(st.booleans()):
            damaged[place : place + len(fresh)] = fresh  # in place
        else:
            damaged[place:place] = fresh  # moving what follows
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    try:
        read_all(path, bytes(damaged))
    except ModelError:
        event("refused")
