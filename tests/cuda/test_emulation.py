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
    for name in ("run", "run_loads", "run_multiplies", "run_multiplies_bytes", "run_copies", "run_box"):
        getattr(found, name).restype = ctypes.c_char_p
    return found


def at(x: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


@pytest.fixture(scope="session")
def run(library: ctypes.CDLL) -> Run:
    """`run(name, reversed)` starts a kernel of rule_breakers.cu: its error and what it wrote."""

    def start(name: str, reverse: int = 0) -> tuple[str, torch.Tensor]:
        library.emulation_machine(reverse, 8)
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
    library.emulation_machine(reverse, 8)
    x, y = torch.arange(128.0), torch.zeros(128)
    expected = x.clone()
    expected[124:] = 0
    assert library.run_copies(at(x), at(y), 1) == b"no error"
    assert torch.equal(y, expected)
    assert library.run_copies(at(x), at(y), 0) == b"no error"
    assert torch.equal(y, expected) == bool(reverse), "without a wait the order must show"


# Of a matrix's descriptor (PTX ISA, "Matrix Descriptor Format"): swizzled by 128 bytes, eight rows 1024 bytes from the
# next, the other stride unused.
SWIZZLED = 1 << 62 | 1024 // 16 << 32 | 1 << 16


def run_box(library: ctypes.CDLL, reverse: int, fields: int = SWIZZLED, fault: str = "") -> tuple[str, bool]:
    """The error of products with a box of 128 rows, of which the tensor has 100, and whether they are right."""
    library.emulation_machine(reverse, 9)
    g = torch.Generator().manual_seed(0)
    x, p = (torch.randint(-8, 9, shape, generator=g).bfloat16() for shape in ((100, 64), (64, 16)))
    fragments = p.view(4, 2, 8, 2, 4, 2).permute(0, 2, 4, 3, 1, 5).contiguous()  # warp, lane / 4, lane % 4, register
    y = torch.full((128, 96), torch.nan)
    error = library.run_box(at(x), at(fragments), at(y), ctypes.c_uint64(fields), fault.encode())

    def matrix(held: torch.Tensor) -> torch.Tensor:
        """From what threads hold, (warp, lane / 4, lane % 4, column / 8, row / 8, 2), to rows."""
        return held.view(4, 8, 4, -1, 2, 2).permute(0, 4, 1, 3, 2, 5).reshape(64, -1)

    box = torch.cat((x, torch.zeros(28, 64))).float()
    right = torch.equal(matrix(y[:, :64]), box[:64] @ box.T)
    return error.decode(), right and torch.equal(matrix(y[:, 64:]), p.float() @ box[:16])


@pytest.mark.parametrize("reverse", [0, 1])
def test_boxes_lie_where_descriptors_look_for_them(library: ctypes.CDLL, reverse: int) -> None:
    assert run_box(library, reverse) == ("no error", True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (SWIZZLED ^ 1 << 62, "a matrix's descriptor: expected one that is swizzled"),
        (SWIZZLED ^ 3 << 62, "a matrix's descriptor: expected one that is swizzled"),
        (SWIZZLED ^ (1024 ^ 512) // 16 << 32, "no error"),
        (SWIZZLED ^ (1024 ^ 65536) // 16 << 32, "a matrix's descriptor: an address beyond shared memory"),
    ],
)
def test_a_wrong_descriptor_shows(library: ctypes.CDLL, fields: int, message: str) -> None:
    error, right = run_box(library, 1, fields)
    assert error.startswith(message)
    assert not right


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no wait", "no error"),
        ("wrong phase", "no error"),
        ("no end", "a thread ends before its products are there"),
        ("no begin", "multiply_rows: expected products_begin() before"),
    ],
)
def test_what_is_not_waited_for_shows(library: ctypes.CDLL, fault: str, message: str) -> None:
    error, right = run_box(library, 0, fault=fault)
    assert error.startswith(message)
    assert not right
