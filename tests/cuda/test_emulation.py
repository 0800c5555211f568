"""The emulation itself: kernels that break a rule of CUDA must not pass for sound ones."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch

from tests.cuda import building

Run = Callable[..., tuple[str, torch.Tensor]]


@pytest.fixture(scope="session")
def run(request: pytest.FixtureRequest) -> Run:
    """`run(name, reversed)` starts a kernel of rule_breakers.cu: its error and what it wrote."""
    sources = [building.EMULATION / name for name in ("rule_breakers.cu", "torch_cuda.cpp")]
    library = ctypes.CDLL(str(building.library(sources, request.config.cache.mkdir("cuda-emulation"))))  # type: ignore[union-attr]
    library.run.restype = ctypes.c_char_p

    def start(name: str, reverse: int = 0) -> tuple[str, torch.Tensor]:
        library.emulation_reverse(reverse)
        y = torch.zeros(64)
        error = library.run(name.encode(), ctypes.cast(y.data_ptr(), ctypes.POINTER(ctypes.c_float)))
        return error.decode(), y

    return start


@pytest.mark.parametrize("reverse", [0, 1])
def test_a_sound_kernel_gives_its_result_in_either_order(run: Run, reverse: int) -> None:
    error, y = run("keeps the rules", reverse)
    assert error == "no error"
    assert torch.equal(y, torch.arange(63.0, -1.0, -1.0))


def test_a_missing_barrier_shows_in_the_order_of_threads(run: Run) -> None:
    one, other = (run("no barrier", order)[1] for order in (0, 1))
    assert one[:32].isnan().all(), "what was not written yet must not be a number"
    assert not torch.equal(one[32:], other[32:])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("past shared memory", "memory access out of bounds (thread 0 of block 0, 0, 0)"),
        ("nowhere", "memory access out of bounds"),
        ("half a block", "thread 0 waits for ever at a barrier of the block"),
        ("half a warp", "thread 0 waits for ever at shuffle_xor"),
        ("two instructions", "lanes of a warp diverge: one is at sync_warp, another at shuffle_xor"),
        ("too many threads", "invalid configuration argument"),
        ("too much shared memory", "invalid argument"),
    ],
)
def test_what_breaks_a_rule_is_an_error(run: Run, name: str, message: str) -> None:
    assert run(name)[0].startswith(message)
    assert run("keeps the rules")[0] == "no error", "the machine runs on"
