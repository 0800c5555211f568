"""Layer norm and RMS norm against float64, on every instruction set."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, library

from llmcli.ops import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from tests import reference
from tests.marks import kernels_only
from tests.ops.samples import DTYPES, SHAPES, normal
from tests.ops.tolerance import assert_within_budget

INF, NAN = float("inf"), float("nan")


def theirs(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, rms: bool) -> Tensor:
    """The same with torch's operators; float32 weights are rounded to x's dtype, which torch insists on."""
    w, b = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if x.numel() == 0:
        return torch.empty_like(x)
    return F.rms_norm(x, w.shape, w, eps) if rms else F.layer_norm(x, w.shape, w, b, eps)


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("wide", [False, True], ids=["same", "float32 weights"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_close_to_float64(isa: str, shape: tuple[int, ...], dtype: torch.dtype, wide: bool, rms: bool) -> None:
    C = shape[-1]
    x = normal(*shape, dtype=dtype, size=3)
    weight, bias = normal(C, seed=1, dtype=dtype), normal(C, seed=2, dtype=dtype)
    if wide:
        weight, bias = weight.float(), bias.float()
    if rms:
        assert_within_budget(
            rms_norm(x, weight), theirs(x, weight, None, 1e-6, True), reference.norm(x, weight, None, 1e-6, True)
        )
        return
    for b in (bias, None):
        assert_within_budget(layer_norm(x, weight, b), theirs(x, weight, b, 1e-5, False), reference.norm(x, weight, b))


@kernels_only
@pytest.mark.parametrize("C", [64, 1023])
def test_large_mean_costs_no_precision(isa: str, C: int) -> None:
    x = normal(4, C) + 3e4
    ours = layer_norm(x, torch.ones(C), torch.zeros(C))
    error = (ours.double() - reference.norm(x, torch.ones(C))).abs().max().item()
    assert error < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_constant_rows_infinities_and_nan(isa: str, dtype: torch.dtype) -> None:
    x = normal(4, 37, dtype=dtype)
    x[0] = 3.0
    x[1, 5] = INF
    x[2, 36] = NAN
    ones, bias = torch.ones(37, dtype=dtype), normal(37, seed=1, dtype=dtype)
    y = layer_norm(x, ones, bias)
    assert torch.equal(y[0], bias)
    assert y[1:3].isnan().all()
    assert not y[3].isnan().any()
    assert rms_norm(x, ones)[2].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 17), (2, 3, 65), (0, 5)])
def test_residual_add_is_the_same_in_one_pass(isa: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, residual = normal(*shape, dtype=dtype), normal(*shape, seed=1, dtype=dtype)
    weight, bias = normal(shape[-1], seed=2, dtype=dtype), normal(shape[-1], seed=3, dtype=dtype)
    y, total = add_layer_norm(x, residual, weight, bias)
    assert torch.equal(total, x + residual)
    assert torch.equal(y, layer_norm(total, weight, bias))
    y, total = add_rms_norm(x, residual, weight)
    assert torch.equal(total, x + residual)
    assert torch.equal(y, rms_norm(total, weight))


def test_residual_of_a_wider_dtype(isa: str) -> None:
    x, residual, weight = normal(3, 17, dtype=torch.bfloat16), normal(3, 17, seed=1), normal(17, seed=2)
    y, total = add_layer_norm(x, residual, weight)
    assert y.dtype == total.dtype == torch.float32
    assert torch.equal(total, x + residual)


@kernels_only
def test_strides_change_nothing(isa: str) -> None:
    wide = normal(3, 4, 74)
    weight, bias = normal(37, seed=1), normal(37, seed=2)
    for x in (wide[..., :37], wide[::2, 1:, 37:], wide[..., :37].transpose(0, 1), wide[..., ::2]):
        assert torch.equal(layer_norm(x, weight, bias), layer_norm(x.contiguous(), weight, bias))
        y, total = add_rms_norm(x, x, weight)
        assert torch.equal(y, rms_norm(x.contiguous() * 2, weight))
        assert total.is_contiguous()


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (2, 40, 65)])
def test_backward_close_to_float64(isa: str, shape: tuple[int, ...], dtype: torch.dtype, rms: bool) -> None:
    C = shape[-1]
    inputs = [normal(*shape, dtype=dtype), normal(*shape, seed=1, dtype=dtype), normal(C, seed=2, dtype=dtype)]
    inputs += [] if rms else [normal(C, seed=3, dtype=dtype)]
    grads = [normal(*shape, seed=4, dtype=dtype), normal(*shape, seed=5, dtype=dtype)]

    def gradients(fused: bool, tensors: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [t.to(dtype).requires_grad_() for t in tensors]
        x, residual, weight, *bias = leaves
        if fused:
            outputs = (add_rms_norm if rms else add_layer_norm)(x, residual, weight, *bias)
        else:
            total = x + residual
            normed = F.rms_norm(total, (C,), weight, 1e-6) if rms else F.layer_norm(total, (C,), weight, *bias)
            outputs = (normed, total)
        return torch.autograd.grad(outputs, leaves, [g.to(dtype) for g in grads])

    ours, torchs = gradients(True, inputs, dtype), gradients(False, inputs, dtype)
    # The kernel normalises the rounded sum, as torch does; so does the exact answer.
    total = (inputs[0] + inputs[1]).double()
    exact = gradients(False, [total, torch.zeros_like(total), *(t.double() for t in inputs[2:])], torch.float64)
    for o, t, e in zip(ours, torchs, exact, strict=True):
        assert_within_budget(o, t, e)


@kernels_only
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_threads_batch_or_position(isa: str, dtype: torch.dtype) -> None:
    x, residual = normal(301, 517, dtype=dtype), normal(301, 517, seed=1, dtype=dtype)
    weight, bias = normal(517, seed=2).requires_grad_(), normal(517, seed=3).requires_grad_()
    leaf = x.clone().requires_grad_()
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            y, total = add_layer_norm(leaf, residual, weight, bias)
            gradients = torch.autograd.grad((y, total), (leaf, weight, bias), (residual, x))
            results.append((y, total, *gradients, rms_norm(x, weight)))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
    for row in (0, 33, 300):
        assert torch.equal(add_layer_norm(x[row], residual[row], weight, bias)[0], results[0][0][row])
        assert torch.equal(rms_norm(x[row:], weight)[0], results[0][5][row])


@pytest.mark.parametrize("rms", [False, True])
def test_gradcheck(rms: bool) -> None:
    x, residual, weight, bias = (
        t.double().requires_grad_()
        for t in (normal(2, 3, 5), normal(2, 3, 5, seed=1), normal(5, seed=2), normal(5, seed=3))
    )
    if rms:
        assert torch.autograd.gradcheck(rms_norm, (x, weight))
        assert torch.autograd.gradcheck(add_rms_norm, (x, residual, weight))
    else:
        assert torch.autograd.gradcheck(layer_norm, (x, weight, bias))
        assert torch.autograd.gradcheck(layer_norm, (x, weight))
        assert torch.autograd.gradcheck(add_layer_norm, (x, residual, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rms", [False, True])
def test_opcheck(rms: bool, dtype: torch.dtype) -> None:
    x = normal(3, 4, 7, dtype=dtype).transpose(0, 1).requires_grad_()
    weight = normal(7, seed=1).requires_grad_()
    bias = None if rms else normal(7, seed=2).requires_grad_()
    library.opcheck(torch.ops.llmcli.norm.default, (x, weight, bias, 1e-5, rms))
    library.opcheck(torch.ops.llmcli.add_norm.default, (x, x.detach(), weight, bias, 1e-5, rms))
    d, w = x.detach(), weight.detach()
    library.opcheck(torch.ops.llmcli.norm_backward.default, (d, d, w, d, not rms, 1e-5, rms))
    library.opcheck(torch.ops.llmcli.norm_backward.default, (d, d, w, None, False, 1e-5, rms))


def test_errors_name_what_came() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 3\), \(4,\)"):
        layer_norm(normal(2, 3), normal(4))
    with pytest.raises(ValueError, match=r"weight and bias of float32 or torch.float32, got torch.bfloat16"):
        rms_norm(normal(2, 3), normal(3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="x and residual alike"):
        add_layer_norm(normal(2, 3), normal(3), normal(3))
