"""Errors in ULP by hand, a kernel that is wrong, and an operator that no case covers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from llmcli.errors import ResourceError
from llmcli.ops import registry
from llmcli.verification import kernels
from llmcli.verification.kernels import Result, ulps
from llmcli.verification.operator_cases import CASES
from tests.marks import kernels_only


def test_ulps() -> None:
    one = torch.tensor([1.0, -2.0])
    assert ulps(one, one.double(), 2.0) == 0
    assert ulps(torch.tensor([1 + 2.0**-22]), torch.tensor([1.0]).double(), 1.0) == 2
    assert ulps(torch.tensor([1 + 2.0**-22]), torch.tensor([1.0]).double(), 4.0) == 0.5
    assert ulps(torch.tensor([1 + 2.0**-7], dtype=torch.bfloat16), torch.tensor([1.0]).double(), 1.9) == 1
    special = torch.tensor([math.inf, -math.inf, math.nan, 1.0])
    assert ulps(special, special.double(), 1.0) == 0
    assert ulps(special.nan_to_num(0.0), special.double(), 1.0) == math.inf
    assert ulps(special, torch.ones(4).double(), 1.0) == math.inf
    assert ulps(torch.zeros(0, 3), torch.zeros(0, 3).double(), 0.0) == 0


@pytest.mark.parametrize(("error", "passed"), [(0.0, True), (7.0, True), (7.1, False), (math.nan, False)])
def test_the_budget_is_twice_torchs_and_one(error: float, passed: bool) -> None:
    assert Result("softmax", "isa", "float32", 1, error, 3.0, "").passed is passed


def test_every_operator_has_a_case() -> None:
    named = {op.name for op in registry.status()}
    assert set(CASES) <= named
    assert set(kernels.unchecked()) <= named - set(CASES)


@kernels_only
def test_every_kernel_passes_on_every_isa() -> None:
    before = registry.kernels.isa()
    results = list(kernels.verify([torch.float32, torch.bfloat16]))
    assert registry.kernels.isa() == before
    assert {r.isa for r in results} == set(registry.kernels.available_isas())
    assert {r.operator for r in results} == set(CASES) - set(kernels.without_kernel())
    assert [r for r in results if not r.passed] == []
    assert all(r.error > 0 for r in results if r.operator in ("softmax", "linear", "attention_backward"))


@kernels_only
@pytest.mark.parametrize("spoil", [lambda y: y * (1 + 1e-5), lambda y: y + math.nan, lambda y: torch.zeros_like(y)])
def test_a_wrong_kernel_is_found(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    right = kernels.run

    def wrong(name: str, arguments: tuple[Any, ...], kernel: bool) -> list[torch.Tensor]:
        found = right(name, arguments, kernel)
        return [spoil(y) for y in found] if kernel else found

    monkeypatch.setattr(kernels, "run", wrong)
    result = kernels.measure("gelu", registry.kernels.isa(), torch.float32)
    assert not result.passed
    assert result.worst


def test_no_kernels_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "kernels", None)
    with pytest.raises(ResourceError, match="expected kernels to verify"):
        next(kernels.verify([torch.float32]))
