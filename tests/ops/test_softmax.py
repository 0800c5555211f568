"""llmcli.ops.softmax against float64, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, library

from llmcli.ops import registry, softmax
from tests import reference
from tests.marks import kernels_only
from tests.ops.samples import DTYPES, SHAPES, normal
from tests.ops.tolerance import assert_within_budget

INF, NAN = float("inf"), float("nan")


def torchs(x: Tensor, scale: float = 1.0, mask: Tensor | None = None, log: bool = False) -> Tensor:
    """The same with torch's operators."""
    s = x * scale
    if mask is not None:
        s = s.masked_fill(~mask, -INF) if mask.dtype == torch.bool else s + mask
    return (torch.log_softmax if log else torch.softmax)(s, -1)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_close_to_float64(isa: str, shape: tuple[int, ...], dtype: torch.dtype, log: bool, scale: float) -> None:
    x = normal(*shape, dtype=dtype, size=4)
    assert_within_budget(
        softmax(x, scale=scale, log=log), torchs(x, scale, None, log), reference.softmax(x, scale, None, log)
    )


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["bool", "additive"])
@pytest.mark.parametrize("mask_shape", [(2, 3, 5, 37), (2, 1, 1, 37), (5, 37), (1, 1, 5, 37), (37,), (2, 1, 5, 1)])
def test_mask_broadcasts(isa: str, mask_shape: tuple[int, ...], kind: str, dtype: torch.dtype, log: bool) -> None:
    x = normal(2, 3, 5, 37, dtype=dtype)
    mask = normal(*mask_shape, seed=1, dtype=dtype)
    if kind == "bool":
        mask = mask > -0.3
    exact = reference.softmax(x, 0.7, mask.expand(x.shape), log)
    theirs = torchs(x, 0.7, mask, log)
    if kind == "bool":
        hidden = (~mask).expand(x.shape).all(-1, keepdim=True)
        theirs = theirs.masked_fill(hidden, -INF if log else 0.0)
    assert_within_budget(softmax(x, scale=0.7, mask=mask, log=log), theirs, exact)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [3, 16, 37])
def test_hidden_rows_infinities_and_nan(isa: str, size: int, dtype: torch.dtype, log: bool) -> None:
    x = normal(6, size, dtype=dtype)
    x[0] = -INF
    x[1, 0] = -INF
    x[2, size - 1] = INF
    x[3, 1] = NAN
    x[4] = -INF
    x[4, size // 2] = NAN
    x[5, 0], x[5, 1] = 30000.0, -30000.0
    y = softmax(x, log=log)
    assert torch.equal(y[0], torch.full_like(y[0], -INF if log else 0.0))
    assert y[2:5].isnan().all()
    rest = [1, 5]
    assert_within_budget(y[rest], torchs(x[rest], log=log), reference.softmax(x[rest], log=log))
    hidden = softmax(x[5:6], mask=torch.zeros(1, size, dtype=torch.bool), log=log)
    assert torch.equal(hidden, torch.full_like(hidden, -INF if log else 0.0))


@kernels_only
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_change_nothing(isa: str, dtype: torch.dtype, log: bool) -> None:
    wide = normal(3, 4, 5, 74, dtype=dtype)
    for x in (wide[..., :37], wide[:, ::2, :, 37:], wide.transpose(0, 2), wide[..., ::2], wide[:, :, 0].unsqueeze(1)):
        expected = softmax(x.contiguous(), log=log)
        assert torch.equal(softmax(x, log=log), expected)
        mask = normal(*x.shape, seed=1).gt(0)
        assert torch.equal(softmax(x, mask=mask), softmax(x.contiguous(), mask=mask))
        out = torch.full((*x.shape[:-1], 2 * x.shape[-1]), 7.0, dtype=dtype)
        half = out[..., : x.shape[-1]]
        assert softmax(x, log=log, out=half) is half
        assert torch.equal(half, expected)
        assert (out[..., x.shape[-1] :] == 7).all()


@kernels_only
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_threads_batch_or_position(isa: str, dtype: torch.dtype) -> None:
    x = normal(301, 517, dtype=dtype, size=3)
    mask = normal(301, 517, seed=1) > 0
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2):
            torch.set_num_threads(n)
            results.append((softmax(x), softmax(x, mask=mask, scale=0.3), softmax(x, log=True)))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
    for row in (0, 7, 300):
        assert torch.equal(softmax(x[row]), results[0][0][row])
        assert torch.equal(softmax(x[row:], mask=mask[row:], scale=0.3)[0], results[0][1][row])


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (2, 3, 65), (0, 5)])
def test_backward_close_to_float64(isa: str, shape: tuple[int, ...], dtype: torch.dtype, log: bool) -> None:
    x = normal(*shape, dtype=dtype).requires_grad_()
    grad = normal(*shape, seed=1, dtype=dtype)
    exact = x.detach().double().requires_grad_()
    (ours,) = torch.autograd.grad(softmax(x, scale=0.5, log=log), x, grad)
    (theirs,) = torch.autograd.grad(torchs(x, 0.5, None, log), x, grad)
    (expected,) = torch.autograd.grad(reference.softmax(exact, 0.5, None, log), exact, grad.double())
    assert_within_budget(ours, theirs, expected)


@pytest.mark.parametrize("log", [False, True])
def test_hidden_elements_get_no_gradient(isa: str, log: bool) -> None:
    x = normal(4, 19).requires_grad_()
    mask = normal(4, 19, seed=1) > 0
    mask[2] = False
    softmax(x, mask=mask, log=log).backward(normal(4, 19, seed=2))
    assert x.grad is not None
    assert (x.grad[~mask] == 0).all()
    assert (x.grad[mask] != 0).all()


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(log: bool, masked: bool) -> None:
    x = normal(3, 5).double().requires_grad_()
    mask = torch.ones(3, 5, dtype=torch.bool)
    if masked:
        mask[0, 2] = mask[1, 0] = False
        mask[2] = False

    def visible(x: Tensor) -> Tensor:
        return softmax(x, scale=0.7, mask=mask, log=log).masked_fill(~mask, 0.0)

    assert torch.autograd.gradcheck(visible, (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    x = normal(3, 4, 7, dtype=dtype).transpose(0, 1).requires_grad_()
    mask = (normal(4, 3, 7, seed=1) > 0).logical_or(torch.arange(7) == 0)
    library.opcheck(torch.ops.llmcli.softmax.default, (x, None, 0.5, False))
    library.opcheck(torch.ops.llmcli.softmax.default, (x, mask, 0.5, False))
    library.opcheck(torch.ops.llmcli.softmax_backward.default, (x.detach(), x.detach(), 0.5, True))
    out = torch.empty(4, 3, 7, dtype=dtype)
    library.opcheck(torch.ops.llmcli.softmax_out.default, (x.detach(), mask, 1.0, False), {"out": out})


def test_errors_name_what_came() -> None:
    x = normal(2, 3)
    with pytest.raises(ValueError, match=r"mask of bool or torch.float32, got torch.int64"):
        softmax(x, mask=torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"expected out \(2, 3\)"):
        softmax(x, out=torch.empty(3, 2))


@kernels_only
class TestExponential:
    """White box: the vector functions of every instruction set over their whole range."""

    def test_exp_within_two_ulp(self, isa: str) -> None:
        x = torch.cat([torch.linspace(-87.0, 0.0, 2_000_003), -normal(100_000).abs()])
        exact = x.double().exp()
        y = x.clone()
        registry.kernels.elementary("exp", y.numpy())
        ulp = torch.exp2(torch.floor(torch.log2(exact)) - 23)
        assert ((y.double() - exact).abs() / ulp).max() <= 2.0

    def test_short_exp_is_enough_for_sixteen_bits(self, isa: str) -> None:
        x = torch.linspace(-87.0, 0.0, 1_000_003)
        y = x.clone()
        registry.kernels.elementary("exp_short", y.numpy())
        assert ((y.double() - x.double().exp()).abs() / x.double().exp()).max() <= 2.0**-17

    @pytest.mark.parametrize("name", ["exp", "exp_short"])
    def test_special_values(self, isa: str, name: str) -> None:
        x = torch.tensor([-INF, -1e30, -104.0, -87.1, 0.0, -0.0, NAN])
        registry.kernels.elementary(name, x.numpy())
        expected = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, NAN])
        tolerance = 0.0 if name == "exp" else 2e-6
        torch.testing.assert_close(x, expected, rtol=tolerance, atol=0.0, equal_nan=True)

    def test_half_erfc(self, isa: str) -> None:
        x = torch.linspace(0, 9, 1_000_003)
        exact = torch.erfc(x.double()) / 2
        y = x.clone()
        registry.kernels.elementary("half_erfc", y.numpy())
        assert (y.double() - exact).abs().max() <= 6e-8
        assert ((y.double() - exact).abs() / exact)[x < 4].max() <= 1e-4
