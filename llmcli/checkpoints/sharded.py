"""Training states of which every process wrote its own part: directories of safetensors files.

Written and read by torch.distributed.checkpoint, whatever the number of processes; knows names and tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor


def found(directory: Path) -> list[Path]:
    """The states in a directory, each of them complete, the last one at the end."""
    return sorted(directory.glob("training.*.shards"), key=_number)


def next_name(directory: Path) -> str:
    """The name of the state that comes after those in a directory."""
    return f"training.{1 + max(map(_number, found(directory)), default=0)}.shards"


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a new state, called by every process with its parts. Raises OSError in all of them where one had it."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(path), save_distributed=True))
    except CheckpointException as error:
        raise next((one for one, _ in error.failures.values() if isinstance(one, OSError)), error) from None


def open(path: Path) -> Mapping[str, Tensor]:
    """The whole tensors of a state by name, each put together when it is asked for."""
    return _State(path)


class _State(Mapping[str, Tensor]):
    def __init__(self, path: Path) -> None:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

        self._reader = HuggingFaceStorageReader(str(path))
        self._described = self._reader.read_metadata().state_dict_metadata

    def __getitem__(self, name: str) -> Tensor:
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata
        from torch.distributed.checkpoint.state_dict_loader import load

        described = self._described[name]
        assert isinstance(described, TensorStorageMetadata)
        tensor = torch.empty(described.size, dtype=described.properties.dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "torch.distributed is disabled", which it is meant to be
            load({name: tensor}, storage_reader=self._reader, no_dist=True)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._described)

    def __len__(self) -> int:
        return len(self._described)


def _number(path: Path) -> int:
    number = path.name.split(".")[1]
    return int(number) if number.isdigit() else 0
