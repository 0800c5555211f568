"""Products of matrices for training, in any layout: packing weights that change with every step does not pay."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmcli.ops.registry import define

MANY_ROWS = 32  # fewer do not pay for bringing the weight into the kernel's order in each product


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The product of matrices, each of any strides: a (M,K), b (K,N) → (M,N).

    In float32 an element's order of summation depends on K alone: the same bits for any rows beside it and any number
    of threads. 16-bit products are torch's.
    """
    return _matmul(a, b)  # type: ignore[no-any-return]


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias for a weight as it lies: x (..., K), weight (N, K) → (..., N).

    float32 on a CPU is our kernel's where there are many rows; all else is torch's.
    """
    flat = x.reshape(-1, x.shape[-1])
    if x.dtype != torch.float32 or x.device.type != "cpu" or len(flat) < MANY_ROWS:
        return F.linear(x, weight, bias)
    y = matmul(flat, weight.t()).view(*x.shape[:-1], len(weight))
    return y if bias is None else y + bias


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    a, b = ctx.saved_tensors
    needs_a, needs_b = ctx.needs_input_grad
    # The gradient of a weight comes in the weight's own layout: its rows are those of b transposed.
    db = matmul(grad.t(), a).t() if needs_b else None
    return matmul(grad, b.t()) if needs_a else None, db


_matmul = define(
    "matmul(Tensor a, Tensor b) -> Tensor",
    lambda a, b: torch.mm(a, b),
    fake=lambda a, b: a.new_empty(a.shape[0], b.shape[1]),
    backward=_backward,
    save=_save,
    devices=("cpu",),
)
