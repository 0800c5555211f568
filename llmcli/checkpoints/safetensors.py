"""The safetensors format: one file, or shards with an index; read through a memory map, written atomically."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from llmcli.checkpoints.file import trim, writing
from llmcli.errors import ModelError

if TYPE_CHECKING:  # naming a checkpoint's files needs no torch
    from torch import Tensor

SINGLE = "model.safetensors"
ALIGNMENT = 64  # bytes: a cache line, and the widest vector
DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open(path: str | os.PathLike[str]) -> Weights:
    """A file, an index or a directory with either → its tensors by name, each mapped when asked for.

    The map is private: a tensor that is written to keeps its changes to itself. Raises ModelError for a missing,
    truncated or malformed file.
    """
    return Weights(files(path))


def files(path: str | os.PathLike[str]) -> list[Path]:
    """The safetensors files of a checkpoint: the file itself, or those of a directory or an index, in order."""
    path = Path(path)
    if path.is_dir():
        single, index = path / SINGLE, path / INDEX
        if single.exists():
            return [single]
        if not index.exists():
            pickled = sorted(p.name for p in path.iterdir() if p.suffix in PICKLES)
            why = f"; {pickled[0]} is a pickle, which can run any code: save it as safetensors" if pickled else ""
            raise ModelError(f"{path}: expected {SINGLE} or {INDEX}; found neither{why}")
        path = index
    if not path.exists():
        raise ModelError(f"{path}: no such file")
    if path.suffix == ".json":
        try:
            shards = sorted({os.fspath(name) for name in json.loads(path.read_text("utf-8"))["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(
                f"{path}: expected a JSON index with a weight_map, or name the directory; {error!r}"
            ) from error
        outside = [name for name in shards if Path(name).name != name]
        if outside or not shards:
            raise ModelError(f"{path}: expected the names of files beside it; got {outside}")
        missing = [f"{name:.100}" for name in shards if not os.path.isfile(path.parent / name)]  # False of any name
        if missing:
            raise ModelError(f"{path}: names {len(shards)} files; missing {', '.join(missing)}: fetch them again")
        return [path.parent / name for name in shards]
    if path.suffix != ".safetensors":
        raise ModelError(f"{path}: expected a .safetensors file; pickled weights can run any code and are not read")
    return [path]


class Weights(Mapping[str, "Tensor"]):
    """Lazy tensors of one or more safetensors files; `metadata` is what their headers note beside them."""

    def __init__(self, files: list[Path]):
        self.metadata: dict[str, str] = {}
        self._files = {os.fspath(file.resolve()) for file in files}
        self._where: dict[str, Any] = {}
        for file in files:
            try:
                handle: Any = safe_open(file, framework="pt")
            except (SafetensorError, OSError, RuntimeError) as error:
                raise ModelError(
                    f"{file}: not a readable safetensors file, truncated or damaged ({error}): fetch or save it again"
                ) from error
            self.metadata |= handle.metadata() or {}
            for name in handle.keys():  # noqa: SIM118 (not a mapping)
                if name in self._where:
                    raise ModelError(f"{file}: the tensor {name} is also in another file of this checkpoint")
                self._where[name] = handle

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._where[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def release(self) -> None:
        """Hand what was read and freed so far back to the system, on Linux; a tensor read again is mapped again.

        Undoes any writing to the tensors.
        """
        try:
            maps = Path("/proc/self/maps").read_text("utf-8", "surrogateescape").splitlines()
        except OSError:
            return
        libc = ctypes.CDLL(None)
        for line in maps:
            # address, permissions, offset, device, inode, path
            fields = line.split(None, 5)
            if len(fields) == 6 and fields[5] in self._files:
                begin, end = (int(address, 16) for address in fields[0].split("-"))
                libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)
        trim()


def save(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write one safetensors file beside its place, flush it to the disk, then rename: it is there whole or not at all.

    The same tensors and metadata give the same bytes (the library's own writer shuffles the metadata), and the data
    begins at a multiple of ALIGNMENT. Raises ResourceError when the disk is full or the place cannot be written.
    """
    import torch

    path = Path(path)
    # "format": "pt" is what transformers asks of a file that it will load.
    header: dict[str, Any] = {"__metadata__": dict(sorted({"format": "pt", **(metadata or {})}.items()))}
    # Whole cache lines first, then falling sizes of elements: so each tensor is aligned.
    names = sorted(
        tensors, key=lambda name: (tensors[name].nbytes % ALIGNMENT > 0, -tensors[name].element_size(), name)
    )
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPES[str(tensor.dtype)], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with writing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(tensors[name].detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
