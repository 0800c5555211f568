"""One step of a recurrent layer: everything between its two matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmcli.ops.registry import define


def lstm_cell(x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden state and cell after one step: x and h (B,4H), the gates' products i, f, g, o; c (B,H) → two (B,H).

    c is float32 under any dtype of x and h. Hochreiter and Schmidhuber 1997, with forget gates. Raises ValueError when
    shapes do not fit.
    """
    _check("lstm_cell", 4, x, h, c)
    return _lstm_cell(x, h.contiguous(), c.contiguous())  # type: ignore[no-any-return]


def gru_cell(x: Tensor, h: Tensor, state: Tensor) -> Tensor:
    """The state after one step: x and h (B,3H), the gates' products r, z, n; state (B,H) → (B,H).

    Cho et al. 2014, with the reset gate on the product of the state, as in torch. Raises ValueError when shapes do not
    fit.
    """
    _check("gru_cell", 3, x, h, state)
    return _gru_cell(x, h.contiguous(), state.contiguous())  # type: ignore[no-any-return]


def _check(name: str, gates: int, x: Tensor, h: Tensor, state: Tensor) -> None:
    if x.dim() != 2 or h.shape != x.shape or (*state.shape[:-1], gates * state.shape[-1]) != (*x.shape,):
        raise ValueError(
            f"{name}: expected x and h (B,{gates}H) and a state (B,H), "
            f"got {tuple(x.shape)}, {tuple(h.shape)}, {tuple(state.shape)}"
        )


def _lstm_gates(x: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
    i, f, g, o = (x.to(c.dtype) + h.to(c.dtype)).chunk(4, -1)
    return [i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()]


def _lstm_fallback(x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = _lstm_gates(x, h, c)
    cell = f * c + i * g
    return (o * cell.tanh()).to(x.dtype), cell


def _gru_gates(x: Tensor, h: Tensor) -> list[Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    (xr, xz, xn), (hr, hz, hn) = x.to(wide).chunk(3, -1), h.to(wide).chunk(3, -1)
    r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
    return [r, z, (xn + r * hn).tanh(), hn]


def _gru_fallback(x: Tensor, h: Tensor, state: Tensor) -> Tensor:
    _, z, n, _ = _gru_gates(x, h)
    return (n + z * (state.to(n.dtype) - n)).to(x.dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _lstm_backward(ctx: Any, dy: Tensor, dcell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, h, c = ctx.saved_tensors
    i, f, g, o = _lstm_gates(x, h, c)
    t = (f * c + i * g).tanh()
    dy = dy.to(c.dtype)
    dcell = dcell + dy * o * (1 - t * t)
    gates = (dcell * g * i * (1 - i), dcell * c * f * (1 - f), dcell * i * (1 - g * g), dy * t * o * (1 - o))
    d = torch.cat(gates, -1).to(x.dtype)
    return d, d, dcell * f


def _gru_backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, h, state = ctx.saved_tensors
    r, z, n, hn = _gru_gates(x, h)
    dy = dy.to(n.dtype)
    dn = dy * (1 - z) * (1 - n * n)
    dr, dz = dn * hn * r * (1 - r), dy * (state.to(n.dtype) - n) * z * (1 - z)
    dx, dh = torch.cat([dr, dz, dn], -1), torch.cat([dr, dz, dn * r], -1)
    return dx.to(x.dtype), dh.to(x.dtype), (dy * z).to(x.dtype)


_lstm_cell = define(
    "lstm_cell(Tensor x, Tensor h, Tensor c) -> (Tensor, Tensor)",
    _lstm_fallback,
    fake=lambda x, h, c: (x.new_empty(c.shape), c.new_empty(c.shape)),
    backward=_lstm_backward,
    save=_save,
)
_gru_cell = define(
    "gru_cell(Tensor x, Tensor h, Tensor state) -> Tensor",
    _gru_fallback,
    fake=lambda x, h, state: x.new_empty(state.shape),
    backward=_gru_backward,
    save=_save,
)
