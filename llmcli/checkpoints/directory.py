"""A model's directory: where one may be written, and writing it whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from llmcli.checkpoints import gguf, safetensors, tensorflow
from llmcli.errors import InputError, ResourceError

GENERATION = "generation_config.json"


def of(path: Path) -> Path:
    """The directory of a checkpoint that may be a single file."""
    return path if path.is_dir() else path.parent


def weight_files(path: Path) -> list[Path]:
    """The files that hold a checkpoint's weights, in order."""
    if gguf.recognised(path):
        return [path]
    return tensorflow.files(path) if tensorflow.recognised(path) else safetensors.files(path)


def advice(path: Path) -> Path | None:
    """The advice on generating beside a checkpoint; a GGUF file has none, whatever lies beside it."""
    file = of(path) / GENERATION
    return file if file.exists() and not gguf.recognised(path) else None


def write_side_files(to: Path, texts: Mapping[str, str], source: Path) -> None:
    """Write the texts that stand beside the weights, by file name, and the source's advice on generating."""
    for name, text in texts.items():
        (to / name).write_text(text, encoding="utf-8")
    if (file := advice(source)) is not None:
        shutil.copyfile(file, to / GENERATION)


def check_output(output: Path, source: Path) -> None:
    """Raises InputError when the output is no place for a model, or is the model that it is made from."""
    if output.exists() and not output.is_dir():
        raise InputError(f"expected a directory for the model, got the file '{output}'")
    if output.exists() and output.resolve() == of(source).resolve():
        raise InputError(f"'{output}' is the model that the new one is made from; give another directory")


def check_file(output: Path, source: Path) -> None:
    """Raises InputError when the output is no place for a model in one file, or is the one that it is made from."""
    if output.is_dir():
        raise InputError(f"expected a file for the model, got the directory '{output}'; name one inside it")
    if not output.parent.is_dir():
        raise InputError(f"cannot write '{output}': '{output.parent}' is no directory")
    if output.exists() and source.exists() and output.samefile(source):
        raise InputError(f"'{output}' is the model that the new one is made from; give another file")


def size(path: Path) -> int:
    """Bytes of a checkpoint's weight files."""
    return sum(file.stat().st_size for file in weight_files(path))


@contextlib.contextmanager
def writing(output: Path) -> Iterator[Path]:
    """A directory beside `output` to write into, moved there when the block ends, and gone when it fails.

    Raises ResourceError when the disk is full, InputError when the place cannot be written.
    """
    partial = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        partial.mkdir(parents=True)
        yield partial
        if not output.exists():
            partial.rename(output)
        else:
            for file in sorted(partial.iterdir()):
                os.replace(file, output / file.name)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"no space left for a model in {output}; free some space") from None
        raise InputError(f"cannot write a model in {output}: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
