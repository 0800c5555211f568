"""The safetensors reader and writer: round trips, lies in the file, and nothing half-written."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from llmcli.checkpoints import safetensors
from llmcli.errors import ModelError, ResourceError

TENSORS = {
    "a": torch.arange(12.0).view(3, 4),
    "b": torch.randn(5).bfloat16(),
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(0, 4),
    "turned": torch.arange(6.0).view(2, 3).t(),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    safetensors.save(tmp_path / "model.safetensors", TENSORS, {"made": "here"})
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("spec", ["model.safetensors", "."])
def test_round_trip(file: Path, spec: str) -> None:
    weights = safetensors.open(file.parent / spec)
    assert set(weights) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert weights[name].dtype == tensor.dtype
        assert torch.equal(weights[name], tensor)
    assert [path.name for path in file.parent.iterdir()] == ["model.safetensors"]


def test_data_is_aligned_and_the_library_agrees(file: Path) -> None:
    assert (8 + int.from_bytes(file.read_bytes()[:8], "little")) % safetensors.ALIGNMENT == 0
    theirs = load_file(file)
    assert all(torch.equal(theirs[name], tensor) for name, tensor in TENSORS.items())
    with safe_open(file, "pt") as handle:
        assert handle.metadata() == {"format": "pt", "made": "here"}


@pytest.mark.parametrize("dtype", safetensors.DTYPES)
def test_every_dtype(dtype: str, tmp_path: Path) -> None:
    tensor = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(getattr(torch, dtype.removeprefix("torch.")))
    safetensors.save(tmp_path / "x.safetensors", {"x": tensor, "odd": torch.ones(3, dtype=torch.uint8)})
    got = safetensors.open(tmp_path / "x.safetensors")["x"]
    assert got.dtype == tensor.dtype
    assert torch.equal(got, tensor)


def test_saved_bytes_do_not_depend_on_order(file: Path, tmp_path: Path) -> None:
    safetensors.save(tmp_path / "again.safetensors", dict(reversed(TENSORS.items())), {"made": "here"})
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()


def test_writing_to_a_tensor_leaves_the_file_alone(file: Path) -> None:
    before = file.read_bytes()
    safetensors.open(file)["a"].fill_(7.0)
    assert file.read_bytes() == before
    assert safetensors.open(file)["a"][0, 1] == 1.0


def test_tensors_are_mapped_not_read(tmp_path: Path) -> None:
    """Of a sparse file of 4 GiB, only what is touched becomes resident."""
    header = json.dumps({"big": {"dtype": "F32", "shape": [1 << 30], "data_offsets": [0, 1 << 32]}}).encode()
    header += b" " * (-len(header) % 8)
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + (1 << 32))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert safetensors.open(path)["big"][-1] == 0.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def shard(directory: Path, names: dict[str, list[str]], weight_map: dict[str, str] | None = None) -> None:
    for file, tensors in names.items():
        safetensors.save(directory / file, {name: TENSORS[name] for name in tensors})
    index = weight_map or {name: file for file, tensors in names.items() for name in tensors}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.mark.parametrize("spec", [".", "model.safetensors.index.json"])
def test_shards(tmp_path: Path, spec: str) -> None:
    shard(tmp_path, {"x.safetensors": ["a", "b"], "y.safetensors": ["scalar"]})
    weights = safetensors.open(tmp_path / spec)
    assert sorted(weights) == ["a", "b", "scalar"]
    assert torch.equal(weights["scalar"], TENSORS["scalar"])


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "x.safetensors", "b": "z.safetensors"}, "missing z.safetensors"),
        ({"a": "../x.safetensors"}, "names of files beside it"),
        ({"a": 3}, "expected a JSON index with a weight_map"),
    ],
    ids=str,
)
def test_index_that_lies(tmp_path: Path, weight_map: dict[str, str], message: str) -> None:
    shard(tmp_path, {"x.safetensors": ["a"]}, weight_map)
    with pytest.raises(ModelError, match=message):
        safetensors.open(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": 3}', "\udcff", pytest.param("[" * 100_000, id="deep")],
)
def test_index_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text, errors="surrogateescape")
    with pytest.raises(ModelError, match="expected"):
        safetensors.open(tmp_path)


def test_the_same_tensor_in_two_shards(tmp_path: Path) -> None:
    shard(tmp_path, {"x.safetensors": ["a"], "y.safetensors": ["a", "b"]}, {"a": "x.safetensors", "b": "y.safetensors"})
    with pytest.raises(ModelError, match="the tensor a is also in another file"):
        safetensors.open(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 8, 50, -1])
def test_truncated(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"not a readable safetensors file, truncated or damaged \(.*save it again"):
        safetensors.open(file)


def test_a_flipped_bit_in_the_header_is_an_error_or_another_name(file: Path) -> None:
    good = file.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    refused = 0
    for position in range(header):
        damaged = bytearray(good)
        damaged[position] ^= 1
        file.write_bytes(damaged)
        try:
            weights = safetensors.open(file)
        except ModelError:
            refused += 1
        else:  # a letter of a name, of the metadata, or a space: every tensor still has its bytes
            assert len(weights) == len(TENSORS)
            assert sum(weights[name].nbytes for name in weights) == sum(tensor.nbytes for tensor in TENSORS.values())
    assert refused > header / 2


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match=f"{name} is a pickle, which can run any code: save it as safetensors"):
        safetensors.open(tmp_path)
    with pytest.raises(ModelError, match=r"expected a \.safetensors file; pickled weights can run any code"):
        safetensors.open(tmp_path / name)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected model\.safetensors or .*index\.json; found neither"):
        safetensors.open(tmp_path)
    with pytest.raises(ModelError, match="no such file"):
        safetensors.open(tmp_path / "absent.safetensors")


def test_a_failed_save_leaves_the_old_file(file: Path) -> None:
    good = file.read_bytes()
    with pytest.raises(NotImplementedError):
        safetensors.save(file, {"a": torch.zeros(4), "b": torch.zeros(4, device="meta")})
    assert file.read_bytes() == good
    assert [path.name for path in file.parent.iterdir()] == ["model.safetensors"]


def test_a_full_disk(file: Path) -> None:
    good = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(ResourceError, match=r"cannot write .*model\.safetensors: .*nothing was changed"):
            safetensors.save(file, {"a": torch.zeros(10000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == good
    assert [path.name for path in file.parent.iterdir()] == ["model.safetensors"]


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="cannot write"):
        safetensors.save(tmp_path / "absent" / "model.safetensors", TENSORS)
