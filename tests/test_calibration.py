"""Calibrated rounding: the error that inputs see, against plain rounding; awkward shapes; what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from llmcli import calibration, loading
from llmcli.errors import InputError, ModelError
from llmcli.nn import quantized
from llmcli.nn.linear import Linear
from tests.ops.samples import normal
from tests.tiny import TEXT


def correlated(n: int, K: int) -> Tensor:
    """Inputs (n,K) of which some are large and all depend on a few others, as activations do."""
    sizes = torch.linspace(-1, 2, K).exp()
    return (normal(n, 8, seed=3) @ normal(8, K, seed=4) + 0.3 * normal(n, K, seed=5)) * sizes


def output_error(weight: Tensor, x: Tensor, integers: Tensor, scales: Tensor) -> float:
    """The norm of the change of x Wᵀ over its own."""
    change = x @ (quantized.dequantize(integers, scales, weight.shape[1]) - weight.float()).T
    return float(change.norm() / (x @ weight.float().T).norm())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("N", "K"), [(5, 32), (40, 200), (3, 129), (64, 7)])
def test_inputs_see_less_of_the_error(N: int, K: int, bits: int) -> None:
    weight, x = normal(N, K, seed=1), correlated(600, K)
    ours = calibration.quantize(weight, bits, "w", x.T @ x)
    plain = quantized.quantize(weight, bits, "w")
    for mine, its in zip(ours, plain, strict=True):
        assert (mine.shape, mine.dtype) == (its.shape, its.dtype)
    fresh = correlated(1200, K)[600:]
    assert output_error(weight, fresh, *ours) < 0.75 * output_error(weight, fresh, *plain)


def test_inputs_that_do_not_depend_on_each_other_change_only_scales() -> None:
    weight = normal(30, 96, seed=1)
    ours = calibration.quantize(weight, 4, "w", torch.eye(96))
    plain = quantized.quantize(weight, 4, "w")
    error, its = (float((quantized.dequantize(*made, 96) - weight).norm()) for made in (ours, plain))
    assert error <= its
    nothing = calibration.quantize(weight, 4, "w", torch.zeros(96, 96))  # inputs that are always 0
    assert all(torch.equal(a, b) for a, b in zip(ours, nothing, strict=True))


def test_what_cannot_be_quantised_is_refused() -> None:
    weight, moments = normal(4, 40), torch.eye(40)
    with pytest.raises(ModelError, match=r"w: expected finite activations"):
        calibration.quantize(weight, 4, "w", moments * torch.nan)
    weight[2] = 0
    with pytest.raises(ModelError, match="only zeros at inputs 0 to 31 of output 2"):
        calibration.quantize(weight, 4, "w", moments)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_moments_are_those_of_the_inputs(tiny_gpt2: Path, dtype: str) -> None:
    loaded = loading.load(tiny_gpt2, dtype=dtype, pack=False)
    ids = calibration.windows(loaded, [TEXT * 60])
    assert ids.shape[1] == 64
    seen: dict[str, list[Tensor]] = {}
    done: list[int] = []
    found = calibration.moments(loaded, ids[:3], done.append)
    assert done == [64, 128, 192]
    layers = {name: layer for name, layer in loaded.model.named_modules() if isinstance(layer, Linear)}
    assert all(layer.watch is None for layer in layers.values())
    for name, layer in layers.items():
        layer.watch = seen.setdefault(name, []).append
    with torch.no_grad():
        for window in ids[:3]:
            loaded.model.hidden(window[None])
    assert found.keys() == seen.keys()
    for name, inputs in seen.items():
        rows = torch.cat([x.flatten(0, -2) for x in inputs]).double()
        torch.testing.assert_close(found[name].double(), rows.T @ rows, rtol=1e-4, atol=1e-3)


def test_texts_that_do_not_serve(tiny_gpt2: Path) -> None:
    loaded = loading.load(tiny_gpt2, pack=False)
    with pytest.raises(InputError, match="at least 2,048 tokens"):
        calibration.windows(loaded, ["a short text"])
    assert calibration.windows(loaded, [TEXT * 500]).numel() <= calibration.MOST
