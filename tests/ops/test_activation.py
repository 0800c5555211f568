"""GELU and SiLU-gate against float64, on every instruction set."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, library

from llmcli.ops import gelu, silu_gate
from tests import reference
from tests.marks import kernels_only
from tests.ops.samples import DTYPES, SHAPES, normal
from tests.ops.tolerance import assert_within_budget

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gelu_close_to_float64(isa: str, shape: tuple[int, ...], dtype: torch.dtype, approximate: str) -> None:
    x, bias = normal(*shape, dtype=dtype, size=3), normal(shape[-1], seed=1, dtype=dtype)
    for b in (None, bias, bias.float()):
        biased = x if b is None else x + b.to(dtype)
        torchs = F.gelu(biased, approximate=approximate)
        assert_within_budget(gelu(x, b, approximate=approximate), torchs, reference.gelu(x, b, approximate))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_silu_gate_close_to_float64(isa: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    gate, up = normal(*shape, dtype=dtype, size=3), normal(*shape, seed=1, dtype=dtype)
    gate_bias, up_bias = normal(shape[-1], seed=2, dtype=dtype), normal(shape[-1], seed=3, dtype=dtype)
    assert_within_budget(silu_gate(gate, up), F.silu(gate) * up, reference.silu_gate(gate, up))
    for biases in ((gate_bias, up_bias), (gate_bias.float(), up_bias.float())):
        torchs = F.silu(gate + gate_bias) * (up + up_bias)
        assert_within_budget(silu_gate(gate, up, *biases), torchs, reference.silu_gate(gate, up, *biases))


@kernels_only
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_over_its_whole_range(isa: str, approximate: str) -> None:
    x = torch.linspace(-40, 40, 400_003)
    assert_within_budget(
        gelu(x, approximate=approximate), F.gelu(x, approximate=approximate), reference.gelu(x, None, approximate)
    )
    special = torch.tensor([0.0, INF, -INF, NAN, 1e30, -1e30])
    expected = torch.tensor([0.0, INF, NAN, NAN, 1e30, 0.0])
    torch.testing.assert_close(gelu(special, approximate=approximate), expected, equal_nan=True)


@kernels_only
@pytest.mark.parametrize("dtype", DTYPES)
def test_halves_of_a_projection_are_read_in_place(isa: str, dtype: torch.dtype) -> None:
    both = normal(3, 5, 74, dtype=dtype)
    gate, up = both.chunk(2, -1)
    assert torch.equal(silu_gate(gate, up), silu_gate(gate.contiguous(), up.contiguous()))
    assert torch.equal(gelu(up), gelu(up.contiguous()))
    bias = normal(37, seed=1, dtype=dtype)
    for x in (gate, both.transpose(0, 1)[..., :37], both[..., ::2]):
        assert torch.equal(gelu(x, bias), gelu(x.contiguous(), bias))


def gradients(f: Callable[..., Tensor], tensors: list[Tensor], dtype: torch.dtype, grad: Tensor) -> tuple[Tensor, ...]:
    """Gradients of f's inputs, computed in dtype."""
    leaves = [t.to(dtype).requires_grad_() for t in tensors]
    return torch.autograd.grad(f(*leaves), leaves, grad.to(dtype))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (2, 40, 65)])
def test_gelu_backward_close_to_float64(isa: str, shape: tuple[int, ...], dtype: torch.dtype, approximate: str) -> None:
    x, bias = normal(*shape, dtype=dtype, size=2), normal(shape[-1], seed=1, dtype=dtype)
    grad = normal(*shape, seed=2, dtype=dtype)

    def torchs(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.gelu(x if bias is None else x + bias, approximate=approximate)

    def ours(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return gelu(x, bias, approximate=approximate)

    for inputs in ([x], [x, bias]):
        exact = gradients(torchs, inputs, torch.float64, grad)
        for o, t, e in zip(
            gradients(ours, inputs, dtype, grad), gradients(torchs, inputs, dtype, grad), exact, strict=True
        ):
            assert_within_budget(o, t, e)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (2, 40, 65)])
def test_silu_gate_backward_close_to_float64(isa: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    gate, up = normal(*shape, dtype=dtype, size=2), normal(*shape, seed=1, dtype=dtype)
    biases = [normal(shape[-1], seed=2, dtype=dtype), normal(shape[-1], seed=3, dtype=dtype)]
    grad = normal(*shape, seed=4, dtype=dtype)

    def torchs(gate: Tensor, up: Tensor, gate_bias: Tensor | None = None, up_bias: Tensor | None = None) -> Tensor:
        if gate_bias is None or up_bias is None:
            return F.silu(gate) * up
        return F.silu(gate + gate_bias) * (up + up_bias)

    for inputs in ([gate, up], [gate, up, *biases]):
        exact = gradients(torchs, inputs, torch.float64, grad)
        results = zip(
            gradients(silu_gate, inputs, dtype, grad), gradients(torchs, inputs, dtype, grad), exact, strict=True
        )
        for o, t, e in results:
            assert_within_budget(o, t, e)


@kernels_only
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_threads_batch_or_position(isa: str, dtype: torch.dtype) -> None:
    x, up = normal(301, 517, dtype=dtype, size=2), normal(301, 517, seed=1, dtype=dtype)
    leaf = x.clone().requires_grad_()
    bias = normal(517, seed=2).requires_grad_()
    threads = torch.get_num_threads()
    results = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            y = gelu(leaf, bias)
            gated = silu_gate(leaf, up, bias, bias)
            results.append((gelu(x), y, gated, *torch.autograd.grad((y, gated), (leaf, bias), (up, up))))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
    for row in (0, 33, 300):
        assert torch.equal(gelu(x[row]), results[0][0][row])
        assert torch.equal(gelu(x[row], bias), results[0][1][row])
        assert torch.equal(silu_gate(x[row:], up[row:], bias, bias)[0], results[0][2][row])


def test_gradcheck() -> None:
    x, up, bias, up_bias = (
        t.double().requires_grad_()
        for t in (normal(2, 3, 5), normal(2, 3, 5, seed=1), normal(5, seed=2), normal(5, seed=3))
    )
    for approximate in ("none", "tanh"):
        assert torch.autograd.gradcheck(lambda x, b=None, a=approximate: gelu(x, b, approximate=a), (x, bias))
        assert torch.autograd.gradcheck(lambda x, a=approximate: gelu(x, approximate=a), (x,))
    assert torch.autograd.gradcheck(silu_gate, (x, up))
    assert torch.autograd.gradcheck(silu_gate, (x, up, bias, up_bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    x = normal(3, 4, 7, dtype=dtype).transpose(0, 1).requires_grad_()
    bias = normal(7, seed=1).requires_grad_()
    d, b = x.detach(), bias.detach()
    for optional in (None, bias):
        library.opcheck(torch.ops.llmcli.gelu.default, (x, optional, True))
        library.opcheck(torch.ops.llmcli.silu_gate.default, (x, x.detach(), optional, optional))
    for constant in (None, b):
        library.opcheck(torch.ops.llmcli.gelu_backward.default, (d, d, constant, False))
        library.opcheck(torch.ops.llmcli.silu_gate_backward.default, (d, d, d, constant, constant))


def test_errors_name_what_came() -> None:
    with pytest.raises(ValueError, match="'none' or 'tanh', got 'quick'"):
        gelu(normal(2, 3), approximate="quick")
    with pytest.raises(ValueError, match=r"expected bias \(3,\) of float32 or torch.float32, got \(4,\)"):
        gelu(normal(2, 3), normal(4))
    with pytest.raises(ValueError, match="both biases or none"):
        silu_gate(normal(2, 3), normal(2, 3), normal(3))
    with pytest.raises(ValueError, match="gate and up alike"):
        silu_gate(normal(2, 3), normal(3, 3))
