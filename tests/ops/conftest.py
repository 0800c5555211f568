"""Every operator test can run on every instruction set that this machine has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llmcli.ops import registry

ISAS = registry.kernels.available_isas() if registry.kernels else ["torch"]


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per instruction set; "torch" where the package was built without kernels."""
    if registry.kernels is None:
        yield request.param
        return
    before = registry.kernels.isa()
    registry.kernels.set_isa(request.param)
    yield request.param
    registry.kernels.set_isa(before)
