"""One file of weights: writing it whole or not at all, and handing memory back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from llmcli.errors import ResourceError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file beside its place to write into, flushed to the disk and renamed when the block ends, gone when it fails.

    Raises ResourceError when the disk is full or the place cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}: nothing was changed") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()


def trim() -> None:
    """Hand back what freed copies of tensors leave behind, which glibc keeps."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
