"""Where a model runs: the device of a flag, what stands against a GPU, and on one thread alone."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator

import torch

from llmcli.errors import InputError, ResourceError

OLDEST = (8, 0)  # compute capability of the oldest GPUs that the kernels are made for


def choose_device(name: str) -> torch.device:
    """The device of a flag; "auto" takes the first GPU, or the CPU where there is none that serves.

    Raises InputError for a name that torch does not know, ResourceError for a device that is not there or too old.
    """
    if name == "auto":
        return _automatic()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r} is not known; expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        index = device.index or 0
        if not index < torch.cuda.device_count():
            raise ResourceError(
                f"device {name} is not available; this machine has {torch.cuda.device_count()} CUDA devices"
            )
        if problem := unfit(index):
            raise ResourceError(f"device {name}: {problem}; use --device cpu")
    return device


def unfit(index: int) -> str | None:
    """Why a GPU cannot run the kernels; None where it can."""
    capability = torch.cuda.get_device_capability(index)
    if capability >= OLDEST:
        return None
    found, least = (".".join(map(str, pair)) for pair in (capability, OLDEST))
    return f"{torch.cuda.get_device_name(index)} has compute capability {found}, expected {least} or newer"


def _automatic() -> torch.device:
    problem = unfit(0) if torch.cuda.is_available() else _driver_without_gpu()
    if problem:
        _warn_once(f"warning: computing on the CPU: {problem}")
    return torch.device("cuda" if torch.cuda.is_available() and not problem else "cpu")


def _driver_without_gpu() -> str | None:
    """What a driver says that finds no GPU; None where torch is no CUDA build or there is no driver."""
    if not torch.backends.cuda.is_built():
        return None
    try:
        torch.cuda.init()
    except RuntimeError as error:
        text = str(error).strip().partition("\n")[0]
        return None if "no NVIDIA driver" in text else text
    return None


@functools.cache
def _warn_once(text: str) -> None:
    logging.getLogger(__name__).warning(text)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's operations of this thread on this thread alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
