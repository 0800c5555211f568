"""llmcli.ops.linear_cross_entropy: against float64 on every instruction set; the same bits for any thread count."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, library

from llmcli.ops import linear_cross_entropy
from tests.marks import kernels_only
from tests.ops.samples import DTYPES, normal
from tests.ops.tolerance import assert_gradient_within_budget, assert_within_budget

# rows, C, V: one of each, primes, several blocks of the vocabulary, several pieces of rows.
SHAPES = [(1, 1, 1), (7, 17, 31), (67, 24, 2100), (1030, 8, 5), (65, 5, 4099)]
LARGE = (66, 56, 300001)  # half of the vocabulary's logits are computed again for 16-bit gradients of weights


def make(rows: int, C: int, V: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """x (rows,C), weight (V,C), targets (rows,) of which a fifth does not count."""
    targets = torch.randint(V, (rows,), generator=torch.Generator().manual_seed(2))
    targets[3::5] = -100
    x, weight = normal(rows, C, dtype=dtype, size=2), normal(V, C, seed=1, dtype=dtype)
    return x.requires_grad_(), weight.requires_grad_(), targets


def peers(x: Tensor, weight: Tensor, targets: Tensor, smoothing: float, cap: float | None = None) -> tuple[Tensor, ...]:
    """Loss and gradients by torch, a tenth of the sum; of 16-bit logits in float32, which does not overflow."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    logits = (x @ weight.T).to(torch.promote_types(x.dtype, torch.float32))
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    loss = 0.1 * F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    return loss.detach(), *torch.autograd.grad(loss, (x, weight))


@pytest.mark.parametrize(("smoothing", "cap"), [(0.0, None), (0.1, None), (0.1, 2.0)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_close_to_float64(
    isa: str, shape: tuple[int, int, int], dtype: torch.dtype, smoothing: float, cap: float | None
) -> None:
    x, weight, targets = make(*shape, dtype)
    loss = linear_cross_entropy(x, weight, targets, scale=0.1, smoothing=smoothing, cap=cap)
    assert loss.dtype == torch.float32
    exact = peers(x.double(), weight.double(), targets, smoothing, cap)
    theirs = peers(x, weight, targets, smoothing, cap)
    assert_within_budget(loss.detach(), theirs[0], exact[0])
    for ours, peer, truth in zip(torch.autograd.grad(loss, (x, weight)), theirs[1:], exact[1:], strict=True):
        assert_gradient_within_budget(ours, peer, truth)


def test_a_large_gradient_of_weights_is_that_of_parts_of_the_rows(isa: str) -> None:
    x, weight, targets = make(*LARGE, torch.bfloat16)
    half = LARGE[2] // 2
    targets[:4] = torch.tensor([LARGE[2] - 1, half, half - 1, 0])

    def gradient(rows: slice) -> Tensor:
        loss = linear_cross_entropy(x[rows], weight, targets[rows], scale=64.0, smoothing=0.1, cap=2.0)
        return torch.autograd.grad(loss, weight)[0].float()

    parts = [gradient(slice(33)), gradient(slice(33, None))]
    error = (gradient(slice(None)) - parts[0] - parts[1]).norm(dim=1)
    assert (error <= 2**-7 * (parts[0].norm(dim=1) + parts[1].norm(dim=1))).all()


def test_rows_that_do_not_count_have_no_gradient(isa: str) -> None:
    x, weight, targets = make(67, 24, 2100)
    linear_cross_entropy(x, weight, targets).backward()
    assert x.grad is not None
    assert not x.grad[targets < 0].any()
    assert x.grad[targets >= 0].all()
    some = linear_cross_entropy(x[targets >= 0], weight, targets[targets >= 0])
    torch.testing.assert_close(some, linear_cross_entropy(x, weight, targets))
    assert linear_cross_entropy(x, weight, torch.full_like(targets, -100)) == 0


@kernels_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(300, 96, 9000), (40, 16, 300), (4200, 32, 65), LARGE])
def test_same_bits_for_any_number_of_threads(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x, weight, targets = make(*shape, dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            loss = linear_cross_entropy(x, weight, targets, smoothing=0.1)
            results.append((loss, *torch.autograd.grad(loss, (x, weight))))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(mine, its) for mine, its in zip(results[0], other, strict=True))


def test_only_what_is_wanted() -> None:
    x, weight, targets = make(9, 5, 11)
    whole = linear_cross_entropy(x, weight, targets)
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(x, weight, targets), whole)
    frozen = linear_cross_entropy(x, weight.detach(), targets)
    assert torch.equal(frozen, whole)
    alone = linear_cross_entropy(x.detach(), weight, targets)
    dx, dw = torch.autograd.grad(whole, (x, weight))
    assert torch.equal(torch.autograd.grad(frozen, x)[0], dx)
    assert torch.equal(torch.autograd.grad(alone, weight)[0], dw)


def test_a_loss_inside_a_graph_is_scaled() -> None:
    x, weight, targets = make(9, 5, 11)
    root = torch.autograd.grad(linear_cross_entropy(x, weight, targets), (x, weight))
    inside = torch.autograd.grad(2 * linear_cross_entropy(x, weight, targets), (x, weight))
    assert all(torch.equal(2 * a, b) for a, b in zip(root, inside, strict=True))


def test_leading_dimensions_and_strides() -> None:
    x, weight, targets = make(12, 6, 11)
    flat = linear_cross_entropy(x, weight, targets)
    for given in (
        (x.view(3, 4, 6), weight, targets.view(3, 4)),
        (x.T.contiguous().T, weight.T.contiguous().T, targets),
    ):
        torch.testing.assert_close(linear_cross_entropy(*given), flat)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_shows(isa: str, bad: float) -> None:
    x, weight, targets = make(9, 5, 37)
    with torch.no_grad():
        x[0, 0] = bad
    loss = linear_cross_entropy(x, weight, targets)
    assert not torch.isfinite(loss)


@pytest.mark.parametrize(("smoothing", "cap"), [(0.0, None), (0.2, None), (0.2, 1.5)])
def test_gradcheck(smoothing: float, cap: float | None) -> None:
    x, weight, targets = (t.double() if t.is_floating_point() else t for t in make(4, 3, 5))
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, w: linear_cross_entropy(x, w, targets, scale=0.5, smoothing=smoothing, cap=cap), (x, weight)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    x, weight, targets = make(9, 5, 11, dtype)
    for wanted in product((True, False), repeat=2):
        given = tuple(t.detach().requires_grad_(want) for t, want in zip((x, weight), wanted, strict=True))
        library.opcheck(torch.ops.llmcli.linear_cross_entropy.default, (*given, targets, 0.5, 0.1, 3.0, *wanted))


def test_errors_name_what_came() -> None:
    x, weight, targets = make(9, 5, 11)
    with pytest.raises(ValueError, match=r"got \(9, 5\), \(11, 5\), \(8,\)"):
        linear_cross_entropy(x, weight, targets[:8])
    with pytest.raises(ValueError, match=r"torch.bfloat16, torch.int64"):
        linear_cross_entropy(x, weight.bfloat16(), targets)
    with pytest.raises(RuntimeError, match="targets below 11, got 11"):
        linear_cross_entropy(x, weight, targets.clamp(min=11))
