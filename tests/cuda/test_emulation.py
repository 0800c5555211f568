"""The emulation itself: kernels that break a rule of CUDA must not pass for sound ones."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch

from tests.cuda import building

Run = Callable[..., tuple[str, torch.Tensor]]


@pytest.fixture(scope="session")
def library(request: pytest.FixtureRequest) -> ctypes.CDLL:
    """rule_breakers.cu; every function returns an error's text."""
    sources = [building.EMULATION / name for name in ("rule_breakers.cu", "torch_cuda.cpp")]
    found = ctypes.CDLL(str(building.shared_library(sources, request.config.cache.mkdir("cuda-emulation"))))  # type: ignore[union-attr]
    for name in ("run", "run_loads", "run_multiplies", "run_multiplies_bytes", "run_copies"):
        getattr(found, name).restype = ctypes.c_char_p
    return found


def at(x: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


@pytest.fixture(scope="session")
def run(library: ctypes.CDLL) -> Run:
    """`run(name, reversed)` starts a kernel of rule_breakers.cu: its error and what it wrote."""

    def start(name: str, reverse: int = 0) -> tuple[str, torch.Tensor]:
        library.emulation_reverse(reverse)
        y = torch.zeros(64)
        error = library.run(name.encode(), at(y))
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


@pytest.mark.parametrize("transposed", [0, 1])
def test_matrices_are_loaded_as_the_figure_of_ldmatrix_shows(library: ctypes.CDLL, transposed: int) -> None:
    """PTX ISA, "ldmatrix": thread 4 r + c of a warp holds elements 2 c and 2 c + 1 of row r of each 8 x 8 matrix."""
    x = torch.arange(256, dtype=torch.int16)
    y = torch.zeros(32, 4, 2, dtype=torch.int16)
    assert library.run_loads(at(x), at(y), transposed) == b"no error"
    matrices = x.view(4, 8, 8).mT if transposed else x.view(4, 8, 8)
    expected = matrices.reshape(4, 32, 2).transpose(0, 1)
    assert torch.equal(y, expected)
    assert y[9, 0].tolist() == ([18, 26] if transposed else [18, 19])  # by hand: row 2, elements 2 and 3


def test_fragments_of_a_product_lie_as_its_figures_show(library: ctypes.CDLL) -> None:
    """PTX ISA, "Matrix Fragments for mma.m16n8k16": quarters of 8 x 8, each as ldmatrix gives it; b by columns."""
    g = torch.Generator().manual_seed(0)
    a, b, c = (torch.randint(-8, 9, shape, generator=g).float() for shape in ((16, 16), (16, 8), (16, 8)))

    def quarters(x: torch.Tensor) -> torch.Tensor:
        """Blocks of 8 x 8, down the first column of blocks and then the next, as (32 lanes, blocks * 2)."""
        blocks = x.unflatten(0, (-1, 8)).unflatten(2, (-1, 8)).permute(2, 0, 1, 3)  # across, down, 8, 8
        return blocks.reshape(-1, 32, 2).transpose(0, 1).flatten(1)

    registers = [quarters(x).bfloat16().contiguous() for x in (a, b.T)]
    sums = quarters(c).contiguous()
    assert library.run_multiplies(at(registers[0]), at(registers[1]), at(sums)) == b"no error"
    assert torch.equal(sums, quarters(a @ b + c))


def test_fragments_of_a_product_of_bytes_lie_as_its_figures_show(library: ctypes.CDLL) -> None:
    """PTX ISA, "Matrix Fragments for mma.m16n8k32": blocks of 8 x 16 bytes, four of a row in each lane."""
    g = torch.Generator().manual_seed(0)
    a, b, c = (
        torch.randint(-128, 128, (16, 32), generator=g),
        torch.randint(256, (32, 8), generator=g),
        torch.ones(16, 8),
    )

    def blocks(x: torch.Tensor, width: int) -> torch.Tensor:
        """Blocks of 8 rows and `width`, down the first column of blocks and then the next, as (32 lanes, …)."""
        parts = x.unflatten(0, (-1, 8)).unflatten(2, (-1, width)).permute(2, 0, 1, 3)
        return parts.reshape(-1, 32, width // 4).transpose(0, 1).flatten(1).contiguous()

    sums = blocks(c.int(), 8)
    registers = blocks(a.to(torch.int8), 16), blocks(b.T.to(torch.uint8), 16)
    assert library.run_multiplies_bytes(at(registers[0]), at(registers[1]), at(sums)) == b"no error"
    assert torch.equal(sums, blocks((a @ b + 1).int(), 8))


@pytest.mark.parametrize("reverse", [0, 1])
def test_copies_arrive_when_they_are_waited_for(library: ctypes.CDLL, reverse: int) -> None:
    library.emulation_reverse(reverse)
    x, y = torch.arange(128.0), torch.zeros(128)
    expected = x.clone()
    expected[124:] = 0
    assert library.run_copies(at(x), at(y), 1) == b"no error"
    assert torch.equal(y, expected)
    assert library.run_copies(at(x), at(y), 0) == b"no error"
    assert torch.equal(y, expected) == bool(reverse), "without a wait the order must show"
