"""Checkpoints of a training run: written beside and renamed, so that one is there whenever a process is killed.

Knows files, names and tensors; does not know what a training step is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from llmcli.checkpoints import safetensors, sharded
from llmcli.errors import InputError, ResourceError
from llmcli.training.distributed import Team
from llmcli.training.recipe import Recipe

STATE = "training.safetensors"  # float32 weights, AdamW's moments, the number of steps done
Export = Callable[[Any], dict[str, Tensor]]  # what model.safetensors holds of a model


def resumable(directory: Path) -> bool:
    """Whether there is a checkpoint to continue from."""
    return bool(sharded.found(directory)) or (directory / STATE).exists()


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep other runs out of a directory, which is made if need be, until the block or the process ends.

    Raises InputError when one is in it. The directory itself is locked, so that nothing is left behind.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        held = os.open(directory, os.O_RDONLY)
    except OSError as error:
        raise ResourceError(f"cannot write in {directory}: {error.strerror}") from None
    try:
        with contextlib.suppress(OSError):  # a file system that has no locks
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"expected {directory} to be this run's alone, but another process trains there; wait for it, or "
                    "give another --output"
                ) from None
        yield
    finally:
        os.close(held)


def read(directory: Path) -> tuple[Path, Mapping[str, Tensor]]:
    """What `write` wrote, by any team: where its state lies, and the whole tensors by name."""
    if shards := sharded.found(directory):
        return shards[-1], sharded.open(shards[-1])
    return directory / STATE, safetensors.open(directory / STATE)


def write(
    directory: Path,
    state: Mapping[str, Tensor],
    files: Mapping[str, str],
    *,
    model: nn.Module,
    export: Export,
    recipe: Recipe,
    team: Team,
) -> None:
    """Write a checkpoint in the Hugging Face layout: weights, texts by name, and the state that resuming needs.

    The process that leads writes it; of a state that is sharded, each its part. Everything is written beside and
    renamed when all of it is on disk; ResourceError when the disk is full, with the previous checkpoint intact.
    """
    partial = directory / ".partial"
    outdated = [*sharded.found(directory), *([] if team.whole else [directory / STATE])]
    try:
        if team.leads:
            shutil.rmtree(partial, ignore_errors=True)  # what a killed run left there
            partial.mkdir(parents=True)
            for name, text in files.items():
                (partial / name).write_text(text, encoding="utf-8")
            described = {"schema": "llmcli/training/1", "step": int(state["step"]), "recipe": asdict(recipe)}
            (partial / "training.json").write_text(json.dumps(described) + "\n", encoding="utf-8")
            if team.whole:
                safetensors.save(partial / STATE, state)
        if not team.whole:
            sharded.write(partial / team.gather(sharded.next_name(directory))[0], state)
        with team.plain(model) as plain:
            if team.leads:
                safetensors.save(partial / "model.safetensors", export(plain))
        if team.leads:
            for file in sorted(partial.iterdir()):
                os.replace(file, directory / file.name)
            for old in outdated:
                if old.exists():
                    os.replace(old, partial / old.name)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"no space left for a checkpoint in {directory}; the previous one is intact") from None
        raise ResourceError(f"cannot write a checkpoint in {directory}: {error.strerror}") from None
    finally:
        if team.leads:
            shutil.rmtree(partial, ignore_errors=True)
