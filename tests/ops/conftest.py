"""Every operator test can run on every instruction set that this machine has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from llmcli.ops import registry

ISAS = registry.kernels.available_isas() if registry.kernels else ["torch"]
# The kernels of CPUs with matrix tiles, on tiles made of AVX-512: they serve these tests, in bfloat16, or in any dtype
# on weights of 8 and 4 bits.
EMULATED = "amx_emulated"
TILED_BYTES = "test_linear_quantized"
TILED = ("test_attention", "test_cached_attention", "test_linear", "test_decoder", "test_instruction_sets")


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per instruction set; "torch" where the package was built without kernels."""
    if registry.kernels is None:
        yield request.param
        return
    before = registry.kernels.isa()
    registry.kernels.set_isa(request.param)
    yield request.param
    registry.kernels.set_isa(before)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Gives the fixture `isa` its values."""
    if "isa" in metafunc.fixturenames:
        tiled = registry.kernels and registry.kernels.features()["avx512_bf16"]
        tiled = tiled and metafunc.module.__name__.rpartition(".")[2].startswith(TILED)
        metafunc.parametrize("isa", [*ISAS, *([EMULATED] if tiled else [])], indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out what emulated tiles hand on to another instruction set: most of the dtypes beside bfloat16."""
    items[:] = [
        item
        for item in items
        if not isinstance(item, pytest.Function)
        or not hasattr(item, "callspec")
        or item.callspec.params.get("isa") != EMULATED
        or item.callspec.params.get("dtype", torch.bfloat16) is torch.bfloat16
        or item.module.__name__.endswith(TILED_BYTES)
    ]
