"""What is offered, the check that matrix tiles must pass before they are, and the order in which they sum."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from llmcli import diagnosis
from llmcli.ops import linear, linear_pack, registry
from tests.marks import kernels_only
from tests.ops.conftest import EMULATED

pytestmark = kernels_only
needs_emulation = pytest.mark.skipif(
    registry.kernels is None or not registry.kernels.features()["avx512_bf16"],
    reason="tiles are emulated in AVX-512 with bfloat16",
)


def cancelling(M: int, N: int, K: int) -> tuple[Tensor, Tensor]:
    """x (M, K) and w (N, K) in bfloat16 whose products cancel but for rounding: every bit tells the order of a sum."""
    g = torch.Generator().manual_seed(K)
    half, order = K // 2, torch.randperm(K // 2, generator=g)
    x, w = torch.randn(M, half, generator=g), torch.randn(N, half, generator=g)
    rest = torch.full((1, K % 2), 2.0**-10)
    x = torch.cat([x, -x[:, order], rest.expand(M, -1)], dim=1)
    w = torch.cat([w, w[:, order], rest.expand(N, -1)], dim=1)
    return x.bfloat16(), w.bfloat16()


def manual(x: Tensor, w: Tensor) -> Tensor:
    """x (M, K), w (N, K) → (M, N) float32, in the order of TDPBF16PS over chunks of 32 (Intel SDM, volume 2).

    Products of bfloat16 are exact in float64, and so are the sums of this data before they are rounded to float32.
    """
    K = x.shape[1]
    total = torch.zeros(x.shape[0], w.shape[0])
    for chunk in range(0, K, 32):
        parts = [torch.zeros_like(total), torch.zeros_like(total)]
        for k in range(chunk, min(chunk + 32, K)):
            product = x[:, k, None].double() * w[None, :, k].double()
            parts[k % 2] = (parts[k % 2].double() + product).float()
        total += parts[0] + parts[1]
    return total


@needs_emulation
@pytest.mark.parametrize(("M", "N", "K"), [(1, 5, 31), (16, 64, 64), (21, 70, 97), (49, 33, 130)])
def test_tiles_sum_in_the_documented_order(M: int, N: int, K: int) -> None:
    x, w = cancelling(M, N, K)
    expected = manual(x, w).bfloat16()
    assert registry.kernels is not None
    before, found = registry.kernels.isa(), {}
    try:
        for name in (EMULATED, "avx512bf16"):
            registry.kernels.set_isa(name)
            found[name] = linear(x, linear_pack(w), None, N)
    finally:
        registry.kernels.set_isa(before)
    assert torch.equal(found[EMULATED], expected)
    assert K < 32 or not torch.equal(found["avx512bf16"], expected)  # the data tells orders apart


def test_bits_of_sums_that_cancel_do_not_depend_on_company(isa: str) -> None:
    x, w = cancelling(100, 70, 333)
    packed = linear_pack(w)
    whole = linear(x, packed, None, 70)
    for begin, end in ((0, 1), (15, 17), (31, 34), (47, 100), (99, 100)):
        assert torch.equal(linear(x[begin:end], packed, None, 70), whole[begin:end])


def test_every_instruction_set_passes_the_check_at_start(isa: str) -> None:
    assert registry.kernels is not None
    assert registry.kernels.multiplies_exactly()


@needs_emulation
def test_emulation_is_offered_to_nobody() -> None:
    assert registry.kernels is not None
    assert EMULATED not in registry.kernels.available_isas()
    with pytest.raises(ValueError, match="is not available") as error:
        registry.kernels.set_isa("sse9")
    assert EMULATED not in str(error.value)
    code = "from llmcli import _C; print(_C.isa())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() != EMULATED


def test_doctor_reports_tiles_that_failed_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        def __getattr__(self, name: str) -> object:
            return (lambda: True) if name == "amx_refused" else getattr(kernels, name)

    kernels = registry.kernels
    assert not [line for line in diagnosis.diagnose()["problems"] if "matrix tiles" in line]
    monkeypatch.setattr(registry, "kernels", Refused())
    assert [line for line in diagnosis.diagnose()["problems"] if "matrix tiles" in line]
