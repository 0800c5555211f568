"""GELU and SiLU-gate, with the biases of the linear layers before them fused in."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from llmcli.ops.registry import define


def gelu(x: Tensor, bias: Tensor | None = None, *, approximate: str = "none") -> Tensor:
    """GELU of x + bias: x (..., C), bias (C,) → (..., C); approximate is "none" (erf) or "tanh".

    The bias may be float32 under a narrower x. Raises ValueError when shapes, dtypes or the name do not fit.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"gelu: expected approximate 'none' or 'tanh', got {approximate!r}")
    if bias is not None:
        _check_bias(x, bias)
    return _gelu(x, bias, approximate == "tanh")  # type: ignore[no-any-return]


def silu_gate(gate: Tensor, up: Tensor, gate_bias: Tensor | None = None, up_bias: Tensor | None = None) -> Tensor:
    """silu(gate + gate_bias) * (up + up_bias): gate and up (..., C), biases (C,), both or none → (..., C).

    gate and up may be the halves of one projection, uncopied. Raises ValueError when shapes or dtypes do not fit.
    """
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(
            f"silu_gate: expected gate and up alike, got {tuple(gate.shape)} {gate.dtype} "
            f"and {tuple(up.shape)} {up.dtype}"
        )
    if gate_bias is not None and up_bias is not None:
        _check_bias(gate, gate_bias)
        _check_bias(gate, up_bias)
    elif gate_bias is not None or up_bias is not None:
        raise ValueError("silu_gate: expected both biases or none, got one")
    return _silu_gate(gate, up, gate_bias, up_bias)  # type: ignore[no-any-return]


def _check_bias(x: Tensor, bias: Tensor) -> None:
    if x.shape[-1:] != bias.shape or bias.dtype not in (x.dtype, torch.float32):
        raise ValueError(
            f"activation: expected bias ({x.shape[-1]},) of float32 or {x.dtype}, "
            f"got {tuple(bias.shape)} of {bias.dtype}"
        )


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    z = x.to(torch.promote_types(x.dtype, torch.float32))
    return z if bias is None else z + bias


def _sum_rows(d: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
    """The gradient of a bias; empty where there is none."""
    return x.new_empty(0) if bias is None else d.sum(tuple(range(d.dim() - 1))).to(bias.dtype)


def _fallback_gelu(x: Tensor, bias: Tensor | None, tanh: bool) -> Tensor:
    return torch.nn.functional.gelu(_biased(x, bias), approximate="tanh" if tanh else "none").to(x.dtype).contiguous()


def _fallback_gelu_backward(grad: Tensor, x: Tensor, bias: Tensor | None, tanh: bool) -> tuple[Tensor, Tensor]:
    z = _biased(x, bias)
    if tanh:
        c = math.sqrt(2 / math.pi)
        t = torch.tanh(c * (z + 0.044715 * z**3))
        slope = 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * c * (1 + 3 * 0.044715 * z * z)
    else:
        slope = 0.5 * torch.erfc(-z / math.sqrt(2)) + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    d = grad.to(z.dtype) * slope
    return d.to(x.dtype).contiguous(), _sum_rows(d, x, bias)


def _fallback_silu_gate(gate: Tensor, up: Tensor, gate_bias: Tensor | None, up_bias: Tensor | None) -> Tensor:
    y = torch.nn.functional.silu(_biased(gate, gate_bias)) * _biased(up, up_bias)
    return y.to(gate.dtype).contiguous()


def _fallback_silu_gate_backward(
    grad: Tensor, gate: Tensor, up: Tensor, gate_bias: Tensor | None, up_bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z, u = _biased(gate, gate_bias), _biased(up, up_bias)
    g, p = grad.to(z.dtype), torch.sigmoid(z)
    dz, du = g * u * p * (1 + z * (1 - p)), g * z * p
    dgate, dup = dz.to(gate.dtype).contiguous(), du.to(up.dtype).contiguous()
    return dgate, dup, _sum_rows(dz, gate, gate_bias), _sum_rows(du, up, up_bias)


def _fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_bias(x: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(0) if bias is None else torch.empty_like(bias)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, ctx.tanh = inputs
    ctx.save_for_backward(x, bias)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, bias = ctx.saved_tensors
    dx, dbias = gelu_backward(grad, x, bias, ctx.tanh)
    return dx, None if bias is None else dbias, None


def _save_gate(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_gate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: activation checkpointing gives them only once
    dgate, dup, dgate_bias, dup_bias = _silu_gate_backward(grad, *saved)
    if saved[2] is None:
        return dgate, dup, None, None
    return dgate, dup, dgate_bias, dup_bias


gelu_backward = define(
    "gelu_backward(Tensor grad, Tensor x, Tensor? bias, bool tanh) -> (Tensor, Tensor)",
    _fallback_gelu_backward,
    fake=lambda grad, x, bias, tanh: (_fake(x), _fake_bias(x, bias)),
)
_gelu = define(
    "gelu(Tensor x, Tensor? bias, bool tanh) -> Tensor",
    _fallback_gelu,
    fake=_fake,
    backward=_backward,
    save=_save,
)
_silu_gate_backward = define(
    "silu_gate_backward(Tensor grad, Tensor gate, Tensor up, Tensor? gate_bias, Tensor? up_bias)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _fallback_silu_gate_backward,
    fake=lambda grad, gate, up, gate_bias, up_bias: (
        _fake(gate),
        _fake(up),
        _fake_bias(gate, gate_bias),
        _fake_bias(gate, up_bias),
    ),
)
_silu_gate = define(
    "silu_gate(Tensor gate, Tensor up, Tensor? gate_bias, Tensor? up_bias) -> Tensor",
    _fallback_silu_gate,
    fake=_fake,
    backward=_backward_gate,
    save=_save_gate,
)
