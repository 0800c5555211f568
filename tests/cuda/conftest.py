"""The operators' tests on the CUDA kernels: on a GPU where there is one, else on a CPU that emulates it."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, library

from tests.cuda import building

# The order of threads, and of copies (see emulation/fibers.h), and the first figure of the GPU's compute capability.
MACHINES = ((0, 8), (1, 8))
SPECIAL = {"attention": ((0, 9), (1, 9))}  # more for operators whose kernel is another there
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Compiling and emulating the kernels takes minutes."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def emulation(request: pytest.FixtureRequest) -> ctypes.CDLL | None:
    """The CUDA kernels compiled for the emulation; None where there is a GPU."""
    if torch.cuda.is_available():
        return None
    folder: Path = request.config.cache.mkdir("cuda-emulation")  # type: ignore[union-attr]
    csrc = building.ROOT / "csrc"
    sources = [*csrc.glob("cuda/*.cu"), *csrc.glob("ops/*_cuda.cpp"), building.EMULATION / "torch_cuda.cpp"]
    path = building.shared_library(sorted(sources), folder)
    torch.ops.load_library(str(path))
    return ctypes.CDLL(str(path))


@pytest.fixture(scope="session")
def cuda_kernels(emulation: ctypes.CDLL | None) -> Callable[[str], Callable[..., Any]]:
    """From an operator's name to a function of CPU tensors that its CUDA kernel serves."""
    if emulation is None:
        return on_gpu
    machine = emulation.emulation_machine
    return lambda name: emulated(name, machine)


def emulated(name: str, machine: Callable[[int, int], None]) -> Callable[..., Any]:
    """The operator's CUDA binding called with CPU tensors, on machines that must give the same bits."""
    operator = getattr(torch.ops.llmcli, name).default
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)

    def call(*args: Any, **kwargs: Any) -> Any:
        results = []
        for order, capability in (*MACHINES, *SPECIAL.get(name, ())):
            machine(order, capability)
            results.append(operator.redispatch(cuda, *args, **kwargs))
        for other in results[1:]:
            for one, two in zip(tensors(results[0]), tensors(other), strict=True):
                assert torch.equal(one.view(torch.uint8), two.view(torch.uint8)), "the machine changes the result"
        return results[0]

    return call


def on_gpu(name: str) -> Callable[..., Any]:
    """The operator on copies of its arguments on the GPU; what it writes into is copied back."""
    operator = getattr(torch.ops.llmcli, name).default

    def call(*args: Any, **kwargs: Any) -> Any:
        there = [x.cuda() if isinstance(x, Tensor) else x for x in args]
        written = {key: x.cuda() for key, x in kwargs.items()}
        result = operator(*there, **written)
        for key, x in written.items():
            kwargs[key].copy_(x)
        if isinstance(result, tuple):
            return tuple(x.cpu() for x in result)
        return None if result is None else result.cpu()

    return call


def tensors(result: Any) -> list[Tensor]:
    """The tensors that an operator returned, in rows of bytes."""
    found = result if isinstance(result, tuple) else () if result is None else (result,)
    return [x.contiguous().flatten() for x in found]


@pytest.fixture
def isa(cuda_kernels: Callable[[str], Callable[..., Any]]) -> Iterator[str]:
    """In place of the CPU's instruction sets: operators that have a CUDA kernel are served by it."""
    served_by_cuda = library.Library("llmcli", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel is put over another is the point
        for name in served():
            served_by_cuda.impl(name, cuda_kernels(name), "CPU")
    yield "cuda"
    served_by_cuda._destroy()


def served() -> list[str]:
    """Operators that have a CUDA kernel."""
    from llmcli.ops import registry

    return [operator for operator in registry._NAMES if registry._has_kernel(operator, "cuda")]
