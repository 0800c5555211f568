"""LSTM and GRU cells against torch's modules in float64, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, library

from llmcli.ops import gru_cell, lstm_cell
from tests.marks import kernels_only
from tests.ops.samples import DTYPES, normal
from tests.ops.tolerance import assert_within_budget

SHAPES = [(1, 1), (3, 17), (2, 64), (5, 33), (0, 4)]


def inputs(B: int, H: int, gates: int, dtype: torch.dtype, size: float = 1.0) -> tuple[Tensor, Tensor]:
    return normal(B, gates * H, dtype=dtype, size=size), normal(B, gates * H, seed=1, dtype=dtype, size=size)


def lstm_in(dtype: torch.dtype, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The equations as they stand in the torch.nn.LSTM page, rounded to dtype after every operation."""
    i, f, g, o = (x.to(dtype) + h.to(dtype)).chunk(4, -1)
    c = f.sigmoid() * c.to(dtype) + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_in(dtype: torch.dtype, x: Tensor, h: Tensor, state: Tensor) -> Tensor:
    """The same for torch.nn.GRU."""
    (xr, xz, xn), (hr, hz, hn) = x.to(dtype).chunk(3, -1), h.to(dtype).chunk(3, -1)
    r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
    return (1 - z) * (xn + r * hn).tanh() + z * state.to(dtype)


@pytest.mark.parametrize("size", [1.0, 30.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_close_to_float64(isa: str, shape: tuple[int, int], dtype: torch.dtype, size: float) -> None:
    x, h = inputs(*shape, 4, dtype, size)
    c = normal(*shape, seed=2)
    for ours, torchs, exact in zip(
        lstm_cell(x, h, c), lstm_in(dtype, x, h, c), lstm_in(torch.float64, x, h, c), strict=True
    ):
        assert_within_budget(ours, torchs.to(ours.dtype), exact)
    x, h = inputs(*shape, 3, dtype, size)
    state = normal(*shape, seed=2, dtype=dtype)
    assert_within_budget(gru_cell(x, h, state), gru_in(dtype, x, h, state), gru_in(torch.float64, x, h, state))


def test_equations_are_those_of_torchs_modules() -> None:
    x, state, c = normal(2, 5).double(), normal(2, 7, seed=1).double(), normal(2, 7, seed=2).double()
    lstm, gru = torch.nn.LSTMCell(5, 7).double(), torch.nn.GRUCell(5, 7).double()

    def gates(module: torch.nn.RNNCellBase) -> tuple[Tensor, Tensor]:
        return x @ module.weight_ih.T + module.bias_ih, state @ module.weight_hh.T + module.bias_hh

    for ours, torchs in zip(lstm_cell(*gates(lstm), c), lstm(x, (state, c)), strict=True):
        torch.testing.assert_close(ours, torchs)
    torch.testing.assert_close(gru_cell(*gates(gru), state), gru(x, state))


@kernels_only
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_depend_on_company_or_strides(isa: str, dtype: torch.dtype) -> None:
    x, h = inputs(9, 19, 4, dtype)
    c = normal(9, 19, seed=2)
    whole = lstm_cell(x, h, c)
    apart = torch.stack([x, x], 1)[:, 0]
    for a, b in zip(lstm_cell(apart, h, c), whole, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(lstm_cell(x[4:5], h[4:5], c[4:5]), whole, strict=True):
        assert torch.equal(a, b[4:5])
    gates, state = slice(0, 57), c.to(dtype)
    together = gru_cell(x[:, gates], h[:, gates], state)
    assert torch.equal(gru_cell(x[4:5, gates], h[4:5, gates], state[4:5]), together[4:5])


def test_gradcheck() -> None:
    x, h = (t.double().requires_grad_() for t in inputs(2, 5, 4, torch.float32))
    c = normal(2, 5, seed=2).double().requires_grad_()
    assert torch.autograd.gradcheck(lstm_cell, (x, h, c))
    x, h = (t.double().requires_grad_() for t in inputs(2, 5, 3, torch.float32))
    assert torch.autograd.gradcheck(gru_cell, (x, h, c))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    x, h = (t.requires_grad_() for t in inputs(2, 5, 4, dtype))
    library.opcheck(torch.ops.llmcli.lstm_cell.default, (x, h, normal(2, 5, seed=2)))
    x, h = (t.requires_grad_() for t in inputs(2, 5, 3, dtype))
    library.opcheck(torch.ops.llmcli.gru_cell.default, (x, h, normal(2, 5, seed=2, dtype=dtype)))


def test_shapes_that_do_not_fit() -> None:
    x, h = inputs(2, 5, 4, torch.float32)
    with pytest.raises(ValueError, match="lstm_cell: expected"):
        lstm_cell(x, h, normal(2, 6))
    with pytest.raises(ValueError, match="gru_cell: expected"):
        gru_cell(x, h, normal(2, 5))
