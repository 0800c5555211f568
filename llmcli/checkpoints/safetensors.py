"""The safetensors format: one file, or shards with an index; read through a memory map, written atomically."""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from llmcli.errors import ModelError, ResourceError

if TYPE_CHECKING:  # naming a checkpoint's files needs no torch
    from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open(path: str | os.PathLike[str]) -> Mapping[str, Tensor]:
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
            shards = sorted(set(json.loads(path.read_text("utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path}: expected a JSON object with a weight_map; {error!r}") from error
        missing = [name for name in shards if not (path.parent / name).is_file()]
        if missing:
            raise ModelError(f"{path}: names {len(shards)} files; missing {', '.join(missing)}: fetch them again")
        return [path.parent / name for name in shards]
    if path.suffix != ".safetensors":
        raise ModelError(f"{path}: expected a .safetensors file; pickled weights can run any code and are not read")
    return [path]


class Weights(Mapping[str, "Tensor"]):
    """Lazy tensors of one or more safetensors files."""

    def __init__(self, files: list[Path]):
        self._where: dict[str, Any] = {}
        for file in files:
            try:
                handle: Any = safe_open(file, framework="pt")
            except (SafetensorError, OSError, ValueError) as error:
                raise ModelError(
                    f"{file}: not a readable safetensors file, truncated or damaged ({error}): fetch or save it again"
                ) from error
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


def save(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write one safetensors file beside its place, flush it to the disk, then rename: it is there whole or not at all.

    Raises ResourceError when the disk is full or the place cannot be written.
    """
    from safetensors.torch import save_file

    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # "format": "pt" is what transformers asks of a file that it will load.
        header = {"format": "pt", **(metadata or {})}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside, metadata=header)
        with builtins.open(beside, "rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except (SafetensorError, OSError) as error:
        raise ResourceError(f"cannot write {path}: {error}") from error
    finally:
        beside.unlink(missing_ok=True)
