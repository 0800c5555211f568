"""llmcli.ops.softcap against float64, on every instruction set; the bits of an element alone."""

from __future__ import annotations

import pytest
import torch
from torch import library

from llmcli.ops import registry, softcap
from tests.marks import kernels_only
from tests.ops.samples import DTYPES, SHAPES, normal
from tests.ops.tolerance import assert_gradient_within_budget, assert_within_budget


@pytest.mark.parametrize("cap", [0.5, 30.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_close_to_float64(isa: str, shape: tuple[int, ...], dtype: torch.dtype, cap: float) -> None:
    x, grad = normal(*shape, dtype=dtype, size=3), normal(*shape, seed=1, dtype=dtype)

    def peer(x: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.detach().requires_grad_()
        y = cap * torch.tanh(x / cap)
        return y.detach(), torch.autograd.grad(y, x, grad)[0]

    leaf = x.clone().requires_grad_()
    ours = softcap(leaf, cap)
    exact, torchs = peer(x.double(), grad.double()), peer(x, grad)
    assert_within_budget(ours.detach(), torchs[0], exact[0])
    if x.numel():
        assert_gradient_within_budget(torch.autograd.grad(ours, leaf, grad)[0], torchs[1], exact[1])


@kernels_only
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_element_has_its_bits_wherever_it_stands(isa: str, dtype: torch.dtype) -> None:
    x = normal(7, 333, dtype=dtype, size=20)
    whole = softcap(x, 15.0)
    assert torch.equal(softcap(x[3:4], 15.0), whole[3:4])
    assert torch.equal(softcap(x[:, 5:].contiguous(), 15.0), whole[:, 5:])
    assert torch.equal(softcap(x.T, 15.0), whole.T)
    special = softcap(torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0]), 15.0)
    torch.testing.assert_close(special, torch.tensor([15.0, -15.0, torch.nan, 0.0]), equal_nan=True)


@kernels_only
def test_tanh_within_two_ulp(isa: str) -> None:
    assert registry.kernels is not None
    x = torch.cat([torch.linspace(-12, 12, 1_000_003), torch.logspace(-20, 0, 100_000)])
    exact, y = x.double().tanh(), x.clone()
    registry.kernels.elementary("tanh", y.numpy())
    ulp = torch.exp2(torch.floor(torch.log2(exact.abs().clamp(min=1e-30))) - 23)
    assert ((y.double() - exact).abs() / ulp).max() <= 2.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_gradcheck_and_errors(dtype: torch.dtype) -> None:
    x = normal(3, 7, dtype=dtype)
    library.opcheck(torch.ops.llmcli.softcap.default, (x.requires_grad_(), 2.0))
    library.opcheck(torch.ops.llmcli.softcap_backward.default, (x.detach(), x.detach(), 2.0))
    assert torch.autograd.gradcheck(lambda x: softcap(x, 2.0), x.detach().double().requires_grad_())
    with pytest.raises(ValueError, match="a cap above 0, got 0"):
        softcap(x, 0.0)
